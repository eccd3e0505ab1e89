"""What to do to an image, as plain numbers: one `Policy` for every view of the official recipes.

Names of `make` (a method with different views has one name for each):

    none                             resize the centred square; nothing is random
    supervised, mae                  crop and flip
    simclr, simclr_v1, simclr_cifar  Google: the code; the paper's brightness; CIFAR-10
    moco_v1, moco_v2, simsiam        (simsiam is moco_v2)
    moco_v3_1, moco_v3_2             the asymmetric pair: blur / little blur and solarize
    byol_1, byol_2                   the same idea in DeepMind's semantics
    barlow_1, barlow_2               torchvision semantics, bicubic
    vicreg_1, vicreg_2, vicreg       the official code (= Barlow Twins); the paper, symmetrised
    swav_global, swav_local          multi-crop: 224 and 96 pixels on ImageNet
    dino_global_1, dino_global_2, dino_local
    cifar_symmetric, cifar_weak, cifar_asymmetric_1, cifar_asymmetric_2, cifar_vicreg
                                     solo-learn's recipes for 32 pixels
    digits                           gray digits: crop, shear, intensity, blur; no flip

Where every official pipeline differs from ours: it crops the original picture, we crop the stored
one of fixed size (data.size); Pillow rounds to 8 bits after each operation, we stay in float32.
The order is crop, flip, shear, jitter, gray, blur, solarize, normalise. MoCo v1 turns gray before
the jitter (`gray_first`). MoCo v1–v3 flip last, which is the same: all that follows the crop is
symmetric in left and right.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from ssl_jax.augment import blur, color, geometry
from ssl_jax.errors import UserError, near_misses

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class Policy(NamedTuple):
    """One random view. Probabilities and strengths of 0 are not compiled at all.

    Attributes:
      size: side of the view, pixels.
      area: (low, high) share of the image that the crop covers; None: no random crop but the
        centred square of the shorter side.
      aspect: (low, high) width / height of the crop.
      box: how the crop is drawn: 'torchvision', 'tf' or 'byol' (geometry.py).
      interpolation: 'bilinear' or 'bicubic'.
      antialias: widen the resize kernel when shrinking (Pillow does, tf.image.resize does not).
      flip: probability of a mirror image, left to right.
      shear: both shear factors ~ U(−shear, shear), zeros from outside.
      jitter: probability of the four colour operations below, in random order.
      brightness, contrast, saturation, hue: their strengths (ranges: color.py).
      semantics: of the four: 'torchvision', 'tf' or 'byol' (color.py).
      gray: probability of grayscale; gray_first: before the jitter instead of after it.
      blur: probability of a Gaussian blur; sigma: (low, high) of its uniform sigma, pixels.
      blur_radius: taps on each side; -1: size // 20, which is Google's and DeepMind's rule
        "kernel = size / 10" (1 tap at 32 pixels; none below 20, so no blur).
      blur_padding: 'zero', 'reflect' or 'edge' (blur.py).
      solarize: probability of inverting the values from `threshold` on.
      mean, std: the view is (x − mean) / std, x in [0, 1], per channel. Images of one channel
        take the averages of the three.
    """

    size: int
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    box: str = "torchvision"
    interpolation: str = "bilinear"
    antialias: bool = True
    flip: float = 0.0
    shear: float = 0.0
    jitter: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    semantics: str = "torchvision"
    gray: float = 0.0
    gray_first: bool = False
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    blur_radius: int = -1
    blur_padding: str = "edge"
    solarize: float = 0.0
    threshold: float = 0.5
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


def make(name: str, size: int, **overrides: Any) -> Policy:
    """The policy of that name, for views of size × size pixels.

    Args:
      name: see the list on top of this module.
      size: side of the view, pixels.
      **overrides: fields of `Policy` that replace the official numbers (lists are made tuples).
        `make("none", **d)` checks a policy that was written out as a dictionary.

    Raises:
      UserError: unknown name or field, or a value out of range.
    """
    if name not in POLICIES:
        raise UserError(f"unknown augmentation {name!r}.{near_misses(name, POLICIES)}")
    return check({**POLICIES[name], **overrides, "size": size}, f"augmentation {name!r}")


def check(fields: Mapping[str, Any], where: str) -> Policy:
    """The policy of these fields.

    Args:
      fields: of `Policy`, 'size' among them; lists are made tuples.
      where: what they belong to, for messages: '--config.views.both'.

    Raises:
      UserError: an unknown field, or a value out of range.
    """
    for key in fields:
        if key not in Policy._fields:
            raise UserError(f"{where} has no field {key!r}.{near_misses(key, Policy._fields)}")
    policy = Policy(**{k: _plain(v) for k, v in fields.items()})
    _check(where, policy)
    return policy


def blur_radius(policy: Policy) -> int:
    """Taps on each side of the blur kernel: int((size / 10) / 2) where the policy says -1."""
    return policy.size // 20 if policy.blur_radius == -1 else policy.blur_radius


_NORMAL = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
_CIFAR_NORMAL = {"mean": CIFAR10_MEAN, "std": CIFAR10_STD}
_CROP_FLIP = {"area": (0.08, 1.0), "flip": 0.5}
# PIL.ImageFilter.GaussianBlur(sigma). Pillow approximates a Gaussian of any width by three box
# filters; we take the Gaussian itself, cut at 4 sigma.
_PILLOW_BLUR = {"sigma": (0.1, 2.0), "blur_radius": 8, "blur_padding": "edge"}
# gaussian_blur of Google and DeepMind: kernel ~ size / 10, dark borders (see PADDINGS in blur.py).
_TF_BLUR = {"sigma": (0.1, 2.0), "blur_radius": -1, "blur_padding": "zero"}


def _jitter(probability: float, brightness: float, contrast: float, saturation: float, hue: float):
    return {
        "jitter": probability,
        "brightness": brightness,
        "contrast": contrast,
        "saturation": saturation,
        "hue": hue,
    }


# simclr/tf2/data_util.py: TF's sampler of boxes, bicubic without antialias, multiplicative
# brightness (impl 'simclrv2', the default there), strength 1, values stay in [0, 1].
_SIMCLR = {
    **_CROP_FLIP,
    "box": "tf",
    "interpolation": "bicubic",
    "antialias": False,
    **_jitter(0.8, 0.8, 0.8, 0.8, 0.2),
    "semantics": "tf",
    "gray": 0.2,
    "blur": 0.5,
    **_TF_BLUR,
}
# deepmind-research byol/utils/augmentations.py and dataset.py; normalised by normalize_images in
# byol_experiment.py.
_BYOL = {
    **_CROP_FLIP,
    "box": "byol",
    "interpolation": "bicubic",
    "antialias": False,
    **_jitter(0.8, 0.4, 0.4, 0.2, 0.1),
    "semantics": "byol",
    "gray": 0.2,
    **_TF_BLUR,
    **_NORMAL,
}
# barlowtwins/main.py class Transform: BYOL's numbers with torchvision and Pillow.
_BARLOW = {
    **_CROP_FLIP,
    "interpolation": "bicubic",
    **_jitter(0.8, 0.4, 0.4, 0.2, 0.1),
    "gray": 0.2,
    **_PILLOW_BLUR,
    **_NORMAL,
}
_BLURRED = {"blur": 1.0}
_SOLARIZED = {"blur": 0.1, "solarize": 0.2}
# moco/main_moco.py --aug-plus.
_MOCO_V2 = {
    "area": (0.2, 1.0),
    "flip": 0.5,
    **_jitter(0.8, 0.4, 0.4, 0.4, 0.1),
    "gray": 0.2,
    "blur": 0.5,
    **_PILLOW_BLUR,
    **_NORMAL,
}
# moco-v3/main_moco.py: Barlow's pair but torchvision's default interpolation and area from .2
# (--crop-min; the recipes for ViT use .08).
_MOCO_V3 = {**_BARLOW, "area": (0.2, 1.0), "interpolation": "bilinear"}
# swav/src/multicropdataset.py: SimCLR's numbers with torchvision; PILRandomGaussianBlur (the code's
# first version had cv2.GaussianBlur of kernel 23); the first std is .228 there.
_SWAV = {
    "flip": 0.5,
    **_jitter(0.8, 0.8, 0.8, 0.8, 0.2),
    "gray": 0.2,
    "blur": 0.5,
    **_PILLOW_BLUR,
    "mean": IMAGENET_MEAN,
    "std": (0.228, 0.224, 0.225),
}
# dino/main_dino.py DataAugmentationDINO; areas are its defaults for ViT (ResNet-50: .14).
_DINO = {**_BARLOW, "area": (0.4, 1.0)}
# solo-learn scripts/pretrain/cifar/augmentations/*.yaml: bicubic; blur where it is given.
_CIFAR = {**_CROP_FLIP, "interpolation": "bicubic", "gray": 0.2, **_PILLOW_BLUR, **_CIFAR_NORMAL}

POLICIES: dict[str, dict[str, Any]] = {
    "none": {},
    # torchvision references/classification: RandomResizedCrop and flip, as linear probes train.
    "supervised": {**_CROP_FLIP, **_NORMAL},
    # mae/main_pretrain.py.
    "mae": {"area": (0.2, 1.0), "flip": 0.5, "interpolation": "bicubic", **_NORMAL},
    "simclr": _SIMCLR,
    # The pseudo-code of the SimCLR paper (appendix A) uses tf.image.random_brightness: additive.
    "simclr_v1": {**_SIMCLR, "semantics": "byol"},
    # README: --color_jitter_strength=0.5 --use_blur=False.
    "simclr_cifar": {**_SIMCLR, **_jitter(0.8, 0.4, 0.4, 0.4, 0.1), "blur": 0.0},
    # moco/main_moco.py without --aug-plus (InstDisc's): gray, then a jitter that always acts.
    "moco_v1": {
        "area": (0.2, 1.0),
        "flip": 0.5,
        "gray": 0.2,
        "gray_first": True,
        **_jitter(1.0, 0.4, 0.4, 0.4, 0.4),
        **_NORMAL,
    },
    "moco_v2": _MOCO_V2,
    # simsiam/main_simsiam.py: "MoCo v2's aug".
    "simsiam": _MOCO_V2,
    "moco_v3_1": {**_MOCO_V3, **_BLURRED},
    "moco_v3_2": {**_MOCO_V3, **_SOLARIZED},
    "byol_1": {**_BYOL, **_BLURRED},
    "byol_2": {**_BYOL, **_SOLARIZED},
    "barlow_1": {**_BARLOW, **_BLURRED},
    "barlow_2": {**_BARLOW, **_SOLARIZED},
    # vicreg/augmentations.py is Barlow Twins' file; the paper (appendix C.1) describes one
    # distribution for both views, with the averages of the two.
    "vicreg_1": {**_BARLOW, **_BLURRED},
    "vicreg_2": {**_BARLOW, **_SOLARIZED},
    "vicreg": {**_BARLOW, "blur": 0.5, "solarize": 0.1},
    "swav_global": {**_SWAV, "area": (0.14, 1.0)},
    "swav_local": {**_SWAV, "area": (0.05, 0.14)},
    "dino_global_1": {**_DINO, **_BLURRED},
    "dino_global_2": {**_DINO, **_SOLARIZED},
    "dino_local": {**_DINO, "area": (0.05, 0.4), "blur": 0.5},
    "cifar_symmetric": {**_CIFAR, **_jitter(0.8, 0.8, 0.8, 0.8, 0.2), "blur": 0.5},
    "cifar_weak": {**_CIFAR, **_jitter(0.8, 0.4, 0.4, 0.4, 0.1), "blur": 0.5},
    "cifar_asymmetric_1": {**_CIFAR, **_jitter(0.8, 0.4, 0.4, 0.2, 0.1)},
    "cifar_asymmetric_2": {**_CIFAR, **_jitter(0.8, 0.4, 0.4, 0.2, 0.1), "solarize": 0.2},
    "cifar_vicreg": {
        **_CIFAR,
        "area": (0.2, 1.0),
        **_jitter(0.8, 0.4, 0.4, 0.2, 0.1),
        "solarize": 0.1,
    },
    # Ours. Brightness alone, always, is the intensity × U(0.6, 1.4). Digits are not mirrored.
    "digits": {
        "area": (0.4, 1.0),
        "shear": 0.35,
        **_jitter(1.0, 0.4, 0.0, 0.0, 0.0),
        "blur": 0.5,
        "sigma": (0.1, 1.5),
        "blur_radius": 5,
        "blur_padding": "reflect",
    },
}


def _check(where: str, p: Policy) -> None:
    """Raises UserError for the first value that makes no sense."""

    def need(ok, field, rule):
        if not ok:
            value = getattr(p, field)
            raise UserError(f"{where}.{field} is {value!r}; it must be {rule}")

    def interval(field, low, high, rule):
        v = getattr(p, field)
        ok = isinstance(v, tuple) and len(v) == 2 and all(map(_is_number, v))
        need(ok and low < v[0] <= v[1] <= high, field, rule)

    need(_is_number(p.size) and p.size == int(p.size) and p.size > 0, "size", "a whole number > 0")
    if p.area is not None:
        interval("area", 0, 1, "None or (low, high) with 0 < low <= high <= 1")
    interval("aspect", 0, math.inf, "(low, high) with 0 < low <= high")
    interval("sigma", 0, math.inf, "(low, high) in pixels with 0 < low <= high")
    for field in ("flip", "jitter", "gray", "blur", "solarize"):
        v = getattr(p, field)
        need(_is_number(v) and 0 <= v <= 1, field, "a probability in [0, 1]")
    for field in ("brightness", "contrast", "saturation", "shear"):
        v = getattr(p, field)
        need(_is_number(v) and 0 <= v < math.inf, field, "a number >= 0")
    need(_is_number(p.hue) and 0 <= p.hue <= 0.5, "hue", "in [0, 0.5] (turns)")
    need(_is_number(p.threshold), "threshold", "a number")
    radius = p.blur_radius
    ok = isinstance(radius, int) and radius >= -1 and (p.blur == 0 or radius < p.size)
    need(ok, "blur_radius", f"-1 (size // 20) or a whole number from 0 to size - 1 = {p.size - 1}")
    for field, known in (
        ("box", tuple(geometry.BOXES)),
        ("interpolation", ("bilinear", "bicubic")),
        ("semantics", color.SEMANTICS),
        ("blur_padding", blur.PADDINGS),
    ):
        need(getattr(p, field) in known, field, " or ".join(map(repr, known)))
    for field in ("antialias", "gray_first"):
        need(isinstance(getattr(p, field), bool), field, "True or False")
    for field in ("mean", "std"):
        v = getattr(p, field)
        ok = isinstance(v, tuple) and len(v) in (1, 3) and all(map(_is_number, v))
        need(ok and (field == "mean" or min(v) > 0), field, "one or three numbers (std > 0)")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
