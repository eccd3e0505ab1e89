"""Boxes, resampling and shear: Pillow, scalar ports of the originals, and statistics."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssl_jax.augment import geometry

F = np.float32
_shear = jax.jit(geometry.shear, static_argnums=3)
_crop_resize = jax.jit(geometry.crop_resize, static_argnums=(2, 3))
_resize_centre = jax.jit(geometry.resize_centre, static_argnums=(1, 2, 3))
_boxes = {k: jax.jit(f, static_argnums=(1, 2, 3, 4)) for k, f in geometry.BOXES.items()}


def _noise(b, seed=0):
    return np.random.default_rng(seed).uniform(size=(b, geometry.TRIES, 4)).astype(F)


def _images(b, height, width, seed=0):
    """Noise over a ramp: rich in frequencies and in extremes."""
    r = np.random.default_rng(seed)
    ramp = np.linspace(0, 200, width)[None, None, :, None]
    return (ramp + r.uniform(0, 55, (b, height, width, 3))).astype(np.uint8)


def _between(lo, hi, u):
    return F(lo) + F(hi - lo) * u


def _torchvision_oracle(u, height, width, area, aspect):
    """RandomResizedCrop.get_params, one image, one try after the other."""
    for a, r, y, x in u:
        target = height * width * _between(*area, a)
        ratio = np.exp(_between(math.log(aspect[0]), math.log(aspect[1]), r))
        w, h = int(np.round(np.sqrt(target * ratio))), int(np.round(np.sqrt(target / ratio)))
        if 0 < w <= width and 0 < h <= height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    if width / height < aspect[0]:
        w, h = width, round(width / aspect[0])
    elif width / height > aspect[1]:
        w, h = round(height * aspect[1]), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def _tf_oracle(u, height, width, area, aspect):
    """GenerateRandomCrop of sample_distorted_bounding_box_op.cc with the image as the object."""
    smallest, largest = area[0] * height * width, area[1] * height * width
    for a, r, y, x in u:
        ratio = _between(*aspect, r)
        h = int(np.rint(np.sqrt(F(smallest) / ratio)))
        top = int(np.rint(np.sqrt(F(largest) / ratio)))
        if np.rint(top * ratio) > width:
            top = int(F(width + 0.5) / ratio)
            if np.rint(top * ratio) > width:
                top -= 1
        top = min(top, height)
        if h >= top:
            h = top
        else:
            h += int(a * (top - h + 1))
        w = int(np.rint(h * ratio))
        if w * h < smallest:
            h += 1
            w = int(np.rint(h * ratio))
        if w * h > largest:
            h -= 1
            w = int(np.rint(h * ratio))
        if w * h < smallest or w * h > largest or w > width or h > height or w <= 0 or h <= 0:
            continue
        if w * h / (height * width) < 0.1:  # min_object_covered
            continue
        return (
            int(y * (height - h)) if h < height else 0,
            int(x * (width - w)) if w < width else 0,
            h,
            w,
        )
    return 0, 0, height, width


def _byol_oracle(u, height, width, area, aspect):
    """_decode_and_random_crop of byol/utils/dataset.py."""
    a, r, y, x = u[0]
    target = height * width * _between(*area, a)
    ratio = np.exp(_between(math.log(aspect[0]), math.log(aspect[1]), r))
    w = min(int(np.round(np.sqrt(target * ratio))), width)
    h = min(int(np.round(np.sqrt(target / ratio))), height)
    return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w


ORACLES = {"torchvision": _torchvision_oracle, "tf": _tf_oracle, "byol": _byol_oracle}


@pytest.mark.parametrize("box", sorted(ORACLES))
@pytest.mark.parametrize("height,width", [(37, 37), (40, 56), (12, 61)])
def test_boxes_equal_the_sequential_original(box, height, width):
    u, area, aspect = _noise(300), (0.08, 1.0), (3 / 4, 4 / 3)
    got = np.asarray(_boxes[box](jnp.asarray(u), height, width, area, aspect))
    want = np.array([ORACLES[box](row, height, width, area, aspect) for row in u])
    # A square root that ends on one half may round to either side in float32.
    assert (np.abs(got - want).max(1) == 0).mean() > 0.99
    top, left, h, w = got.T
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_torchvision_falls_back_to_a_centred_box():
    # Area 1 in a 10 × 40 image asks for 20 × 20: no try fits. 40 / 10 > 4/3: 13 × 10 in the centre.
    u = jnp.asarray(_noise(5))
    boxes = _boxes["torchvision"](u, 10, 40, (1.0, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(boxes, np.tile([0, 13, 10, 13], (5, 1)))
    boxes = _boxes["torchvision"](u, 40, 10, (1.0, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(boxes, np.tile([13, 0, 13, 10], (5, 1)))


def test_a_later_try_is_taken_when_the_first_does_not_fit():
    u = np.full((1, geometry.TRIES, 4), 0.5, F)
    u[0, 0, :2] = 0.999, 0.999  # area 1, aspect 4/3: wider than the image
    u[0, 1] = 0.0, 0.5, 0.0, 0.999  # a quarter of the area, square, top right
    (box,) = _boxes["torchvision"](jnp.asarray(u), 100, 100, (0.25, 1.0), (3 / 4, 4 / 3))
    np.testing.assert_array_equal(box, [0, 50, 50, 50])


def _kolmogorov(x):
    """Largest distance between the empirical distribution of x and the uniform one on [0, 1]."""
    x = np.sort(x)
    n = len(x)
    return max((np.arange(1, n + 1) / n - x).max(), (x - np.arange(n) / n).max())


def test_torchvision_area_aspect_and_place_are_uniform():
    n, area, aspect = 4000, (0.1, 0.6), (3 / 4, 4 / 3)  # always fits: nothing is rejected
    u = jnp.asarray(_noise(n, 1))
    top, left, h, w = np.asarray(_boxes["torchvision"](u, 1000, 1000, area, aspect)).T
    bound = 1.95 / math.sqrt(n)  # 0.1% of uniform samples go beyond
    assert _kolmogorov((h * w / 1e6 - 0.1) / 0.5) < bound
    assert _kolmogorov(np.log(w / h) / math.log(4 / 3) / 2 + 0.5) < bound
    assert _kolmogorov(top / (1000 - h)) < bound + 0.01  # whole pixels
    assert _kolmogorov(left / (1000 - w)) < bound + 0.01


def test_tf_prefers_smaller_boxes_and_none_below_a_tenth():
    u = jnp.asarray(_noise(4000, 2))
    _, _, h, w = np.asarray(_boxes["tf"](u, 500, 500, (0.08, 1.0), (3 / 4, 4 / 3))).T
    share = h * w / 500**2
    assert 0.1 <= share.min() < 0.11
    _, _, h, w = np.asarray(_boxes["torchvision"](u, 500, 500, (0.08, 1.0), (0.75, 4 / 3))).T
    assert share.mean() < (h * w / 500**2).mean() - 0.04


def test_centre_boxes():
    np.testing.assert_array_equal(geometry.centre_boxes(2, 10, 16), [[0, 3, 10, 10]] * 2)


BOXES = np.array([[0, 0, 40, 48], [3, 5, 9, 7], [10, 2, 29, 40], [31, 40, 8, 8]], F)
MODES = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}


@pytest.mark.parametrize("interpolation", sorted(MODES))
@pytest.mark.parametrize("size", [16, 33])
def test_crop_resize_equals_pillow(interpolation, size):
    images = _images(4, 40, 48)
    got = _crop_resize(images, jnp.asarray(BOXES), size, interpolation)
    assert got.shape == (4, size, 3, size) and got.dtype == jnp.float32
    got = 255 * np.asarray(got).swapaxes(2, 3)
    for i, (top, left, h, w) in enumerate(BOXES.astype(int)):
        patch = images[i, top : top + h, left : left + w]
        for c in range(3):  # mode F: Pillow in float, no rounding
            exact = Image.fromarray(patch[..., c].astype(F)).resize(
                (size, size), MODES[interpolation]
            )
            np.testing.assert_allclose(got[i, ..., c], np.clip(exact, 0, 255), atol=2e-3)


@pytest.mark.parametrize("interpolation", sorted(MODES))
def test_crop_resize_is_within_a_level_of_8_bit_pillow(interpolation):
    """Pillow rounds (and clips: hence the calm images) after each of its two passes."""
    images = _images(4, 40, 48) // 2 + 60
    got = _crop_resize(images, jnp.asarray(BOXES), 16, interpolation)
    for i, (top, left, h, w) in enumerate(BOXES.astype(int)):
        patch = Image.fromarray(images[i, top : top + h, left : left + w])
        want = np.asarray(patch.resize((16, 16), MODES[interpolation]), F)
        assert np.abs(255 * np.asarray(got[i]).swapaxes(1, 2) - want).max() < 1.2


def test_crop_resize_flips_where_asked():
    images = _images(4, 40, 48)
    flip = jnp.array([True, False, True, False])
    plain = _crop_resize(images, jnp.asarray(BOXES), 16)
    flipped = _crop_resize(images, jnp.asarray(BOXES), 16, flip=flip)
    want = jnp.where(flip[:, None, None, None], plain[..., ::-1], plain)
    np.testing.assert_allclose(flipped, want, atol=1e-6)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_without_antialias_only_the_nearest_taps_count(interpolation):
    """tf.image.resize: 2 or 4 taps around (i + ½)·scale − ½, border taps dropped, renormalised."""
    n, out, start, length = 40, 7, 3, 30

    def kernel(d):
        d = abs(d)
        if interpolation == "bilinear":
            return max(1 - d, 0)
        if d < 1:
            return 1.5 * d**3 - 2.5 * d**2 + 1
        return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0

    want = np.zeros((out, n))
    for i in range(out):
        c = start + (i + 0.5) * length / out - 0.5
        for j in range(math.floor(c) - 1, math.floor(c) + 3):
            if start <= j < start + length:
                want[i, j] = kernel(j - c)
    want /= want.sum(1, keepdims=True)
    got = geometry.resize_weights(
        jnp.array([float(start)]), jnp.array([float(length)]), n, out, interpolation, False
    )
    np.testing.assert_allclose(got[0], want, atol=1e-5)


def test_resize_centre_equals_pillow_resize_and_centre_crop():
    images = _images(2, 64, 90)
    got = 255 * np.asarray(_resize_centre(images, 28, 0.875, "bilinear")).swapaxes(2, 3)
    top, left = 2, 8  # 32 × 45 after Resize(32); round((32 − 28) / 2), round((45 − 28) / 2) = 8
    for i in range(2):
        for c in range(3):
            whole = Image.fromarray(images[i, ..., c].astype(F)).resize((45, 32), Image.BILINEAR)
            want = np.asarray(whole)[top : top + 28, left : left + 28]
            np.testing.assert_allclose(got[i, ..., c], want, atol=2e-3)


def test_resize_centre_of_the_same_size_is_the_identity():
    images = _images(2, 16, 16)
    got = _resize_centre(images, 16, 1.0, "bicubic")
    np.testing.assert_allclose(np.asarray(got).swapaxes(2, 3), images / 255.0, atol=1e-6)


def _shear_oracle(x, a, b):
    """Row by row, then column by column, with np.interp on a zero-padded line."""

    def line(v, s):
        n = len(v)
        places = np.arange(-1, n + 1)
        return np.interp(np.arange(n) + s, places, np.pad(v, 1), left=0, right=0)

    h, w = x.shape
    y = np.stack([line(x[r], a * (r - (h - 1) / 2)) for r in range(h)])
    return np.stack([line(y[:, c], b * (c - (w - 1) / 2)) for c in range(w)], 1)


@pytest.mark.parametrize("height,width", [(28, 28), (9, 14)])
def test_shear_equals_an_oracle(height, width):
    r = np.random.default_rng(3)
    x = r.uniform(size=(6, height, 2, width)).astype(F)
    a = np.array([0.35, -0.35, 0.0, 0.1, -0.2, 0.35], F)
    b = np.array([0.35, 0.35, 0.0, -0.3, 0.0, -0.35], F)
    got = _shear(x, a, b, 0.35)
    for i in range(6):
        for c in range(2):
            want = _shear_oracle(x[i, :, c].astype(float), float(a[i]), float(b[i]))
            np.testing.assert_allclose(got[i, :, c], want, atol=2e-5)
    np.testing.assert_array_equal(got[2], x[2])  # no shear, no change


def test_shear_of_one_pixel_a_row():
    x = jnp.zeros((1, 5, 1, 5)).at[0, :, 0, 2].set(1.0)  # a vertical line
    got = _shear(x, jnp.array([1.0]), jnp.array([0.0]), 1.0)[0, :, 0]
    np.testing.assert_array_equal(got, np.eye(5)[::-1])  # x + (r − 2) = 2: leans the other way
