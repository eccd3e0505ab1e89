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

from ssl_jax.runs import config as configs

common = configs.load_module("common")


def imagenet() -> ConfigDict:
    """ResNet-50, 100 epochs at batch 4,096, LARS: the command in the official CONFIG.md."""
    c = common.imagenet(epochs=100.0, batch=4096)
    c.model = common.resnet50(zero_init_residual=True)  # the official code: float16
    c.method = common.method("moco_v3")
    c.views.first = common.view("moco_v3_1", 224)
    c.views.second = common.view("moco_v3_2", 224)
    c.optimizer.name = "lars"
    c.optimizer.learning_rate = 0.6
    c.optimizer.scaling = "linear"
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.weight_decay = 1e-6
    return c


def imagenet_vit_small() -> ConfigDict:
    """ViT-S/16 with 12 heads, 300 epochs at batch 4,096, AdamW, the patch projection frozen.

    AdamW decays all parameters, as in the code: biases, norms and the class token too.
    """
    c = common.imagenet(epochs=300.0, batch=4096)
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
    c.method = common.method("moco_v3", temperature=0.2, freeze_patch_embed=True)
    c.method.projector.update(
        widths=(4096, 4096, 256),
        norms=("affine", "affine", "plain"),
        biases=(False, False, False),
    )
    c.method.predictor.norms = ("affine", "plain")
    c.views.first = common.view("moco_v3_1", 224, area=(0.08, 1.0))  # --crop-min
    c.views.second = common.view("moco_v3_2", 224, area=(0.08, 1.0))
    c.optimizer.name = "adamw"
    c.optimizer.learning_rate = 1.5e-4
    c.optimizer.scaling = "linear"
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
    c = common.cifar10(epochs=1_000.0, batch=256)
    c.model = common.resnet18(zero_init_residual=False)
    c.method = common.method("moco_v3", temperature=0.2)
    c.views.first = common.view("cifar_asymmetric_1", 32)
    c.views.second = common.view("cifar_asymmetric_2", 32)
    c.optimizer.name = "larc_clip"
    c.optimizer.learning_rate = 0.3
    c.optimizer.scaling = "linear"
    c.optimizer.trust_coefficient = 0.02
    c.optimizer.warmup_epochs = 10.0
    c.optimizer.warmup_start = 1e-4  # 3e-5
    c.optimizer.weight_decay = 1e-6
    c.monitor.every_steps = 4_000
    return c


def digits() -> ConfigDict:
    """SimCLR's network and optimizer on 4,000 handwritten digits: minutes on two cores.

    Larger crops than SimCLR's, twice its epochs: chosen on a hold-out of train (docs/results.md).
    """
    c = common.digits(epochs=40.0)
    c.method = common.method("moco_v3", temperature=0.2)
    for head in (c.method.projector, c.method.predictor):
        head.widths = (256, 128)
    c.views.first = common.view("digits", 20, area=(0.4, 1.0))
    c.views.second = common.view("digits", 20, area=(0.4, 1.0))
    return c


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
