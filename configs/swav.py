"""SwAV: every crop of an image predicts the balanced cluster assignment of another one.

    python -m ssl_jax.main --config configs/swav.py:imagenet
    python -m ssl_jax.main --config configs/swav.py:imagenet_256
    python -m ssl_jax.main --config configs/swav.py:cifar10
    python -m ssl_jax.main --config configs/swav.py:digits
    python -m ssl_jax.main --config configs/swav.py:peer

Expected:
    imagenet      linear top-1 72.1 after 100 epochs; 73.9, 74.6, 75.3 after 200, 400, 800 (cited:
                  README of facebookresearch/swav; not yet measured here)
    imagenet_256  linear top-1 72.7 after 200 epochs, 74.3 after 400 (cited: the same README)
    cifar10       linear top-1 89.17 after 1,000 epochs (cited: README of solo-learn; not measured)
    digits        kNN 97.5 ± 0.5, linear 97.9 ± 0.4 (measured, seeds 0–2: docs/results.md)
    peer          kNN 96.2 ± 0.4, linear 96.7 ± 0.4 (measured, seeds 0–2; lightly 1.6.0:
                  95.6, 96.4; docs/results.md)

Ablations:
    --config.method.sinkhorn=False    assignments are not balanced: collapses
    --config.method.local_crops=0     two crops alone (README: 70.1 after 400 epochs)
    --config.optimizer.groups.prototypes.freeze_epochs=0.0    prototypes learn from the first step
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

common = configs.load_module("common")


def imagenet() -> ConfigDict:
    """ResNet-50, 100 epochs at batch 4,096, 2 + 6 crops: scripts/swav_100ep_pretrain.sh.

    The other lengths differ in `epochs` alone. It follows the script and the code: the learning
    rate is absolute, weight decay and LARC act on every parameter, the prototypes rest for 313
    iterations. BatchNorm takes its statistics from the whole batch; the script from groups of 8
    GPUs (512 images).
    """
    c = common.imagenet(epochs=100.0, batch=4096)
    c.method = common.method("swav")
    c.views.both = common.view("swav_global", 224)
    c.views.local = common.view("swav_local", 96)
    common.swav_imagenet(c.optimizer)
    c.evaluate.std = c.views.both.std  # 0.228 where others have 0.229
    c.optimizer.groups = ConfigDict({"prototypes": {"freeze_epochs": 313 / 312}})
    return c


def imagenet_256() -> ConfigDict:
    """ResNet-50, 200 epochs at batch 256 with a queue: scripts/swav_200ep_bs256_pretrain.sh.

    The queue holds 3,840 embeddings and fills from epoch 15 on; the prototypes rest for 5,005
    iterations, which is one epoch; there is no warm-up.
    """
    c = imagenet()
    c.epochs = 200.0
    c.batch = 256
    c.method.queue = 3_840
    c.method.queue_epoch = 15
    c.optimizer.learning_rate = 0.6
    c.optimizer.warmup_epochs = 0.0
    c.optimizer.groups.prototypes.freeze_epochs = 5_005 / 5_004
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 256, two crops: solo-learn's recipe.

    There is no official one. This is scripts/pretrain/cifar/swav.yaml with our SwAV: solo-learn
    uses its queue from epoch 50 on whether full or not, and puts it behind the batch; its
    BatchNorm sees the crops one after the other, and its first convolution pads by 2.
    """
    c = common.cifar10(epochs=1_000.0, batch=256)
    c.method = common.method("swav", local_crops=0, queue=3_840, queue_epoch=50)
    c.views.both = common.view("cifar_symmetric", 32)
    common.swav_cifar10(c.optimizer)
    c.optimizer.groups = ConfigDict({"prototypes": {"freeze_epochs": 2.0}})
    return c


def digits() -> ConfigDict:
    """A small ResNet on 4,000 handwritten digits, two crops: minutes on two CPU cores.

    Chosen on a hold-out of train (docs/results.md): larger crops than SimCLR's, fewer prototypes
    than the batch has images, and no local crops, in which little is left of a digit.
    """
    c = common.digits(epochs=40.0)
    c.method = small(prototypes=60)
    c.views.both = common.view("digits", 20, area=(0.4, 1.0))
    c.optimizer.learning_rate = 3e-3
    c.optimizer.groups = ConfigDict({"prototypes": {"freeze_epochs": 1.0}})
    return c


def peer() -> ConfigDict:
    """The work of the run of lightly that its numbers come from: 200 prototypes, two crops.

    It is not recorded how long the prototypes rested: an epoch here, as in the official recipe. The
    rate and the BatchNorm without parameters at the end of the projector were chosen on a hold-out
    of train (docs/results.md).
    """
    c = common.peer()
    c.method = small(prototypes=200)
    c.method.projector.norms = ("affine", "plain")
    c.views.both = common.view("digits", 28)
    c.optimizer.learning_rate = 6e-3
    c.optimizer.groups = ConfigDict({"prototypes": {"freeze_epochs": 1.0}})
    return c


def small(prototypes: int) -> ConfigDict:
    """Fields of `config.method` for digits: two crops and a narrow projector."""
    c = common.method("swav", prototypes=prototypes, local_crops=0)
    c.projector.widths = (256, 128)
    return c


PRESETS = {
    "imagenet": imagenet,
    "imagenet_256": imagenet_256,
    "cifar10": cifar10,
    "digits": digits,
    "peer": peer,
}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
