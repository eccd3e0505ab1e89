"""Linear probe: a linear classifier on the frozen features of a checkpoint.

    python -m ssl_jax.main --config configs/linear.py --config.checkpoint=runs/quickstart
    python -m ssl_jax.main --config configs/linear.py:sgd --config.checkpoint=runs/quickstart

    lbfgs    logistic regression on standardised features, to its optimum (the default)
    sgd      a grid of learning rates and weight decays by SGD behind a BatchNorm, in one pass
    moco     facebookresearch/moco main_lincls.py: SGD, rate 30, ÷10 at epochs 60 and 80 of 100
    simsiam  facebookresearch/simsiam main_lincls.py --lars: LARC, rate 0.1, batch 4,096, 90 epochs
    mae      facebookresearch/mae main_linprobe.py: BatchNorm, LARS, rate 0.1, batch 16,384,
             90 epochs
    dino     facebookresearch/dino eval_linear.py: SGD, rate 0.001, 100 epochs, class tokens of the
             last 4 blocks (ViT-S); ViT-B: --config.blocks=1 --config.average=True

The last four have the official rate in a grid that reaches further up, as small sets take fewer
steps; to run the protocol alone, give it alone: --config.sgd.learning_rates='(30.0,)'. On a small
set lower --config.sgd.batch too; the rate follows it, except MoCo's. What is chosen is chosen on a
fifth of the training images, and then trained on all of them.

Features are computed once, without augmentation: the official SGD protocols crop and flip the
training images in every epoch, which is one pass of the encoder an epoch in place of one in all.
--config.augment=True does as they do.

Expected: linear_top1 as in the run's result.json (lbfgs). Another data set:
--config.data.source=tfds:name.
"""

from ml_collections import ConfigDict

from ssl_jax.evaluate import probing
from ssl_jax.evaluate.probes import linear, linear_sgd


def lbfgs() -> ConfigDict:
    """Regularisation from a grid, chosen on a fifth of the training images."""
    c = probing.defaults("linear")
    c.seed = 0  # of the hold-out, the order of the rows, the initial weights, the augmentation
    c.solver = "lbfgs"  # lbfgs | sgd
    c.grid = linear.GRID  # lbfgs: inverse strengths C; it grows where the best is at its edge
    c.holdout = 0.2  # share of the training images to choose on
    c.blocks = 1  # ViT: class tokens of the last blocks, side by side; 1: the encoder's features
    c.average = False  # ViT: the mean of the last block's patch tokens besides
    c.interpolation = "bilinear"  # of the fixed view: bilinear | bicubic
    c.augment = False  # sgd: crop and flip at random, and encode anew in every epoch
    c.crop_area = (0.08, 1.0)  # of the random crop, as a share of the image
    c.crop_interpolation = "bilinear"  # of the random crop
    c.flip = 0.5  # probability of a mirror image; 0 for digits and letters
    c.sgd = ConfigDict(linear_sgd.FIELDS)
    return c


def sgd() -> ConfigDict:
    """A grid that is wide enough for the features of any encoder, behind a BatchNorm."""
    c = lbfgs()
    c.solver = "sgd"
    c.sgd.batch_norm = True
    c.sgd.learning_rates = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
    c.sgd.weight_decays = (0.0, 1e-5, 1e-4, 1e-3)
    return c


def moco() -> ConfigDict:
    """MoCo v1 and v2: features as they are, a step schedule, no weight decay, batch 256."""
    c = lbfgs()
    c.train_examples = 2_000_000  # all of ImageNet
    c.solver = "sgd"
    c.sgd.learning_rates = (1.0, 3.0, 10.0, 30.0, 100.0)  # official: 30
    c.sgd.scaling = "none"
    c.sgd.schedule = "step"
    c.sgd.milestones = (60, 80)
    return c


def simsiam() -> ConfigDict:
    """SimSiam: apex LARC (clip=False, bias included), cosine by epoch, no weight decay."""
    c = lbfgs()
    c.train_examples = 2_000_000  # all of ImageNet
    c.solver = "sgd"
    c.sgd.optimizer = "larc"
    c.sgd.learning_rates = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # official: 0.1
    c.sgd.batch = 4096
    c.sgd.epochs = 90
    c.sgd.schedule = "cosine_per_epoch"
    return c


def mae() -> ConfigDict:
    """MAE: BatchNorm without affine, LARS (util/lars.py), 10 epochs of warm-up, cosine by step."""
    c = lbfgs()
    c.train_examples = 2_000_000  # all of ImageNet
    c.solver = "sgd"
    c.sgd.optimizer = "lars"
    c.sgd.batch_norm = True
    c.sgd.learning_rates = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # official: 0.1
    c.sgd.batch = 16_384
    c.sgd.epochs = 90
    c.sgd.warmup_epochs = 10.0
    c.interpolation = "bicubic"
    c.crop_interpolation = "bicubic"
    return c


def dino() -> ConfigDict:
    """DINO with ViT-S: SGD, cosine by epoch, no weight decay, batch 1,024."""
    c = lbfgs()
    c.train_examples = 2_000_000  # all of ImageNet
    c.solver = "sgd"
    c.blocks = 4
    c.sgd.learning_rates = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0)  # official: 0.001
    c.sgd.batch = 1024  # 8 GPUs of 128
    c.sgd.schedule = "cosine_per_epoch"
    c.interpolation = "bicubic"
    return c


PRESETS = {
    "lbfgs": lbfgs,
    "sgd": sgd,
    "moco": moco,
    "simsiam": simsiam,
    "mae": mae,
    "dino": dino,
}


def get_config(preset: str = "lbfgs") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
