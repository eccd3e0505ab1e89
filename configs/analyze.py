"""Analysis of a checkpoint's features: alignment, uniformity, spectrum, hardness by temperature.

    python -m ssl_jax.main --config configs/analyze.py --config.checkpoint=runs/quickstart
    python -m ssl_jax.main --config configs/analyze.py --config.checkpoint=RUN,RUN,RUN \
        --config.policy=digits

No training and no labels needed; with labels, kNN, a linear probe and tolerance as well. Over
several runs it says how each number goes with the probes; give them one `policy`, so that they see
the same views.
Writes result.json and analyze.png.

Expected: for configs/barlow_twins.py:digits, seed 0, the run's own views: alignment 0.17,
uniformity -0.99, tolerance 0.86, effective rank 40 (measured).
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import probing


def get_config() -> ConfigDict:
    """4,000 images, two views each."""
    c = probing.defaults("analyze")
    c.features = "learned"  # learned | projector: what the loss compares | untrained
    c.examples = 4_000  # most images that pairs are made of; memory grows with its square
    c.policy = ""  # of both views (ssl_jax/augment/policies.py); '': the run's own augmentation
    c.seed = 0  # of the views
    c.alpha = 2.0  # of alignment
    c.t = 2.0  # of uniformity
    c.temperatures = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # at which hardness is looked at
    c.k = 20  # of kNN
    c.temperature = 0.1
    c.c = 0.1  # inverse strength C of the linear probe
    return c
