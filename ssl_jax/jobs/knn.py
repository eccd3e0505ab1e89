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
      UserError: see `probing.each` and `knn.classify`.
    """

    def measure(o: probing.Opened):
        f = probing.features(o, config.batch)
        scores = knn.classify(
            f.train, f.train_labels, f.test, o.classes, k=config.k, temperature=config.temperature
        )
        found = knn.accuracy(scores, f.test_labels)
        return {
            "knn_top1": found["top1"],
            "knn_top5": found["top5"],
            "images_per_second": f.images_per_second,
        }

    return probing.each(config, cluster, measure)
