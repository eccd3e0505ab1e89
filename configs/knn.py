"""kNN: classify test images by the nearest training images in feature space.

    python -m ssl_jax.main --config configs/knn.py --config.checkpoint=runs/quickstart

Expected: knn_top1 as in the run's result.json. Another data set: --config.data.source=tfds:name.
At most 50,000 images are learned from; papers take all of ImageNet: --config.train_examples=2000000
A table over k and temperature, in the same pass over the features:

    … --config.split=holdout '--config.grid_k=(5,20,200)' '--config.grid_temperature=(0.07,0.1,0.2)'
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import probing


def get_config() -> ConfigDict:
    """Cosine, k = 20, weights exp(cos / 0.1)."""
    c = probing.defaults("knn")
    c.features = "learned"  # learned | projector | untrained: as the run began | pixels
    c.k = 20  # neighbours that vote
    c.temperature = 0.1  # of the weights exp(cos / temperature); 0.07 in InstDisc and DINO
    c.grid_k = ()  # also tried, as a table; (): k alone
    c.grid_temperature = ()  # also tried; (): temperature alone
    return c
