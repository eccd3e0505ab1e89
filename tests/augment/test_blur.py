"""Gaussian blur against the authors' arrays (zero padding), OpenCV (reflect) and Pillow (edge)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.augment import blur

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
BYOL = dict(np.load(GOLDEN / "aug_byol_jax.npz"))
SIMCLR = dict(np.load(GOLDEN / "aug_simclr_tf.npz"))


_gaussian_blur = jax.jit(blur.gaussian_blur, static_argnums=2)


def _planar(x):
    return jnp.asarray(np.asarray(x, np.float32).swapaxes(2, 3))


def _blur(images, sigma, radius, padding, apply=None):
    """NHWC in, NHWC out; sigma: one number."""
    taps = blur.taps(jnp.full(len(images), sigma), radius, apply)
    return np.asarray(_gaussian_blur(_planar(images), taps, padding)).swapaxes(2, 3)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kernel", ["2.4", "22.4"])
def test_zero_padding_equals_byol(sigma, kernel):
    images = BYOL["imgs"][:, :, :24] / 255.0
    got = _blur(images, sigma, int(float(kernel) / 2), "zero")
    want = BYOL[f"gaussianblur_ks{kernel}_s{sigma}"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("kernel", ["2", "22"])
def test_zero_padding_equals_simclr(sigma, kernel):
    got = _blur(SIMCLR["imgs"] / 255.0, sigma, int(float(kernel) / 2), "zero")
    want = SIMCLR[f"gaussianblur_ks{kernel}_s{sigma}"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padding,border", [("reflect", "REFLECT_101"), ("edge", "REPLICATE")])
def test_paddings_equal_opencv(padding, border):
    import cv2

    images = (BYOL["imgs"] / 255.0).astype(np.float32)
    got = _blur(images, 1.7, 11, padding)
    for i in range(4):
        flag = getattr(cv2, f"BORDER_{border}")
        want = cv2.GaussianBlur(images[i], (23, 23), 1.7, borderType=flag)
        np.testing.assert_allclose(got[i], want, atol=1e-5)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_pillow_is_an_approximation_of_ours(sigma):
    """Three box filters stay within 5 levels of the Gaussian, on noise; more next to the border."""
    from PIL import Image, ImageFilter

    image = BYOL["imgs"][0]
    want = np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)), np.float32)
    got = 255 * _blur(image[None] / 255.0, sigma, 8, "edge")[0]
    assert np.abs(got - want).mean() < 1.5
    assert np.abs(got - want)[6:-6, 6:-6].max() < 5.0


def test_every_image_has_its_own_sigma_and_may_be_left_alone():
    images = BYOL["imgs"] / 255.0
    sigma = np.array([0.4, 1.0, 2.0, 1.5], np.float32)
    apply = jnp.array([True, True, False, True])
    taps = blur.taps(jnp.asarray(sigma), 4, apply)
    np.testing.assert_allclose(taps.sum(1), 1.0, rtol=1e-6)
    got = np.asarray(_gaussian_blur(_planar(images), taps, "reflect")).swapaxes(2, 3)
    for i in (0, 1, 3):
        np.testing.assert_allclose(got[i], _blur(images[i : i + 1], sigma[i], 4, "reflect")[0])
    np.testing.assert_array_equal(got[2], images[2].astype(np.float32))  # exactly


def test_zero_padding_darkens_and_the_others_do_not():
    white = np.ones((1, 12, 12, 1))
    assert _blur(white, 1.5, 3, "zero")[0, 0, 0, 0] < 0.5
    for padding in ("reflect", "edge"):
        np.testing.assert_allclose(_blur(white, 1.5, 3, padding), 1.0, rtol=1e-6)


def test_a_radius_must_fit():
    with pytest.raises(ValueError, match="radius 5 does not fit an image of 4 pixels"):
        _blur(np.ones((1, 4, 8, 1)), 1.0, 5, "edge")
