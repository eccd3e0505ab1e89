"""ReSSL: a strong view learns which other images its weak view is like.

    python -m ssl_jax.main --config configs/ressl.py:imagenet
    python -m ssl_jax.main --config configs/ressl.py:cifar10
    python -m ssl_jax.main --config configs/ressl.py:digits

Expected:
    imagenet  linear top-1 69.9 after 200 epochs (cited: README of the official code; not yet
              measured here)
    cifar10   linear top-1 90.63 after 1,000 epochs (cited: README of solo-learn; not measured)
    digits    kNN 96.6 ± 0.4, linear 97.0 ± 0.5 (measured, seeds 0–2: docs/results.md)

BatchNorm statistics are those of `group` rows, and the teacher's rows change places between
`shuffle` groups on the same device: see configs/moco_v1.py on what to set for several devices.
"""

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs


def imagenet() -> ConfigDict:
    """ResNet-50, 200 epochs at batch 256 on 8 GPUs: script/train.sh of the official code.

    Weight decay leaves out what the code's parameter names say, 'bn' and 'bias': the norms of the
    shortcuts, called downsample.1 there, are decayed.
    """
    c = configs.defaults()
    c.epochs = 200.0
    c.batch = 256
    c.data.source = "tfds:imagenet2012"
    c.data.test_split = "validation"
    c.data.size = 256
    c.data.channels = 3
    c.model = ConfigDict({"name": "resnet50", "width": 64, "stem": "imagenet", "dtype": "float32"})
    c.method = method(hidden=4096, out=512, queue=131072, momentum=0.999)
    c.method.group = 32  # the rows of one of the 8 GPUs
    c.method.shuffle = 8
    c.views.first = ConfigDict(policies.make("moco_v2", 224)._asdict())
    weak = policies.make("supervised", 224, area=(0.2, 1.0))  # crop and flip
    c.views.second = ConfigDict(weak._asdict())
    c.optimizer = optimizers.defaults()
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.05
    c.optimizer.warmup_epochs = 5.0
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_exclude = (r"(^|/)bias$", r"(?<!downsample_)bn\d?/scale$")
    c.evaluate.size = 224
    c.evaluate.crop_fraction = 0.875
    c.evaluate.mean, c.evaluate.std = policies.IMAGENET_MEAN, policies.IMAGENET_STD
    c.monitor.every_steps = 25_000
    c.checkpoint.every_steps = 5_000
    c.log_every = 100
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 256: solo-learn.

    scripts/pretrain/cifar/ressl.yaml: BatchNorm over the batch, unshuffled, m from 0.99 to 1, and
    weight decay on all parameters. Its teacher moves after the optimizer instead of before its
    rows are computed, which is the same but for the momentum being one step ahead, and its first
    convolution pads by 2.
    """
    c = imagenet()
    c.epochs = 1_000.0
    c.data.source = "tfds:cifar10"
    c.data.test_split = "test"
    c.data.size = 32
    c.model.name = "resnet18"
    c.model.stem = "cifar"
    c.method = method(hidden=4096, out=256, queue=65536, momentum=0.99)
    c.method.momentum_final = 1.0
    strong = policies.make("cifar_asymmetric_1", 32, blur=0.5)
    weak = policies.make("cifar_asymmetric_1", 32, jitter=0.0, gray=0.0)
    c.views.first = ConfigDict(strong._asdict())
    c.views.second = ConfigDict(weak._asdict())
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.warmup_start = 6e-4  # 3e-5
    c.optimizer.decay_exclude = ()
    c.evaluate.size = 32
    c.evaluate.crop_fraction = 1.0
    c.evaluate.mean, c.evaluate.std = policies.CIFAR10_MEAN, policies.CIFAR10_STD
    c.monitor.every_steps = 4_000
    return c


def digits() -> ConfigDict:
    """SimCLR's network, views and optimizer on 4,000 handwritten digits: minutes on two cores.

    The teacher's views are crops alone, and large ones: chosen on a hold-out of train
    (docs/results.md), as the queue, the student's crops and the epochs.
    """
    c, _ = configs.load("simclr:digits")
    c.epochs = 40.0
    c.method = method(hidden=256, out=128, queue=2048, momentum=0.99)
    c.method.group = 8
    c.method.shuffle = 4
    c.views.both.area = (0.4, 1.0)
    weak = policies.make("digits", 20, area=(0.8, 1.0), shear=0.0, jitter=0.0, blur=0.0)
    c.views = ConfigDict({"first": c.views.both.to_dict(), "second": weak._asdict()})
    return c


def method(hidden: int, out: int, queue: int, momentum: float) -> ConfigDict:
    """Fields of `config.method`, with BatchNorm over the whole batch."""
    projector = {
        "widths": (hidden, out),
        "norms": ("none", "none"),
        "biases": (True, True),
        "initial": "torch",
    }
    return ConfigDict(
        {
            "name": "ressl",
            "student_temperature": 0.1,
            "teacher_temperature": 0.04,
            "projector": projector,
            "queue": queue,
            "momentum": momentum,
            "momentum_final": momentum,
            "group": 0,  # rows that share BatchNorm statistics; 0: all
            "shuffle": 1,  # groups that the teacher's rows change places between; 1: they stay
            "encoder": "online",  # probing reads the student
        }
    )


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
