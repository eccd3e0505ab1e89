"""Random erasing: a rectangle of noise laid over a normalised view.

Zhong et al. 2017, algorithm 1, in timm's version (data/random_erasing.py, mode 'pixel', one
rectangle), with which DeiT and MAE fine-tune.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

TRIES = 10  # rectangles proposed for an image; the first that fits is taken


class Erasing(NamedTuple):
    """How often and how much.

    Attributes:
      probability: that an image has a rectangle erased; 0: never.
      area: (low, high) of its uniform share of the image.
      aspect: (low, high) of its height / width, uniform in the logarithm.
    """

    probability: float = 0.0
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)


def erase(erasing: Erasing, keys: jax.Array, images: jax.Array) -> jax.Array:
    """Replaces a random rectangle of some images by noise ~ N(0, 1), one number a value.

    All noise of an image comes from its own key. To be called inside jit, with `erasing` static.

    Args:
      erasing: see `Erasing`.
      keys: typed keys [b].
      images: float32 [b, H, W, C], normalised: N(0, 1) is then noise as strong as the image.

    Returns:
      float32 [b, H, W, C].
    """
    _, height, width, channels = images.shape

    def draw(key):
        box_key, noise_key = jax.random.split(key)
        u = jax.random.uniform(box_key, (1 + 4 * TRIES,))
        return u, jax.random.normal(noise_key, (height, width, channels))

    u, noise = jax.vmap(draw)(keys)
    active = u[:, 0] < erasing.probability
    boxes = rectangles(erasing, u[:, 1:].reshape(-1, TRIES, 4), height, width)  # [b, 4]
    top, left, h, w = (boxes[:, i, None] for i in range(4))
    y, x = jnp.arange(height), jnp.arange(width)
    rows, columns = (y >= top) & (y < top + h), (x >= left) & (x < left + w)  # [b, H], [b, W]
    inside = (rows & active[:, None])[:, :, None] & columns[:, None, :]  # [b, H, W]
    return jnp.where(inside[..., None], noise, images)


def rectangles(erasing: Erasing, u: jax.Array, height: int, width: int) -> jax.Array:
    """The rectangle of each image: the first of TRIES that is lower and narrower than the image.

    Args:
      erasing: see `Erasing`.
      u: float [b, TRIES, 4] in [0, 1): area, aspect, top, left.
      height, width: of the image, pixels.

    Returns:
      int32 [b, 4]: top, left, height, width; all 0 where none fits.
    """
    low, high = erasing.area
    area = height * width * (low + (high - low) * u[..., 0])
    low, high = map(math.log, erasing.aspect)
    aspect = jnp.exp(low + (high - low) * u[..., 1])
    h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (h < height) & (w < width)  # [b, TRIES]
    # float32 may round u · n up to n.
    top = jnp.minimum(jnp.floor(u[..., 2] * (height - h + 1)), height - h)
    left = jnp.minimum(jnp.floor(u[..., 3] * (width - w + 1)), width - w)
    boxes = jnp.stack([top, left, h, w], -1)  # [b, TRIES, 4]
    first = jnp.argmax(fits, 1)[:, None, None]
    chosen = jnp.take_along_axis(boxes, first, 1)[:, 0]  # [b, 4]
    return jnp.where(fits.any(1)[:, None], chosen, 0).astype(jnp.int32)
