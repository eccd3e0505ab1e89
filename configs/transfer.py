"""Transfer: one encoder on a list of data sets, one table.

    python -m ssl_jax.main --config configs/transfer.py --config.checkpoint=runs/quickstart \
--config.sources=digits,folder:/flowers,tfds:cifar10

Expected: digits as in the run's result.json: its linear_top1 and knn_top1.

Every set is opened in the run's size and channels. --config.data.test_split and the like hold for
all sets; without them the splits are 'train' and 'test' (of the run's own set: the run's).

Images with several labels, by mean average precision: --config.multilabel=/voc/labels.csv reads
the pictures of /voc/train and /voc/test and a CSV beside them:

    file,aeroplane,bicycle
    train/000012.jpg,1,0
    train/000017.jpg,-1,1

1: in the picture, 0: not in it, -1: difficult, does not count. Pictures that the CSV does not name
are left out.
"""

from ml_collections import ConfigDict, config_dict

from ssl_jax.evaluate import probing
from ssl_jax.evaluate.probes import average_precision, linear


def get_config() -> ConfigDict:
    """The probes of the linear and knn jobs; the SVM of the VOC07 protocol."""
    c = probing.defaults("transfer")
    c.sources = config_dict.placeholder(
        str
    )  # as in data.source, with commas between (\, in a path)
    c.multilabel = config_dict.placeholder(str)  # CSV of a set with several labels an image
    c.seed = 0  # of the hold-out
    c.grid = linear.GRID  # inverse strengths C; it grows where the best is at its edge
    c.holdout = 0.2
    c.k = 20
    c.temperature = 0.1
    c.classifier = "svm"  # svm | logistic; for several labels
    c.costs = average_precision.COSTS  # C of it, the best by cross-validation for every class
    c.folds = 3
    return c
