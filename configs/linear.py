"""Linear probe: logistic regression on the frozen features of a checkpoint.

    python -m ssl_jax.main --config configs/linear.py --config.checkpoint=runs/quickstart

Expected: linear_top1 as in the run's result.json. Another data set: --config.data.source=tfds:name.
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import linear, probing


def get_config() -> ConfigDict:
    """Regularisation from a grid, chosen on a fifth of the training images."""
    c = probing.defaults("linear")
    c.seed = 0  # of the hold-out
    c.grid = linear.GRID  # inverse strengths C; it grows where the best is at its edge
    c.holdout = 0.2
    return c
