"""MoCo v3: no queue but a large batch, a predictor, and vision transformers.

    python -m ssl_jax.main --config configs/moco_v3.py:imagenet
    python -m ssl_jax.main --config configs/moco_v3.py:imagenet_vit_small
    python -m ssl_jax.main --config configs/moco_v3.py:imagenet_vit_base
    python -m ssl_jax.main --config configs/moco_v3.py:cifar10
    python -m ssl_jax.main --config configs/moco_v3.py:digits

Expected:
    imagenet            linear top-1 68.9 after 100 epochs; with learning rate 0.3 72.8 after 300,
                        and with weight decay 1.5e-6 and m from 0.996 besides 74.6 after 1,000
    imagenet_vit_small  linear top-1 73.2 after 300 epochs
    imagenet_vit_base   linear top-1 76.7 after 300 epochs
                        (all cited: CONFIG.md of facebookresearch/moco-v3; not yet measured here)
    cifar10             linear top-1 93.10 after 1,000 epochs (cited: README of solo-learn; not
                        measured)
    digits              kNN 95.8 ± 0.1, linear 97.2 ± 0.4 (measured, seeds 0–2: docs/results.md)
"""

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs


def imagenet() -> ConfigDict:
    """ResNet-50, 100 epochs at batch 4,096, LARS: the command in the official CONFIG.md."""
    c = configs.defaults()
    c.epochs = 100.0
    c.batch = 4096
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
            "dtype": "bfloat16",  # the official code: mixed precision in float16
        }
    )
    c.method = method(
        temperature=1.0,
        projector=mlp(4096, 256, layers=2, last="plain"),
        predictor=mlp(4096, 256, layers=2, last="none"),
    )
    c.views.first = ConfigDict(policies.make("moco_v3_1", 224)._asdict())
    c.views.second = ConfigDict(policies.make("moco_v3_2", 224)._asdict())
    c.optimizer = optimizers.defaults()
    c.optimizer.name = "lars"
    c.optimizer.learning_rate = 0.6
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.weight_decay = 1e-6
    c.evaluate.size = 224
    c.evaluate.crop_fraction = 0.875
    c.evaluate.mean, c.evaluate.std = policies.IMAGENET_MEAN, policies.IMAGENET_STD
    c.monitor.every_steps = 3_000
    c.log_every = 50
    return c


def imagenet_vit_small() -> ConfigDict:
    """ViT-S/16 with 12 heads, 300 epochs at batch 4,096, AdamW, the patch projection frozen.

    AdamW decays all parameters, as in the code: biases, norms and the class token too.
    """
    c = imagenet()
    c.epochs = 300.0
    c.model = ConfigDict(
        {
            "name": "vit_small",
            "size": 224,
            "patch": 16,
            "heads": 12,
            "positions": "sincos_mocov3",
            "initial": "mocov3",
            "pool": "token",
            "dtype": "bfloat16",
        }
    )
    c.method = method(
        temperature=0.2,
        projector=mlp(4096, 256, layers=3, last="plain"),
        predictor=mlp(4096, 256, layers=2, last="plain"),
    )
    c.method.freeze_patch_embed = True
    for view in (c.views.first, c.views.second):
        view.area = (0.08, 1.0)  # --crop-min
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1.5e-4
    c.optimizer.warmup_epochs = 40.0
    c.optimizer.weight_decay = 0.1
    c.optimizer.decay_exclude = ()
    return c


def imagenet_vit_base() -> ConfigDict:
    """ViT-B/16, otherwise as ViT-S/16."""
    c = imagenet_vit_small()
    c.model.name = "vit_base"
    return c


def cifar10() -> ConfigDict:
    """ResNet-18 with a small stem, 1,000 epochs at batch 256: solo-learn.

    scripts/pretrain/cifar/mocov3.yaml. Its LARS (η 0.02) clips the ratio at 1, its target moves
    after the optimizer instead of before the keys, which is the same but for the momentum being
    one step ahead, and its first convolution pads by 2.
    """
    c = imagenet()
    c.epochs = 1_000.0
    c.batch = 256
    c.data.source = "tfds:cifar10"
    c.data.test_split = "test"
    c.data.size = 32
    c.model.name = "resnet18"
    c.model.stem = "cifar"
    c.model.zero_init_residual = False
    c.method.temperature = 0.2
    c.views.first = ConfigDict(policies.make("cifar_asymmetric_1", 32)._asdict())
    c.views.second = ConfigDict(policies.make("cifar_asymmetric_2", 32)._asdict())
    c.optimizer.name = "larc_clip"
    c.optimizer.learning_rate = 0.3
    c.optimizer.trust_coefficient = 0.02
    c.optimizer.warmup_start = 1e-4  # 3e-5
    c.evaluate.size = 32
    c.evaluate.crop_fraction = 1.0
    c.evaluate.mean, c.evaluate.std = policies.CIFAR10_MEAN, policies.CIFAR10_STD
    c.monitor.every_steps = 4_000
    return c


def digits() -> ConfigDict:
    """SimCLR's network and optimizer on 4,000 handwritten digits: minutes on two cores.

    Larger crops than SimCLR's, twice its epochs: chosen on a hold-out of train (docs/results.md).
    """
    c, _ = configs.load("simclr:digits")
    c.epochs = 40.0
    c.views.both.area = (0.4, 1.0)
    c.method = method(
        temperature=0.2,
        projector=mlp(256, 128, layers=2, last="plain"),
        predictor=mlp(256, 128, layers=2, last="none"),
    )
    # Two copies: a change to one view is not a change to the other.
    c.views = ConfigDict({v: c.views.both.to_dict() for v in ("first", "second")})
    return c


def method(temperature: float, projector: dict, predictor: dict) -> ConfigDict:
    """Fields of `config.method`."""
    return ConfigDict(
        {
            "name": "moco_v3",
            "temperature": temperature,
            "projector": projector,
            "predictor": predictor,
            "momentum": 0.99,
            "momentum_final": 1.0,
            "freeze_patch_embed": False,
            "encoder": "online",  # probing reads the base encoder
            "encoder_rows": 0,  # images that an encoder handles at a time on a device; 0: all
        }
    )


def mlp(hidden: int, out: int, layers: int, last: str) -> dict:
    """Layers without biases, with BatchNorm and ReLU between; `last`: the norm at the end."""
    return {
        "widths": (hidden,) * (layers - 1) + (out,),
        "norms": ("affine",) * (layers - 1) + (last,),
        "biases": (False,) * layers,
        "initial": "torch",
    }


PRESETS = {
    "imagenet": imagenet,
    "imagenet_vit_small": imagenet_vit_small,
    "imagenet_vit_base": imagenet_vit_base,
    "cifar10": cifar10,
    "digits": digits,
}


def get_config(preset: str = "imagenet") -> ConfigDict:
    """The config of a preset."""
    return PRESETS[preset]()
