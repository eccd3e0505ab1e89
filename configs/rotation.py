"""RotNet: every image in four rotations; the network tells which.

    python -m ssl_jax.main --config configs/rotation.py:imagenet
    python -m ssl_jax.main --config configs/rotation.py:cifar10
    python -m ssl_jax.main --config configs/rotation.py:digits

Expected:
    imagenet  not yet measured; no number that we could check was published for this recipe
    cifar10   no number is published for a ResNet, or for pooled features; not yet measured
    digits    kNN 86.0 ± 0.9, linear 94.0 ± 0.3 (measured, seeds 0–2: docs/results.md)
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

common = configs.load_module("common")

# Mean and deviation in the official dataloader.py.
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)


def imagenet() -> ConfigDict:
    """ResNet-50 by VISSL's recipe (rotnet_8gpu_resnet.yaml), batches as the official code's.

    VISSL gives an image one rotation, and 256 images a step for 105 epochs. Here an image comes in
    all four rotations, as in RotNet, so 64 images are those 256, and 26.25 epochs those 105. VISSL
    mirrors at random after it has rotated, which makes 90° and 270° the same; here the crop is
    rotated last, as in RotNet.

    (RotNet's own recipe is for an AlexNet: 50 epochs of 192 images, SGD with Nesterov's momentum,
    0.01, a tenth from epochs 15, 30 and 45 on, weight decay 5e-4.)
    """
    c = common.imagenet(epochs=26.25, batch=64)
    c.model.dtype = "float32"  # as the official code
    c.method = common.method("rotation")
    c.views.image = common.view("supervised", 224)
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.1
    c.optimizer.schedule = "step"
    c.optimizer.milestones = (7.5, 15.0, 22.5, 25.0)
    c.optimizer.weight_decay = 1e-4
    c.optimizer.decay_exclude = (r"(^|/)(downsample_)?bn\d*/",)  # VISSL decays the linear bias
    c.monitor.every_steps = 20_000
    c.checkpoint.every_steps = 10_000
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 by the official recipe for CIFAR-10 (CIFAR10_RotNet_NIN4blocks.py).

    200 epochs of 128 images in four rotations each. The official network is a Network in Network,
    of whose second block the features are taken. All parameters are decayed.
    """
    c = common.cifar10(epochs=200.0, batch=128)
    c.model.dtype = "float32"  # as the official code
    c.method = common.method("rotation", padding=4)
    # 32 × 32 pixels anywhere in the padded 40 × 40: .64 of the area, never resized.
    crop = {"area": (0.64, 0.64), "aspect": (1.0, 1.0), "flip": 0.5}
    c.views.image = common.view("none", 32, **crop, mean=CIFAR10_MEAN, std=CIFAR10_STD)
    c.optimizer.name = "sgd"
    c.optimizer.learning_rate = 0.1
    c.optimizer.schedule = "step"
    c.optimizer.nesterov = True
    c.optimizer.milestones = (60.0, 120.0, 160.0)
    c.optimizer.factor = 0.2
    c.optimizer.weight_decay = 5e-4
    c.optimizer.decay_exclude = ()
    c.evaluate.mean, c.evaluate.std = CIFAR10_MEAN, CIFAR10_STD
    c.checkpoint.every_steps = 2_000
    return c


def digits() -> ConfigDict:
    """SimCLR's digits with RotNet: 64 images in four rotations cost what 128 in two views do.

    Little shear, since a slanted digit says less about its rotation. 0, 1 and 8 hardly tell half a
    turn, a 6 is a 9: not all of the task can be solved.
    """
    c = common.digits(epochs=10.0, batch=64)
    c.method = common.method("rotation")
    c.views.image = common.view("digits", 20, area=(0.5, 1.0), shear=0.1)
    c.optimizer.learning_rate = 3e-3
    return c


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
