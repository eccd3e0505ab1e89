"""SimSiam: each view predicts the other, which is held constant; no negatives, no slow target.

    python -m ssl_jax.main --config configs/simsiam.py:imagenet
    python -m ssl_jax.main --config configs/simsiam.py:cifar10
    python -m ssl_jax.main --config configs/simsiam.py:digits
    python -m ssl_jax.main --config configs/simsiam.py:peer

Expected:
    imagenet  linear top-1 68.1 after 100 epochs (cited: README of facebookresearch/simsiam; not yet
              measured here)
    cifar10   linear top-1 91.8 after 800 epochs (cited: appendix D of the paper; not measured)
    digits    kNN 95.7 ± 1.4, linear 96.9 ± 0.9 (measured, seeds 0–2: docs/results.md)
    peer      kNN 92.8 ± 1.1, linear 95.2 ± 0.3 (measured, seeds 0–2; lightly 1.6.0:
              92.6, 94.9; docs/results.md)

Ablations of the paper (figure 2, table 1):
    --config.method.stop_gradient=False                              collapses
    --config.method.predictor={} --config.optimizer.groups={}        no predictor: collapses
    --config.optimizer.groups.predictor.name=frozen                  predictor as drawn: fails
    --config.optimizer.groups={}                                     its rate decays: 67.7
"""

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.runs import config as configs

common = configs.load_module("common")

CONSTANT = {"predictor": {"schedule": "constant"}}


def imagenet() -> ConfigDict:
    """ResNet-50, 100 epochs at batch 512: the command of the README, --fix-pred-lr.

    Where the paper and the code differ, this follows the code: the projector's last BatchNorm has
    no parameters, and the bias before it exists but is frozen. Weight decay takes everything else,
    scales and biases of BatchNorm included.
    """
    c = common.imagenet(epochs=100.0, batch=512)
    c.model = common.resnet50(zero_init_residual=True, dtype="float32")
    c.method = common.method("simsiam")
    c.views.both = common.view("simsiam", 224)
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.05
    c.optimizer.scaling = "linear"
    c.optimizer.schedule = "cosine_per_epoch"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_exclude = ()
    c.optimizer.groups = ConfigDict(CONSTANT)
    c.monitor.every_steps = 12_500
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 800 epochs at batch 512: appendix D of the paper (not in the
    official code): a projector of 2 layers, no blur, and otherwise as on ImageNet.
    """
    c = common.cifar10(epochs=800.0, batch=512)
    c.model = common.resnet18(zero_init_residual=True, dtype="float32")
    c.method = common.method("simsiam")
    c.method.projector.update(widths=(2048, 2048), norms=("affine", "plain"), biases=(False, True))
    normal = {"mean": policies.CIFAR10_MEAN, "std": policies.CIFAR10_STD}
    c.views.both = common.view("simsiam", 32, blur=0.0, **normal)
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.03
    c.optimizer.scaling = "linear"
    c.optimizer.schedule = "cosine_per_epoch"
    c.optimizer.weight_decay = 5e-4
    c.optimizer.decay_exclude = ()
    c.optimizer.groups = ConfigDict(CONSTANT)
    return c


def digits() -> ConfigDict:
    """SimCLR's digits with SimSiam: AdamW as there, the predictor's learning rate constant.

    Chosen on a hold-out of train (docs/results.md): larger crops than SimCLR's, twice its epochs.
    """
    c = common.digits(epochs=40.0)
    c.method = small()
    c.views.both = common.view("digits", 20, area=(0.4, 1.0))
    c.optimizer.learning_rate = 4e-3
    c.optimizer.decay_exclude = ()
    c.optimizer.groups = ConfigDict(CONSTANT)
    return c


def peer() -> ConfigDict:
    """The run of lightly 1.6.0 on the same digits: its heads, one schedule for all parameters."""
    c = common.peer()
    c.method = small()
    c.method.projector.biases = (False, False, False)
    c.views.both = common.view("digits", 28)
    return c


def small() -> ConfigDict:
    """Fields of `config.method`: heads of 512 dimensions."""
    c = common.method("simsiam")
    c.projector.widths = (512, 512, 512)
    c.predictor.widths = (128, 512)
    return c


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits, "peer": peer}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
