"""VICReg: two views alike, every feature spread out, no two features correlated.

    python -m ssl_jax.main --config configs/vicreg.py:imagenet
    python -m ssl_jax.main --config configs/vicreg.py:cifar10
    python -m ssl_jax.main --config configs/vicreg.py:digits
    python -m ssl_jax.main --config configs/vicreg.py:peer

Expected:
    imagenet  linear top-1 73.2 after 1,000 epochs (cited: README of facebookresearch/vicreg; not
              yet measured here)
    cifar10   linear top-1 92.07 after 1,000 epochs (cited: README of vturrisi/solo-learn; not
              measured)
    digits    kNN 97.3 ± 0.3, linear 98.0 ± 0.2 (measured, seeds 0–2: docs/results.md)
    peer      kNN 95.9 ± 0.1, linear 97.0 ± 0.4 (measured, seeds 0–2; lightly 1.6.0:
              96.2, 97.3; docs/results.md)
"""

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs


def imagenet() -> ConfigDict:
    """ResNet-50, 1,000 epochs at batch 2,048: the multi-node command in the official README.

    Where the paper and the code differ, this follows the code: invariance averaged over features,
    variance averaged over the two views (both: see losses/redundancy.py), and Barlow Twins' pair of
    views (paper: one distribution for both, `policies.make("vicreg", 224)`).
    """
    c = configs.defaults()
    c.epochs = 1_000.0
    c.batch = 2048
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
    c.method = method(widths=(8192, 8192, 8192))
    c.views.first = ConfigDict(policies.make("vicreg_1", 224)._asdict())
    c.views.second = ConfigDict(policies.make("vicreg_2", 224)._asdict())
    c.optimizer = optimizers.defaults()
    c.optimizer.name = "lars"
    c.optimizer.learning_rate = 0.2
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.final = 0.001
    c.optimizer.weight_decay = 1e-6
    c.evaluate.size = 224
    c.evaluate.mean, c.evaluate.std = policies.IMAGENET_MEAN, policies.IMAGENET_STD
    c.evaluate.crop_fraction = 0.875
    c.monitor.every_steps = 3_000
    c.log_every = 50
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 256: solo-learn's vicreg.yaml.

    Its variance term sums the two views with a weight of 25, which is 50 on their mean, and its
    last linear layer has a bias. Its first convolution is padded by 2 pixels, ours by 1.
    """
    c = imagenet()
    c.batch = 256
    c.data.source = "tfds:cifar10"
    c.data.test_split = "test"
    c.data.size = 32
    c.model.name = "resnet18"
    c.model.stem = "cifar"
    c.model.zero_init_residual = False
    c.method = method(widths=(2048, 2048, 2048))
    c.method.variance = 50.0
    c.method.projector.biases = (True, True, True)
    c.views.first = ConfigDict(policies.make("cifar_vicreg", 32)._asdict())
    c.views.second = ConfigDict(policies.make("cifar_vicreg", 32)._asdict())
    c.optimizer = optimizers.defaults()
    c.optimizer.name = "larc_clip"
    c.optimizer.trust_coefficient = 0.02
    c.optimizer.learning_rate = 0.3
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.warmup_start = 1e-4  # 3e-5
    c.optimizer.weight_decay = 1e-4
    c.evaluate.size = 32
    c.evaluate.mean, c.evaluate.std = policies.CIFAR10_MEAN, policies.CIFAR10_STD
    c.evaluate.crop_fraction = 1.0
    c.monitor.every_steps = 2_000
    return c


def digits() -> ConfigDict:
    """SimCLR's data, encoder, optimizer and views on digits, with this loss and head."""
    return small("simclr:digits")


def peer() -> ConfigDict:
    """The setting in which other libraries were measured: 300 steps on digits."""
    return small("simclr:peer")


def small(like: str) -> ConfigDict:
    """The config `like` of SimCLR with VICReg's loss and a head of 512 dimensions."""
    c, _ = configs.load(like)
    c.method = method(widths=(512, 512, 512))
    both = c.views.both.to_dict()
    c.views = ConfigDict({"first": both, "second": both})
    return c


def method(widths: tuple[int, ...]) -> ConfigDict:
    """Fields of `config.method`: BatchNorm after all but the last layer, which has no bias."""
    hidden = len(widths) - 1
    projector = {
        "widths": widths,
        "norms": ("affine",) * hidden + ("none",),
        "biases": (True,) * hidden + (False,),
    }
    return ConfigDict(
        {
            "name": "vicreg",
            "invariance": 25.0,
            "variance": 25.0,
            "covariance": 1.0,
            "projector": projector,
        }
    )


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits, "peer": peer}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
