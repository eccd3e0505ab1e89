"""The official numbers, and the words a user reads after a typing error."""

import pytest

from ssl_jax.augment import policies
from ssl_jax.errors import UserError


def test_every_name_makes_a_policy():
    for name in policies.POLICIES:
        policy = policies.make(name, 32)
        assert policy.size == 32 and 0 <= policies.blur_radius(policy) < 32
        hash(policy)  # usable as a static argument


# area, (probability, brightness, contrast, saturation, hue), gray, blur, solarize
OFFICIAL = {
    "simclr": ((0.08, 1), (0.8, 0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0),
    "simclr_cifar": ((0.08, 1), (0.8, 0.4, 0.4, 0.4, 0.1), 0.2, 0, 0),
    "moco_v1": ((0.2, 1), (1.0, 0.4, 0.4, 0.4, 0.4), 0.2, 0, 0),
    "moco_v2": ((0.2, 1), (0.8, 0.4, 0.4, 0.4, 0.1), 0.2, 0.5, 0),
    "moco_v3_1": ((0.2, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
    "moco_v3_2": ((0.2, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    "byol_1": ((0.08, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
    "byol_2": ((0.08, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    "barlow_1": ((0.08, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
    "barlow_2": ((0.08, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    "vicreg": ((0.08, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 0.5, 0.1),
    "swav_global": ((0.14, 1), (0.8, 0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0),
    "swav_local": ((0.05, 0.14), (0.8, 0.8, 0.8, 0.8, 0.2), 0.2, 0.5, 0),
    "dino_global_1": ((0.4, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 1, 0),
    "dino_global_2": ((0.4, 1), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 0.1, 0.2),
    "dino_local": ((0.05, 0.4), (0.8, 0.4, 0.4, 0.2, 0.1), 0.2, 0.5, 0),
    "mae": ((0.2, 1), (0, 0, 0, 0, 0), 0, 0, 0),
    "supervised": ((0.08, 1), (0, 0, 0, 0, 0), 0, 0, 0),
}


@pytest.mark.parametrize("name", sorted(OFFICIAL))
def test_official_numbers(name):
    p = policies.make(name, 224)
    jitter = (p.jitter, p.brightness, p.contrast, p.saturation, p.hue)
    assert (p.area, jitter, p.gray, p.blur, p.solarize) == OFFICIAL[name]
    assert p.flip == 0.5 and p.shear == 0
    bicubic = ("simclr", "byol", "barlow", "vicreg", "dino", "mae")
    assert p.interpolation == ("bicubic" if name.startswith(bicubic) else "bilinear")
    google = name.startswith(("simclr", "byol"))
    assert p.antialias != google
    assert p.box == (name[:4].replace("simc", "tf") if google else "torchvision")
    assert p.semantics == p.box
    normal = (0.0,) if name.startswith("simclr") else policies.IMAGENET_MEAN
    assert p.mean == normal


def test_blur_of_google_grows_with_the_view():
    # int((size // 10) / 2) taps on each side: 23 taps at 224, 3 at 32, 1 (no blur) at 16.
    radii = [policies.blur_radius(policies.make("simclr", s)) for s in (224, 96, 32, 16)]
    assert radii == [11, 4, 1, 0]
    assert policies.blur_radius(policies.make("simclr", 32, blur_radius=4)) == 4
    swav = policies.make("swav_local", 96)  # Pillow's, as MoCo v2's
    assert (swav.blur_padding, policies.blur_radius(swav)) == ("edge", 8)


def test_overrides_replace_fields_and_lists_become_tuples():
    p = policies.make("moco_v2", 32, area=[0.5, 1], blur=0, mean=[0.5], std=[0.25])
    assert (p.area, p.blur, p.mean, p.std) == ((0.5, 1), 0, (0.5,), (0.25,))
    assert policies.make("none", **policies.make("digits", 28)._asdict()) == policies.make(
        "digits", 28
    )


@pytest.mark.parametrize(
    "name,overrides,message",
    [
        ("simclr_v3", {}, "unknown augmentation 'simclr_v3'. Did you mean simclr_v1"),
        ("dino_global", {}, "Did you mean dino_global_"),
        ("simclr", {"grey": 0.1}, "'simclr' has no field 'grey'. Did you mean gray"),
        ("simclr", {"crop": 0.1}, "has no field 'crop'"),
        ("simclr", {"flip": 1.5}, "flip is 1.5; it must be a probability in [0, 1]"),
        ("simclr", {"gray": "often"}, "gray is 'often'; it must be a probability"),
        ("simclr", {"area": (0.5, 0.2)}, "area is (0.5, 0.2); it must be None or (low, high)"),
        ("simclr", {"area": (0.0, 1.0)}, "area is (0.0, 1.0)"),
        ("simclr", {"area": 0.3}, "area is 0.3"),
        ("simclr", {"sigma": (0.0, 2.0)}, "sigma is (0.0, 2.0)"),
        ("simclr", {"hue": 0.8}, "hue is 0.8; it must be in [0, 0.5]"),
        ("simclr", {"brightness": -0.1}, "brightness is -0.1"),
        ("simclr", {"semantics": "pil"}, "semantics is 'pil'; it must be 'torchvision' or 'tf'"),
        ("simclr", {"interpolation": "lanczos"}, "interpolation is 'lanczos'"),
        ("simclr", {"box": "square"}, "box is 'square'"),
        ("simclr", {"blur_padding": "wrap"}, "blur_padding is 'wrap'"),
        ("simclr", {"blur_radius": 32}, "blur_radius is 32; it must be -1 (size // 20) or a whole"),
        ("simclr", {"antialias": 1}, "antialias is 1; it must be True or False"),
        ("simclr", {"std": (1.0, 0.0, 1.0)}, "std is (1.0, 0.0, 1.0)"),
        ("simclr", {"mean": (0.5, 0.5)}, "mean is (0.5, 0.5); it must be one or three numbers"),
    ],
)
def test_errors_name_the_field_and_what_to_do(name, overrides, message):
    with pytest.raises(UserError) as error:
        policies.make(name, 32, **overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [0, -3, 2.5, "32", None])
def test_a_size_is_a_whole_number(size):
    with pytest.raises(UserError, match="size is"):
        policies.make("simclr", size)
