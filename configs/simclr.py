"""SimCLR: two views of an image attract, all other images of the batch repel.

    python -m ssl_jax.main --config configs/simclr.py:imagenet
    python -m ssl_jax.main --config configs/simclr.py:cifar10
    python -m ssl_jax.main --config configs/simclr.py:digits
    python -m ssl_jax.main --config configs/simclr.py:peer

Expected:
    imagenet  linear top-1 64.5 after 100 epochs, 69.1 after 1,000 (cited: README of
              google-research/simclr; not yet measured here)
    cifar10   linear top-1 "around 91" after 1,000 epochs (cited: the same README; not measured)
    digits    kNN 96.8 ± 0.2, linear 97.2 ± 0.4 (measured, seeds 0–2: docs/results.md)
    peer      kNN 94.5 ± 0.6, linear 96.2 ± 0.6 (measured, seeds 0–2; lightly 1.6.0:
              94.4 ± 0.5, 96.1 ± 0.4; docs/results.md)
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

common = configs.load_module("common")

# gamma of the last norm of a block starts at 0 (tf2/resnet.py); TensorFlow's running variance.
GOOGLE = {"zero_init_residual": True, "unbiased": False}


def imagenet() -> ConfigDict:
    """ResNet-50, 100 epochs at batch 4,096: the command in the official README (tf2/).

    Where the paper and the code differ, this follows the code: weight decay 1e-4 (the paper and
    the flag's default: 1e-6), a projector of 3 layers (paper: 2), multiplicative brightness, the
    learning rate 0.075·√batch (paper: 0.3·batch/256; at 4,096 both are 4.8), images in [0, 1]
    without mean and deviation, and a loss that sums the two directions.
    """
    c = common.imagenet(epochs=100.0, batch=4096)
    c.model = common.resnet50(**GOOGLE)
    c.method = common.method("simclr", loss_scale=2.0)
    c.views.both = common.view("simclr", 224)
    c.optimizer.name = "lars_google"
    c.optimizer.learning_rate = 0.075
    c.optimizer.scaling = "sqrt"
    c.epochs_in = "examples"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.weight_decay = 1e-4
    c.evaluate.mean, c.evaluate.std = (0.0,), (1.0,)
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 512: the CIFAR-10 command of the README.

    It follows the command; the projector is the code's default of 3 layers.
    """
    c = common.cifar10(epochs=1_000.0, batch=512)
    c.model = common.resnet18(**GOOGLE)
    c.method = common.method("simclr", temperature=0.5, loss_scale=2.0)
    c.method.projector.widths = (512, 512, 128)
    c.views.both = common.view("simclr_cifar", 32)
    c.optimizer.name = "lars_google"
    c.optimizer.learning_rate = 1.0  # of 256 images: the command leaves the flag's scaling, linear
    c.optimizer.scaling = "linear"
    c.epochs_in = "examples"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.weight_decay = 1e-4
    c.evaluate.mean, c.evaluate.std = (0.0,), (1.0,)
    return c


def digits() -> ConfigDict:
    """A small ResNet on 4,000 handwritten digits: minutes on two CPU cores."""
    c = common.digits()
    c.method = small()
    # As batch and learning rate, chosen on a hold-out of train (docs/results.md).
    c.views.both = common.view("digits", 20, area=(0.25, 1.0))
    return c


def peer() -> ConfigDict:
    """`digits` with the batch, optimizer and views that lightly 1.6.0 was measured with."""
    c = common.peer()
    c.method = small()
    c.views.both = common.view("digits", 28)
    return c


def small() -> ConfigDict:
    """Fields of `config.method`: a projector of 2 layers, and τ 0.2."""
    c = common.method("simclr", temperature=0.2)
    # The official N(0, 0.01²) wants LARS; AdamW moves such weights by their own size at once.
    c.projector.update(
        widths=(256, 128), norms=("affine", "scale"), biases=(False, False), initial="torch"
    )
    return c


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits, "peer": peer}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
