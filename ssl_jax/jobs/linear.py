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
      UserError: see `probing.each` and `linear.probe`.
    """

    def measure(o: probing.Opened):
        f = probing.features(o, config.batch)
        found = linear.probe(
            f.train,
            f.train_labels,
            f.test,
            f.test_labels,
            o.classes,
            grid=tuple(config.grid),
            holdout=config.holdout,
            seed=config.seed,
        )
        return {
            "linear_top1": found["top1"],
            "linear_top5": found["top5"],
            "C": found["C"],
            "images_per_second": f.images_per_second,
        }

    return probing.each(config, cluster, measure)
