"""kNN: classify test images by the nearest training images in feature space.

    python -m ssl_jax.main --config configs/knn.py --config.checkpoint=runs/quickstart

Expected: knn_top1 as in the run's result.json. Another data set: --config.data.source=tfds:name.
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import probing


def get_config() -> ConfigDict:
    """Cosine, k = 20, weights exp(cos / 0.1)."""
    c = probing.defaults("knn")
    c.k = 20
    c.temperature = 0.1
    return c
