"""What the configs of several methods share: data, evaluation, monitors, and a small recipe.

A config file begins with one of `imagenet`, `cifar10`, `digits` and `peer`, and holds what differs:

    from ssl_jax.runs import config as configs

    common = configs.load_module("common")

    def digits() -> ConfigDict:
        c = common.digits(epochs=40.0)
        c.method = common.method("byol", momentum=0.9)
        c.views.first = common.view("digits", 20)
        return c

`views` is empty and `method` that of `runs.config.defaults()`, until the file fills them.
"""

from typing import Any

from ml_collections import ConfigDict

from ssl_jax import methods
from ssl_jax.augment import policies
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs


def imagenet(epochs: float, batch: int) -> ConfigDict:
    """ImageNet, stored at 256 pixels, probed in the official way: the centre 224 of 256.

    The optimizer has its defaults.
    """
    c = base(epochs, batch)
    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.data.size = 256
    c.data.channels = 3
    c.model = resnet50()
    c.evaluate.size = 224
    c.evaluate.train_examples = 2_000_000  # all, as in the numbers that papers give
    c.evaluate.crop_fraction = 0.875
    c.evaluate.mean, c.evaluate.std = policies.IMAGENET_MEAN, policies.IMAGENET_STD
    c.monitor.every_steps = 3_000
    c.log_every = 50
    return c


def cifar10(epochs: float, batch: int) -> ConfigDict:
    """CIFAR-10 as it is, with a ResNet-18 of small stem.

    The optimizer has its defaults.
    """
    c = base(epochs, batch)
    c.data.source = "tfds:cifar10"
    c.data.size = 32
    c.data.channels = 3
    c.model = resnet18()
    c.evaluate.size = 32
    c.evaluate.mean, c.evaluate.std = policies.CIFAR10_MEAN, policies.CIFAR10_STD
    c.monitor.every_steps = 2_000
    c.log_every = 50
    return c


def digits(epochs: float = 20.0, batch: int = 128) -> ConfigDict:
    """4,000 handwritten digits and a small ResNet: minutes on two CPU cores.

    Batch and learning rate were chosen on a hold-out of train with SimCLR (docs/results.md).
    """
    c = base(epochs, batch)
    c.data.source = "digits"
    c.model = ConfigDict(
        {"name": "resnet", "blocks": (1, 1, 1), "width": 32, "stem": "small", "dtype": "float32"}
    )
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 6e-3
    c.optimizer.warmup_fraction = 0.1
    c.optimizer.weight_decay = 1e-2
    c.monitor.every_steps = 150
    c.checkpoint.every_steps = 300
    return c


def peer() -> ConfigDict:
    """`digits` with the batch and optimizer that lightly 1.6.0 was measured with: 300 steps.

    Its views are `view("digits", 28)`.
    """
    c = digits(epochs=20.0, batch=256)
    c.optimizer.learning_rate = 3e-3
    c.monitor.every_steps = 75
    c.checkpoint.every_steps = 150
    return c


def base(epochs: float, batch: int) -> ConfigDict:
    """The fields of every pretraining config, with those of the optimizer."""
    c = configs.defaults()
    c.epochs = float(epochs)
    c.batch = batch
    c.optimizer = optimizers.defaults()
    return c


def method(name: str, **changes: Any) -> ConfigDict:
    """Fields of `config.method`: the method's own defaults, and what differs.

    Args:
      name: of the method.
      changes: field -> value, which takes the place of the default whole.

    Raises:
      KeyError: the method has no such field.
    """
    fields = methods.defaults(name)
    if unknown := {*changes} - {*fields}:
        raise KeyError(f"{name} has no field {', '.join(sorted(unknown))}")
    return ConfigDict({**fields, **changes})


def view(name: str, size: int, **changes: Any) -> ConfigDict:
    """Fields of one of `config.views`: an augmentation by name, see `augment.policies.make`.

    Args:
      name: of the policy.
      size: side of the view, pixels.
      changes: fields of `augment.Policy` that differ.
    """
    return ConfigDict(policies.make(name, size, **changes)._asdict())


def resnet50(**changes: Any) -> ConfigDict:
    """Fields of `config.model`: a ResNet-50 computed in bfloat16, and what differs."""
    fields = {"name": "resnet50", "width": 64, "stem": "imagenet", "dtype": "bfloat16"}
    return ConfigDict({**fields, **changes})


def resnet18(**changes: Any) -> ConfigDict:
    """Fields of `config.model`: a ResNet-18 for 32 pixels in bfloat16, and what differs."""
    fields = {"name": "resnet18", "width": 64, "stem": "cifar", "dtype": "bfloat16"}
    return ConfigDict({**fields, **changes})


def swav_imagenet(optimizer: ConfigDict) -> None:
    """Sets SwAV's recipe for ImageNet (scripts/swav_100ep_pretrain.sh), which two others follow.

    Learning rate absolute, weight decay and LARC on every parameter.
    """
    optimizer.name = "larc"
    optimizer.learning_rate = 4.8
    optimizer.schedule = "cosine_peak_twice"
    optimizer.warmup_epochs = 10.0
    optimizer.warmup_start = 0.3 / 4.8
    optimizer.final = 1e-3  # 0.0048
    optimizer.weight_decay = 1e-6
    optimizer.decay_exclude = ()
    optimizer.trust_exclude = ()


def swav_cifar10(optimizer: ConfigDict) -> None:
    """Sets solo-learn's recipe of SwAV for CIFAR-10 (scripts/pretrain/cifar/swav.yaml)."""
    optimizer.name = "larc_clip"
    optimizer.trust_coefficient = 0.02
    optimizer.learning_rate = 0.6
    optimizer.scaling = "linear"
    optimizer.warmup_epochs = 10.0
    optimizer.warmup_start = 5e-5  # 3e-5 of 0.6
    optimizer.weight_decay = 1e-6
