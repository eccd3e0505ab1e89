"""Dense: segment drawn scenes and tell their depth with one linear layer on feature maps.

    python -m ssl_jax.main --config configs/dense.py --config.checkpoint=RUN

Expected, of runs that learned from 4,000 scenes without labels for 310 steps (measured, seeds 0, 1,
2, mean ± sd):

    python -m ssl_jax.main --config configs/simclr.py:digits --config.data.source=scenes \\
        --config.data.size=64 --config.data.examples=4000 --config.views.both.size=48 \\
        --config.evaluate.size=64 --config.epochs=10 --workdir=RUN

    feature maps, 8 × 8       mIoU %   depth RMSE, m
    learned               13.8 ± 0.4     1.77 ± 0.03
    untrained encoder     11.0 ± 0.1     2.07 ± 0.02
    raw pixels                  10.6            2.61
    a constant                  10.6            2.61
"""

from ml_collections import ConfigDict, config_dict

from ssl_jax.evaluate import probing
from ssl_jax.evaluate.dense import depth


def get_config() -> ConfigDict:
    """DINOv2's linear protocol; see ssl_jax/evaluate/dense/ for what differs."""
    c = probing.defaults("dense")
    c.task = "both"  # segment | depth | both
    c.stage = config_dict.placeholder(int)  # stage of a ResNet, block of a ViT; None: the last
    c.seed = 0  # of the hold-out and the order of the images
    c.batch = 100  # images at a time over all devices, where nothing is learned
    c.train_examples = 2_000
    c.test_examples = 500
    c.cache_bytes = 2**30  # maps kept in memory, of each split; beyond, encoded at every pass
    c.learning_rates = (1e-3, 1e-2, 3e-2, 1e-1)  # of segmentation; official: 1e-3, 40,000 steps
    c.weight_decays = (1e-4,)  # of segmentation; official: 1e-4
    c.epochs = 10.0  # of segmentation
    c.step_batch = 16  # images of a step of segmentation, as official
    c.ridges = depth.RIDGES  # of depth
    c.data.source = "scenes"
    c.data.size = config_dict.placeholder(int)  # None: as the run's probes see images
    return c
