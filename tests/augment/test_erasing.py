"""Random erasing: timm's loop with the same random numbers, and what is left alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.augment import erasing
from ssl_jax.augment.erasing import TRIES, Erasing


def loop(u, e, height, width):
    """timm's _erase, one image, with u [TRIES, 4] in place of `random`."""
    for a, r, y, x in u.astype(np.float64):
        area = (e.area[0] + (e.area[1] - e.area[0]) * a) * height * width
        low, high = math.log(e.aspect[0]), math.log(e.aspect[1])
        aspect = math.exp(low + (high - low) * r)
        h, w = int(round(math.sqrt(area * aspect))), int(round(math.sqrt(area / aspect)))
        if w < width and h < height:
            return int(y * (height - h + 1)), int(x * (width - w + 1)), h, w
    return 0, 0, 0, 0


def test_rectangles_are_timms():
    generator = np.random.default_rng(0)
    # Flat images and large rectangles, so that proposals fail.
    for e, height, width in (
        (Erasing(1.0), 32, 32),
        (Erasing(1.0, (0.2, 0.9), (0.1, 10.0)), 12, 40),
    ):
        u = generator.uniform(size=(300, TRIES, 4)).astype(np.float32)
        got = np.asarray(erasing.rectangles(e, jnp.asarray(u), height, width))
        expected = np.asarray([loop(row, e, height, width) for row in u])
        same = (got == expected).all(1)
        assert same.mean() > 0.99  # float32 may round a half the other way
    first = [loop(row[:1], e, height, width) for row in u]
    assert 20 < sum(f == (0, 0, 0, 0) for f in first), "no proposal failed: nothing was tested"


def test_noise_inside_and_the_image_outside():
    n, side = 1000, 16
    images = jnp.full((n, side, side, 3), 7.0)
    keys = jax.random.split(jax.random.key(0), n)
    got = np.asarray(jax.jit(lambda k: erasing.erase(Erasing(0.25), k, images))(keys))
    changed = (got != 7).all(-1)
    assert ((got != 7).any(-1) == changed).all(), "all channels of a pixel, or none"
    touched = changed.any((1, 2))
    assert abs(touched.mean() - 0.25) < 0.05
    for i in np.flatnonzero(touched):
        rows, columns = np.flatnonzero(changed[i].any(1)), np.flatnonzero(changed[i].any(0))
        h, w = rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1
        assert changed[i].sum() == h * w, "a rectangle"
        assert 0.5 < h * w / (0.02 * side**2) and h * w < 0.4 * side**2
    noise = got[changed]
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02


def test_the_noise_of_an_image_is_its_own():
    images = jnp.zeros((4, 16, 16, 1))
    keys = jax.random.split(jax.random.key(1), 4)
    whole = erasing.erase(Erasing(1.0), keys, images)
    alone = erasing.erase(Erasing(1.0), keys[2:3], images[:1])
    np.testing.assert_array_equal(whole[2:3], alone)
    assert np.abs(whole[0] - whole[1]).max() > 0


def test_where_nothing_fits_nothing_is_erased():
    images = jnp.zeros((3, 8, 8, 1))
    keys = jax.random.split(jax.random.key(0), 3)
    got = erasing.erase(Erasing(1.0, (1.0, 1.0), (1.0, 1.0)), keys, images)
    np.testing.assert_array_equal(got, images)
