"""Colour operations against the authors' arrays and against plain numpy, one after the other."""

import colorsys
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.augment import color

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
BYOL = dict(np.load(GOLDEN / "aug_byol_jax.npz"))
SIMCLR = dict(np.load(GOLDEN / "aug_simclr_tf.npz"))
W = np.array([0.2989, 0.5870, 0.1140])
NAMES = ("brightness", "contrast", "saturation", "hue")


_jitter = jax.jit(color.jitter, static_argnums=3)


def _planar(x):
    return jnp.asarray(np.asarray(x, np.float32).swapaxes(2, 3))


def _nhwc(x):
    return np.asarray(x).swapaxes(2, 3)


def _one(images, semantics, name, value):
    """One operation of the jitter on uint8 NHWC images, as float NHWC."""
    x = _planar(images / 255.0)
    factors = color.Jitter(**{name: jnp.full(len(images), value, jnp.float32)})
    order = jnp.broadcast_to(jnp.arange(4.0), (len(images), 4))
    return _nhwc(_jitter(x, factors, order, semantics))


@pytest.mark.parametrize(
    "semantics,name,value,array",
    [
        ("byol", "brightness", -0.4, "brightness_delta_-0.4_clipped"),
        ("byol", "brightness", 0.4, "brightness_delta_0.4_clipped"),
        ("byol", "contrast", 0.6, "contrast_0.6_clipped"),
        ("byol", "contrast", 1.4, "contrast_1.4_clipped"),
        ("byol", "saturation", 0.2, "saturation_0.2"),
        ("byol", "saturation", 0.8, "saturation_0.8"),
        ("byol", "saturation", 1.2, "saturation_1.2"),
        ("byol", "saturation", 1.8, "saturation_1.8"),
        ("byol", "hue", -0.1, "hue_-0.1"),
        ("byol", "hue", 0.1, "hue_0.1"),
        ("byol", "hue", 0.3, "hue_0.3"),
    ],
)
def test_jitter_equals_byol(semantics, name, value, array):
    got = _one(BYOL["imgs"], semantics, name, value)
    np.testing.assert_allclose(got, np.clip(BYOL[array], 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "semantics,name,value,array",
    [
        ("tf", "brightness", 0.6, "brightness_mult_0.6"),
        ("tf", "brightness", 1.4, "brightness_mult_1.4"),
        ("byol", "brightness", -0.4, "brightness_add_-0.4"),
        ("byol", "brightness", 0.4, "brightness_add_0.4"),
        ("tf", "contrast", 0.6, "contrast_0.6"),
        ("tf", "contrast", 1.4, "contrast_1.4"),
        ("tf", "saturation", 0.2, "saturation_0.2"),
        ("tf", "saturation", 1.8, "saturation_1.8"),
        ("tf", "hue", -0.1, "hue_-0.1"),
        ("tf", "hue", 0.1, "hue_0.1"),
        ("tf", "hue", 0.3, "hue_0.3"),
    ],
)
def test_jitter_equals_simclr(semantics, name, value, array):
    got = _one(SIMCLR["imgs"], semantics, name, value)
    np.testing.assert_allclose(got, np.clip(SIMCLR[array], 0, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("golden", [BYOL, SIMCLR], ids=["byol", "simclr"])
def test_grayscale_equals_the_originals(golden):
    x = _planar(golden["imgs"] / 255.0)
    flags = jnp.array([True, False, True, True])
    got = _nhwc(color.grayscale(x, flags))
    want = np.where(flags[:, None, None, None], golden["grayscale"], golden["imgs"] / 255.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_solarize_equals_byol_where_asked():
    x = _planar(BYOL["imgs"] / 255.0)
    flags = jnp.array([True, False, True, True])
    got = _nhwc(color.solarize(x, flags, 0.5))
    want = np.where(flags[:, None, None, None], BYOL["solarize_0.5"], BYOL["imgs"] / 255.0)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_solarize_of_8_bits_equals_pillow():
    from PIL import Image, ImageOps

    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    got = 255 * _nhwc(color.solarize(_planar(levels / 255.0), jnp.array([True]), 0.5))
    want = np.asarray(ImageOps.solarize(Image.fromarray(levels[0, ..., 0])))
    np.testing.assert_allclose(got[0, ..., 0], want, atol=1e-3)


def _hsv(x, change):
    """Applies change(h, s, v) to every pixel, by Python's colorsys."""
    flat = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in x.reshape(-1, 3)]
    return np.array(flat).reshape(x.shape)


def _step(x, name, value, semantics):
    """One operation on one float64 image [h, w, 3], written from the definition; then the clip."""
    if name == "brightness":
        x = x + value if semantics == "byol" else x * value
    elif name == "contrast" and semantics == "torchvision":
        x = value * x + (1 - value) * (x @ W).mean()
    elif name == "contrast":
        mean = x.mean((0, 1))
        x = value * (x - mean) + mean
    elif name == "saturation" and semantics == "torchvision":
        x = value * x + (1 - value) * (x @ W)[..., None]
    elif name == "saturation":
        x = _hsv(x, lambda h, s, v: (h, min(max(s * value, 0), 1), v))
    else:
        x = _hsv(x, lambda h, s, v: ((h + value) % 1, s, v))
    return np.clip(x, 0, 1)


@pytest.mark.parametrize("semantics", color.SEMANTICS)
def test_all_24_orders_equal_the_sequential_operations(semantics):
    r = np.random.default_rng(0)
    places = np.array(list(itertools.permutations(range(4))))  # [24, 4]: place of each operation
    x = r.uniform(size=(24, 5, 6, 3))
    x[:, 0, 0], x[:, 0, 1], x[:, 1, 0] = 0.0, 1.0, 0.5  # black, white and gray have no hue
    factors = r.uniform(0.2, 1.8, (24, 4))
    factors[:, 3] = r.uniform(-0.5, 0.5, 24)
    if semantics == "byol":
        factors[:, 0] = r.uniform(-0.8, 0.8, 24)
    got = _jitter(
        _planar(x), color.Jitter(*factors.T.astype(np.float32)), jnp.asarray(places), semantics
    )
    for i in range(24):
        want = x[i]
        for k in np.argsort(places[i]):
            want = _step(want, NAMES[k], factors[i, k], semantics)
        np.testing.assert_allclose(_nhwc(got)[i], want, atol=2e-5, err_msg=str(places[i]))


def test_the_order_matters():
    x = _planar(BYOL["imgs"] / 255.0)[:1]
    factors = color.Jitter(*(jnp.array([v]) for v in (1.6, 0.4, 1.7, 0.2)))
    order = jnp.array([[0, 1, 2, 3]])
    a = _jitter(x, factors, order, "torchvision")
    b = _jitter(x, factors, 3 - order, "torchvision")
    assert np.abs(a - b).max() > 0.05


@pytest.mark.parametrize("semantics", color.SEMANTICS)
def test_neutral_factors_change_nothing(semantics):
    x = _planar(BYOL["imgs"] / 255.0)
    one, zero = jnp.ones(4), jnp.zeros(4)
    factors = color.Jitter(zero if semantics == "byol" else one, one, one, zero)
    order = jnp.asarray(np.random.default_rng(0).permuted(np.tile(np.arange(4), (4, 1)), axis=1))
    np.testing.assert_allclose(_jitter(x, factors, order, semantics), x, atol=1e-6)


@pytest.mark.parametrize("semantics", color.SEMANTICS)
def test_one_channel_knows_brightness_and_contrast_only(semantics):
    r = np.random.default_rng(1)
    x = r.uniform(size=(3, 4, 1, 4)).astype(np.float32)
    order = jnp.broadcast_to(jnp.arange(4), (3, 4))
    color_only = color.Jitter(None, None, jnp.array([0.1, 1.5, 1.9]), jnp.array([0.1, 0.2, 0.3]))
    np.testing.assert_allclose(_jitter(x, color_only, order, semantics), x, atol=1e-6)
    np.testing.assert_array_equal(color.grayscale(x, jnp.array([True] * 3)), x)

    f = np.array([0.5, 0.7, 0.9], np.float32)[:, None, None, None]
    contrast = _jitter(x, color.Jitter(contrast=f.ravel()), order, semantics)
    want = f * x + (1 - f) * x.mean((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(contrast, want, atol=1e-6)


def test_unknown_semantics():
    with pytest.raises(ValueError, match="semantics is 'pil'"):
        _jitter(jnp.zeros((1, 2, 3, 2)), color.Jitter(), jnp.zeros((1, 4)), "pil")
