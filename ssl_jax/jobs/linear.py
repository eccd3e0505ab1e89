"""Probing by a linear classifier on frozen features."""

from ml_collections import ConfigDict

from ssl_jax import host
from ssl_jax.evaluate import linear, probing


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Multinomial logistic regression on standardised features (evaluate/linear.py).

    Its regularisation is chosen on a hold-out of the training images, never on test.

    Args:
      config: `probing.defaults('linear')` with grid and holdout.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: see `probing.prepare` and `linear.probe`.
    """
    p = probing.prepare(config, cluster)
    found = linear.probe(
        p.train,
        p.train_labels,
        p.test,
        p.test_labels,
        p.classes,
        grid=tuple(config.grid),
        holdout=config.holdout,
        seed=config.seed,
    )
    numbers = {"linear_top1": found["top1"], "linear_top5": found["top5"], "C": found["C"]}
    probing.conclude(p, config, numbers)
    return 0
