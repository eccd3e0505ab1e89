"""Retrieval: the nearest images of every test image, recall@k, MAP@R, and a picture of them.

    python -m ssl_jax.main --config configs/retrieve.py --config.checkpoint=runs/quickstart

EXPECTED
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import probing


def get_config() -> ConfigDict:
    """Cosine; test images search among the training images."""
    c = probing.defaults("retrieve")
    c.gallery = "train"  # test: judged images search among each other, each but itself
    c.ks = (1, 5, 10)  # lengths of the lists for recall@k
    c.shown = 10  # queries in neighbours.png; 0: no picture
    c.columns = 10  # neighbours of each
    c.seed = 0  # of the choice of queries to show
    return c
