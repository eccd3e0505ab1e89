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
`shuffle` groups: see configs/moco_v1.py.
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

common = configs.load_module("common")


def imagenet() -> ConfigDict:
    """ResNet-50, 200 epochs at batch 256 on 8 GPUs: script/train.sh of the official code.

    Weight decay leaves out what the code's parameter names say, 'bn' and 'bias': the norms of the
    shortcuts, called downsample.1 there, are decayed.
    """
    c = common.imagenet(epochs=200.0, batch=256)
    c.model.dtype = "float32"
    c.method = common.method("ressl")  # in groups of the 32 rows of one of the 8 GPUs
    c.views.first = common.view("moco_v2", 224)
    c.views.second = common.view("supervised", 224, area=(0.2, 1.0))  # crop and flip
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.05
    c.optimizer.warmup_epochs = 5.0
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_exclude = (r"(^|/)bias$", r"(?<!downsample_)bn\d?/scale$")
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
    c = common.cifar10(epochs=1_000.0, batch=256)
    c.model.dtype = "float32"
    c.method = common.method("ressl", queue=65_536, momentum=0.99, momentum_final=1.0)
    c.method.projector.widths = (4096, 256)
    c.method.group, c.method.shuffle = 0, 1
    c.views.first = common.view("cifar_asymmetric_1", 32, blur=0.5)
    c.views.second = common.view("cifar_asymmetric_1", 32, jitter=0.0, gray=0.0)
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.05
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.warmup_start = 6e-4  # 3e-5
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_exclude = ()
    c.monitor.every_steps = 4_000
    c.checkpoint.every_steps = 5_000
    c.log_every = 100
    return c


def digits() -> ConfigDict:
    """SimCLR's network, views and optimizer on 4,000 handwritten digits: minutes on two cores.

    The teacher's views are crops alone, and large ones: chosen on a hold-out of train
    (docs/results.md), as the queue, the student's crops and the epochs.
    """
    c = common.digits(epochs=40.0)
    c.method = common.method("ressl", queue=2048, momentum=0.99, momentum_final=0.99)
    c.method.projector.widths = (256, 128)
    c.method.group, c.method.shuffle = 8, 4
    c.views.first = common.view("digits", 20, area=(0.4, 1.0))
    large = {"area": (0.8, 1.0), "shear": 0.0, "jitter": 0.0, "blur": 0.0}
    c.views.second = common.view("digits", 20, **large)
    return c


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
