"""Low-shot: linear probe and kNN with 1 % and 10 % of the labels, and with 1, 5, 10 a class.

    python -m ssl_jax.main --config configs/lowshot.py --config.checkpoint=runs/quickstart

Expected, on 1,000 test digits, linear / kNN, mean ± sd of the five draws (measured with a run of
configs/barlow_twins.py:digits, seed 0, which has 97.6 / 96.6 with all 4,000 labels):

     1 %     91.6 ± 1.9    88.4 ± 2.5        1 a class   76.3 ± 2.1    78.0 ± 1.9
    10 %     95.3 ± 0.8    94.3 ± 0.5        5 a class   92.2 ± 1.4    89.2 ± 1.8
                                            10 a class   94.2 ± 1.2    91.8 ± 1.2

Another data set: --config.data.source=tfds:name. A list is a function of the labels and a seed, so
it is the same for every checkpoint; fine-tuning on the first draw's lists: configs/finetune.py.
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import probing
from ssl_jax.evaluate.probes import linear


def get_config() -> ConfigDict:
    """Five draws of every list."""
    c = probing.defaults("lowshot")
    c.features = "learned"  # learned | projector | untrained: as the run began | pixels
    c.train_examples = 2_000_000  # lists are drawn from all; only what is listed is encoded
    c.seed = 0  # of the first draw; the others follow
    c.draws = 5
    c.shares = (0.01, 0.1)  # of the labels of every class, at least one
    c.shots = (1, 5, 10)  # labels of every class
    c.grid = linear.GRID  # inverse strengths C, as in the linear job
    c.holdout = 0.2  # share of the few labels to choose C on
    c.c = 1.0  # C where a class has a single label (scikit-learn's default)
    c.k = 20
    c.temperature = 0.1
    return c
