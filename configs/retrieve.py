"""Retrieval: the nearest images of every test image, recall@k, MAP@R, and a picture of them.

    python -m ssl_jax.main --config configs/retrieve.py --config.checkpoint=runs/quickstart

Expected, of `configs/barlow_twins.py:digits` (seeds 0, 1, 2, mean ± sd, %): recall@1 97.5 ± 0.2,
recall@5 99.3 ± 0.2, recall@10 99.7 ± 0.1, MAP@R 65.0 ± 3.6. Without labels (folder:/pictures) there
is the picture alone; --config.data.labels=True lets sub-folders count as classes.
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import probing


def get_config() -> ConfigDict:
    """Cosine; test images search among the training images."""
    c = probing.defaults("retrieve")
    c.gallery = "train"  # test: judged images search among each other, each but itself
    c.ks = (1, 5, 10)  # lengths of the lists for recall@k
    c.shown = 10  # queries in neighbours.png; 0: no picture
    c.columns = 10  # neighbours of each
    c.seed = 0  # of the choice of queries to show
    return c
