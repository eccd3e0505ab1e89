"""SeLa-v2: every crop predicts the balanced label that its image was given at the last epoch's end.

    python -m ssl_jax.main --config configs/sela_v2.py:imagenet
    python -m ssl_jax.main --config configs/sela_v2.py:cifar10
    python -m ssl_jax.main --config configs/sela_v2.py:digits

The first epoch fills the memory and learns nothing: its loss is 0 and `optimizer.freeze_epochs` 1.
Every preset has an epoch more for it.

Expected:
    imagenet  linear top-1 71.8 after 400 epochs (cited: README of facebookresearch/swav; not yet
              measured here)
    cifar10   nothing is published
    digits    kNN 96.5 ± 0.8, linear 97.8 ± 0.2 (measured, seeds 0–2: docs/results.md)
"""

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

common = configs.load_module("common")


def imagenet() -> ConfigDict:
    """ResNet-50, 400 epochs at batch 4,096, 2 × 160 and 4 × 96 pixels.

    There is no official script. The crops are those of the README's table, their areas those of
    DeepCluster-v2's script with the same sizes (deepclusterv2_400ep_pretrain.sh); all else is
    SwAV's, as the paper says (appendix D), the rest of the prototypes included. How sharp the
    transport is and when it ends is not said there: SeLa's λ and tolerance, at most 100 passes.
    """
    c = common.imagenet(epochs=401.0, batch=4096)
    c.method = common.method("sela_v2")
    c.views.both = common.view("swav_global", 160, area=(0.08, 1.0))
    c.views.local = common.view("swav_local", 96)
    common.swav_imagenet(c.optimizer)
    c.evaluate.std = c.views.both.std  # 0.228 where others have 0.229
    rest(c, 313 / 312)
    c.optimizer.delay_epochs = 1.0
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 256: solo-learn's recipe for SwAV.

    Nobody has published one for SeLa-v2. The sets of prototypes are DeepCluster-v2's.
    """
    c = common.cifar10(epochs=1_001.0, batch=256)
    c.method = common.method("sela_v2", local_crops=0)
    c.views.both = common.view("cifar_symmetric", 32)
    common.swav_cifar10(c.optimizer)
    rest(c, 2.0)
    c.optimizer.delay_epochs = 1.0
    return c


def digits() -> ConfigDict:
    """A small ResNet on 4,000 handwritten digits, two crops: minutes on two CPU cores.

    Larger crops than SimCLR's, and no local ones, in which little is left of a digit: chosen on a
    hold-out of train (docs/results.md). The first epoch fills the memory.
    """
    c = common.digits(epochs=41.0)
    c.method = common.method("sela_v2", prototypes=(200, 200, 200), local_crops=0)
    c.method.projector.widths = (256, 128)
    c.views.both = common.view("digits", 20, area=(0.4, 1.0))
    c.optimizer.learning_rate = 3e-3
    rest(c, 1.0)
    return c


def rest(c: ConfigDict, epochs: float) -> None:
    """All rests in the first epoch, the prototypes for `epochs` more."""
    c.optimizer.freeze_epochs = 1.0
    c.optimizer.groups = ConfigDict({"prototypes": {"freeze_epochs": 1.0 + epochs}})


PRESETS = {"imagenet": imagenet, "cifar10": cifar10, "digits": digits}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
