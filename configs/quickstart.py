"""Quickstart: SimCLR on 4,000 handwritten digits without labels, in minutes on two cores.

    python -m ssl_jax.main --config configs/quickstart.py

Expected: measured in README.md and docs/results.md.
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs


def get_config() -> ConfigDict:
    """`configs/simclr.py:digits`, 18 epochs."""
    c, _ = configs.load("simclr:digits")
    c.epochs = 18.0
    return c
