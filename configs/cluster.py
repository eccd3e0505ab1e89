"""Clustering: k-means on the features of a checkpoint, compared with the classes.

    python -m ssl_jax.main --config configs/cluster.py --config.checkpoint=runs/quickstart

Expected, of `configs/barlow_twins.py:digits` (seeds 0, 1, 2, mean ± sd): accuracy 88.6 ± 7.8 %,
NMI 0.837 ± 0.046, ARI 0.806 ± 0.082, purity 0.891 ± 0.070.
"""

from ml_collections import ConfigDict, config_dict

from ssl_jax.evaluate import probing


def get_config() -> ConfigDict:
    """Spherical k-means, as many clusters as classes, the best of 10 starts."""
    c = probing.defaults("cluster")
    c.features = "learned"  # learned | projector | untrained: as the run began | pixels
    c.geometry = "spherical"  # by cosine; euclidean: by distance
    c.standardise = False  # every feature to mean 0 and deviation 1 of the training images first
    c.clusters = config_dict.placeholder(int)  # None: as many as classes
    c.restarts = 10  # the one with the least spread counts; labels play no part in it
    c.seed = 0  # of the starts
    return c
