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
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs


def imagenet() -> ConfigDict:
    """ResNet-50, 100 epochs at batch 512: the command of the README, --fix-pred-lr.

    Where the paper and the code differ, this follows the code: the projector's last BatchNorm has
    no parameters, and the bias before it exists but is frozen. Weight decay takes everything else,
    scales and biases of BatchNorm included.
    """
    c = configs.defaults()
    c.epochs = 100.0
    c.batch = 512
    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.data.size = 256
    c.data.channels = 3
    c.model = ConfigDict(
        {
            "name": "resnet50",
            "width": 64,
            "stem": "imagenet",
            "zero_init_residual": True,
            "dtype": "bfloat16",
        }
    )
    c.method = method(layers=3, hidden=2048, width=2048, bottleneck=512)
    c.views.both = ConfigDict(policies.make("simsiam", 224)._asdict())
    c.optimizer = optimizers.defaults()
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.05
    c.optimizer.scaling = "linear"
    c.optimizer.schedule = "cosine_per_epoch"
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_exclude = ()
    c.optimizer.groups = ConfigDict({"predictor": {"schedule": "constant"}})
    c.evaluate.size = 224
    c.evaluate.mean, c.evaluate.std = policies.IMAGENET_MEAN, policies.IMAGENET_STD
    c.evaluate.crop_fraction = 0.875
    c.monitor.every_steps = 12_500
    c.log_every = 50
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 800 epochs at batch 512: appendix D of the paper (not in the
    official code): a projector of 2 layers, no blur, and otherwise as on ImageNet.
    """
    c = imagenet()
    c.epochs = 800.0
    c.data.source = "tfds:cifar10"
    c.data.test_split = "test"
    c.data.size = 32
    c.model.name = "resnet18"
    c.model.stem = "cifar"
    c.method = method(layers=2, hidden=2048, width=2048, bottleneck=512)
    normal = {"mean": policies.CIFAR10_MEAN, "std": policies.CIFAR10_STD}
    c.views.both = ConfigDict(policies.make("simsiam", 32, blur=0.0, **normal)._asdict())
    c.optimizer.learning_rate = 0.03
    c.optimizer.weight_decay = 5e-4
    c.evaluate.update(size=32, crop_fraction=1.0, **normal)
    c.monitor.every_steps = 2_000
    return c


def digits() -> ConfigDict:
    """SimCLR's digits with SimSiam: AdamW as there, the predictor's learning rate constant.

    Chosen on a hold-out of train (docs/results.md): larger crops than SimCLR's, twice its epochs.
    """
    c, _ = configs.load("simclr:digits")
    c.epochs = 40.0
    c.method = method(layers=3, hidden=512, width=512, bottleneck=128)
    c.views.both.area = (0.4, 1.0)
    c.optimizer.learning_rate = 4e-3
    c.optimizer.decay_exclude = ()
    c.optimizer.groups = ConfigDict({"predictor": {"schedule": "constant"}})
    return c


def peer() -> ConfigDict:
    """The run of lightly 1.6.0 on the same digits: its heads, one schedule for all parameters."""
    c, _ = configs.load("simclr:peer")
    c.method = method(layers=3, hidden=512, width=512, bottleneck=128)
    c.method.projector.biases = (False, False, False)
    return c


def method(layers: int, hidden: int, width: int, bottleneck: int) -> ConfigDict:
    """Fields of `config.method`: BatchNorm after every layer of the projector, the last without
    parameters; a predictor that narrows and has BatchNorm inside alone.
    """
    projector = {
        "widths": (hidden,) * (layers - 1) + (width,),
        "norms": ("affine",) * (layers - 1) + ("plain",),
        "biases": (False,) * (layers - 1) + (True,),
    }
    predictor = {
        "widths": (bottleneck, width),  # predictor = {}: none
        "norms": ("affine", "none"),
        "biases": (False, True),
    }
    return ConfigDict(
        {
            "name": "simsiam",
            "projector": projector,
            "predictor": predictor,
            "stop_gradient": True,
        }
    )


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits, "peer": peer}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
