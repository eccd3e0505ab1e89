"""MoCo v1: a query finds its key among a queue of 65,536 others, by a slowly moving encoder.

    python -m ssl_jax.main --config configs/moco_v1.py:imagenet
    python -m ssl_jax.main --config configs/moco_v1.py:cifar10
    python -m ssl_jax.main --config configs/moco_v1.py:digits

Expected:
    imagenet  linear top-1 60.8 ± 0.2 after 200 epochs (cited: README of facebookresearch/moco, five
              trials; not yet measured here)
    cifar10   kNN top-1 82.6 after 200 epochs, 88.7 after 800 (cited: the authors' notebook, whose
              kNN sees the 128 outputs of the head; not measured)
    digits    kNN 95.6 ± 0.5, linear 96.8 ± 0.2 (measured, seeds 0–2: docs/results.md)

BatchNorm statistics are those of `group` rows, and the keys change places between `shuffle` groups
on the same device. The official code shuffles over all 8 GPUs of 32 images; `group=32, shuffle=8`
is that, on one device for every 256 images. At batch 256, two devices take
`--config.method.shuffle=4`, four take 2, and eight need smaller groups besides (16): the fewer
groups change places, the more of a key's neighbours are its query's.
"""

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs


def imagenet() -> ConfigDict:
    """ResNet-50, 200 epochs at batch 256 on 8 GPUs: the README's command, the code's defaults.

    Weight decay is on all parameters, the learning rate is 0.03 for batch 256 and falls tenfold
    at epochs 120 and 160, without warm-up.
    """
    c = configs.defaults()
    c.epochs = 200.0
    c.batch = 256
    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.data.size = 256
    c.data.channels = 3
    c.model = ConfigDict({"name": "resnet50", "width": 64, "stem": "imagenet", "dtype": "float32"})
    c.method = method(temperature=0.07, projector=linear(128), queue=65536, momentum=0.999)
    c.method.group = 32  # the rows of one of the 8 GPUs
    c.method.shuffle = 8
    c.views.both = ConfigDict(policies.make("moco_v1", 224)._asdict())
    c.optimizer = optimizers.defaults()
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.03
    c.optimizer.schedule = "step"
    c.optimizer.milestones = (120, 160)
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_exclude = ()
    c.evaluate.size = 224
    c.evaluate.crop_fraction = 0.875
    c.evaluate.mean, c.evaluate.std = policies.IMAGENET_MEAN, policies.IMAGENET_STD
    c.monitor.every_steps = 25_000
    c.checkpoint.every_steps = 5_000
    c.log_every = 100
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 200 epochs at batch 512: the authors' notebook.

    facebookresearch/moco colab/moco_cifar10_demo.ipynb, asymmetric: a linear head as in v1; of v2
    the cosine schedule and the jitter. BatchNorm is split in 8, as on 8 GPUs.
    """
    c = imagenet()
    c.batch = 512
    c.data.source = "tfds:cifar10"
    c.data.test_split = "test"
    c.data.size = 32
    c.model.name = "resnet18"
    c.model.stem = "cifar"
    c.method = method(temperature=0.1, projector=linear(128), queue=4096, momentum=0.99)
    c.method.group = 64
    c.method.shuffle = 8
    std = (0.2023, 0.1994, 0.2010)  # as the notebook has it
    view = policies.make("cifar_weak", 32, interpolation="bilinear", blur=0.0, std=std)
    c.views.both = ConfigDict(view._asdict())
    c.optimizer.learning_rate = 0.06
    c.optimizer.schedule = "cosine_per_epoch"
    c.optimizer.milestones = ()
    c.optimizer.weight_decay = 5e-4
    c.evaluate.size = 32
    c.evaluate.crop_fraction = 1.0
    c.evaluate.mean, c.evaluate.std = policies.CIFAR10_MEAN, std
    c.monitor.every_steps = 2_000
    return c


def digits() -> ConfigDict:
    """SimCLR's network and optimizer on 4,000 handwritten digits: minutes on two cores.

    Larger crops than SimCLR's, twice its epochs: chosen on a hold-out of train (docs/results.md).
    The queue is short, as the run is: its keys are at most 8 steps old.
    """
    c, _ = configs.load("simclr:digits")
    c.epochs = 40.0
    c.views.both.area = (0.4, 1.0)
    c.method = method(temperature=0.07, projector=linear(128), queue=1024, momentum=0.99)
    c.method.group = 8
    c.method.shuffle = 4
    return c


def method(temperature: float, projector: dict, queue: int, momentum: float) -> ConfigDict:
    """Fields of `config.method`, with BatchNorm over the whole batch."""
    return ConfigDict(
        {
            "name": "moco_v1",
            "temperature": temperature,
            "projector": projector,
            "queue": queue,
            "momentum": momentum,
            "momentum_final": momentum,
            "group": 0,  # rows that share BatchNorm statistics; 0: all
            "shuffle": 1,  # groups that the keys change places between; 1: they stay
            "decoupled": False,  # DCL: no positive in the denominator
            "weighted": False,  # DCLW
            "sigma": 0.5,  # of its weights
            "encoder": "online",  # probing reads the query encoder
        }
    )


def linear(out: int) -> dict:
    """The fc of the official ResNet: one linear layer."""
    return {"widths": (out,), "norms": ("none",), "biases": (True,), "initial": "torch"}


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
