"""Probing by nearest neighbours: no training, one look at the features."""

from ml_collections import ConfigDict

from ssl_jax import host
from ssl_jax.evaluate import knn, probing


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Classifies test images by a weighted vote of the nearest training images (evaluate/knn.py).

    Args:
      config: `probing.defaults('knn')` with k and temperature.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: see `probing.prepare` and `knn.classify`.
    """
    p = probing.prepare(config, cluster)
    scores = knn.classify(
        p.train, p.train_labels, p.test, p.classes, k=config.k, temperature=config.temperature
    )
    found = knn.accuracy(scores, p.test_labels)
    probing.conclude(p, config, {"knn_top1": found["top1"], "knn_top5": found["top5"]})
    return 0
