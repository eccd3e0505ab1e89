"""Gaussian blur of a batch, every image with a sigma of its own, as G @ x @ Gᵀ."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.augment.geometry import banded_dot

PADDINGS = ("zero", "reflect", "edge")


def taps(sigma: jax.Array, radius: int, apply: jax.Array | None = None) -> jax.Array:
    """Weights of the kernel, exp(−t² / 2σ²) for t = −radius … radius, divided by their sum.

    Args:
      sigma: float32 [b], pixels.
      radius: taps on each side.
      apply: bool [b]; where false, the single tap 1 in the middle, which leaves the image as it
        is. So a blur with probability p costs as much as one with probability 1, not two.

    Returns:
      float32 [b, 2·radius + 1].
    """
    t = jnp.arange(-radius, radius + 1, dtype=float)
    w = jnp.exp(-(t**2) / (2 * sigma[:, None] ** 2))
    w = w / w.sum(-1, keepdims=True)
    return w if apply is None else jnp.where(apply[:, None], w, (t == 0).astype(w.dtype))


def gaussian_blur(x: jax.Array, weights: jax.Array, padding: str) -> jax.Array:
    """Separable convolution of every image with its own taps.

    Padding: 'zero' darkens the border, without renormalisation (TF and BYOL, SAME padding);
    'reflect' mirrors about the border pixel (torchvision, kornia, OpenCV's default); 'edge'
    repeats the border pixel (Pillow).

    Args:
      x: float32 [b, h, C, w] (row-planar, see geometry.py).
      weights: float32 [b, 2·radius + 1], see `taps`; radius < min(h, w).
      padding: 'zero', 'reflect' or 'edge'.

    Returns:
      float32 [b, h, C, w].
    """
    b, h, c, w = x.shape

    def blurred(x):
        rows = _matrix(weights, h, padding)
        columns = rows if w == h else _matrix(weights, w, padding)
        radius = weights.shape[1] // 2
        # [b,h·C,w] · [b,w',w] -> [b,h·C,w'], [b,h',h] · [b,h,C·w'] -> [b,h',C·w']
        x = banded_dot(x.reshape(b, h * c, w), columns, 2, 1, radius)
        x = banded_dot(x.reshape(b, h, c * w), rows, 1, 1, radius)
        return x.reshape(b, h, c, w)

    if b > 1:
        return blurred(x)
    # A single image is left alone where its kernel is the one tap 1.
    return lax.cond(weights[0, weights.shape[1] // 2] < 1, blurred, lambda x: x, x)


def _matrix(weights: jax.Array, n: int, padding: str) -> jax.Array:
    """G [b, n, n]: G[i, j] is the sum of the taps of output i that fall on pixel j."""
    radius = weights.shape[1] // 2
    if radius >= n:
        raise ValueError(f"blur radius {radius} does not fit an image of {n} pixels")
    j = np.arange(-radius, radius + 1)[:, None] + np.arange(n)  # [2·radius+1, n]
    if padding == "reflect":
        j = np.abs(j)
        j = (n - 1) - np.abs((n - 1) - j)
    elif padding == "edge":
        j = np.clip(j, 0, n - 1)
    elif padding != "zero":
        raise ValueError(f"padding is {padding!r}, not one of {PADDINGS}")
    # One-hot rows; an index outside of the image gives a row of zeros, which is zero padding.
    places = jax.nn.one_hot(j, n, dtype=float).reshape(2 * radius + 1, n * n)
    g = jnp.dot(weights, places, precision=lax.Precision.HIGHEST)
    return g.reshape(-1, n, n)
