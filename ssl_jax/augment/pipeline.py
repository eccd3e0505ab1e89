"""From uint8 images to float32 views: the random ones of training, the fixed one of probing."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.augment import blur, color, geometry
from ssl_jax.augment.policies import Policy, blur_radius

# Columns of the noise [b, 56] of a view. Fixed places: a policy that leaves an operation out draws
# the same crop, flip, … from the same key as the one that has it.
_BOX = slice(0, 4 * geometry.TRIES)
_FLIP, _SHEAR_X, _SHEAR_Y, _JITTER = 40, 41, 42, 43
_ORDER, _FACTORS = slice(44, 48), slice(48, 52)
_GRAY, _BLUR, _SIGMA, _SOLARIZE = 52, 53, 54, 55
_NOISE = 56


def apply(
    policy: Policy, keys: jax.Array, images: jax.Array, one_by_one: bool = False
) -> jax.Array:
    """One random view of every image, in the order of policies.py.

    All noise of an image comes from its own key, so a view does not depend on the batch or the
    device that it is computed in. Pure; to be called inside jit, with the policy static.

    Args:
      policy: see `policies.make`.
      keys: typed keys [b], one for each image (`collectives.example_keys`).
      images: uint8 [b, H, W, C], C is 1 or 3.
      one_by_one: on CPU, finish an image before the next is begun: it stays in the core's cache,
        and what does not happen to it takes no time. The same views up to rounding. (Not for a
        batch that `jit` splits over devices: a loop over the images would gather them.)

    Returns:
      float32 [b, size, size, C], (x − mean) / std with x in [0, 1].

    Raises:
      ValueError: images are not uint8 [b, H, W, 1 or 3], or keys are not [b].
    """
    _check(images)
    b = len(images)
    if keys.shape != (b,):
        raise ValueError(f"keys have shape {keys.shape}, the images want ({b},)")
    u = jax.vmap(lambda key: jax.random.uniform(key, (_NOISE,)))(keys)
    whole = functools.partial(_views, policy)
    if not one_by_one:
        return whole(u, images)

    def loop(u, images):
        return lax.map(lambda one: whole(one[0][None], one[1][None])[0], (u, images))

    # Chosen when the program is lowered, so that one traced step can serve any backend.
    return lax.platform_dependent(u, images, cpu=loop, default=whole)


def _views(policy: Policy, u: jax.Array, images: jax.Array) -> jax.Array:
    """The views that the noise u, float32 [b, 56], makes of images [b, H, W, C]."""
    b, height, width, _ = images.shape
    if policy.area is None:
        boxes = geometry.centre_boxes(b, height, width)
    else:
        tries = u[:, _BOX].reshape(b, geometry.TRIES, 4)
        boxes = geometry.BOXES[policy.box](tries, height, width, policy.area, policy.aspect)
    flip = u[:, _FLIP] < policy.flip if policy.flip else None
    x = geometry.crop_resize(
        images, boxes, policy.size, policy.interpolation, policy.antialias, flip
    )
    if policy.shear:
        along_x = _between(-policy.shear, policy.shear, u[:, _SHEAR_X])
        along_y = _between(-policy.shear, policy.shear, u[:, _SHEAR_Y])
        x = geometry.shear(x, along_x, along_y, policy.shear)
    to_gray = u[:, _GRAY] < policy.gray
    if policy.gray and policy.gray_first:
        x = color.grayscale(x, to_gray)
    if policy.jitter:
        factors = _factors(policy, u[:, _JITTER] < policy.jitter, u[:, _FACTORS])
        x = color.jitter(x, factors, u[:, _ORDER], policy.semantics)
    if policy.gray and not policy.gray_first:
        x = color.grayscale(x, to_gray)
    radius = blur_radius(policy)
    if policy.blur and radius:
        sigma = _between(*policy.sigma, u[:, _SIGMA])
        weights = blur.taps(sigma, radius, u[:, _BLUR] < policy.blur)
        x = blur.gaussian_blur(x, weights, policy.blur_padding)
    if policy.solarize:
        x = color.solarize(x, u[:, _SOLARIZE] < policy.solarize, policy.threshold)
    return _finish(x, policy.mean, policy.std)


class Fixed(NamedTuple):
    """The fixed view of probing, see `evaluate`.

    Attributes:
      size: side, pixels.
      mean, std: the view is (x − mean) / std.
      crop_fraction: side of the centre crop as a share of the image.
      interpolation: 'bilinear' or 'bicubic'.
    """

    size: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    crop_fraction: float = 1.0
    interpolation: str = "bilinear"


def fixed(fields: Mapping[str, Any]) -> Fixed:
    """The fixed view that `config.evaluate` describes; other fields of it are passed over."""
    return Fixed(**{name: fields[name] for name in Fixed._fields if name in fields})


def evaluate(
    images: jax.Array,
    size: int,
    mean: Sequence[float] = (0.0,),
    std: Sequence[float] = (1.0,),
    crop_fraction: float = 1.0,
    interpolation: str = "bilinear",
) -> jax.Array:
    """The fixed view of probing: shorter side to size / crop_fraction, centre, normalise.

    Args:
      images: uint8 [b, H, W, C], C is 1 or 3.
      size: side of the view, pixels.
      mean, std: the view is (x − mean) / std; one or three numbers, as in `Policy`.
      crop_fraction: 1 keeps the whole centred square (CIFAR, digits); 224 / 256 = 0.875 is
        ImageNet's Resize(256), CenterCrop(224).
      interpolation: 'bilinear' or 'bicubic', antialiased.

    Returns:
      float32 [b, size, size, C].

    Raises:
      ValueError: images are not uint8 [b, H, W, 1 or 3], or crop_fraction is not in (0, 1].
    """
    _check(images)
    if not 0 < crop_fraction <= 1:
        raise ValueError(f"crop_fraction is {crop_fraction}, not in (0, 1]")
    return _finish(geometry.resize_centre(images, size, crop_fraction, interpolation), mean, std)


def _factors(p: Policy, active: jax.Array, u: jax.Array) -> color.Jitter:
    """Random factors of the operations with a strength, neutral where `active` is false."""

    def around_one(strength, u):
        if not strength:
            return None
        return jnp.where(active, _between(max(0.0, 1 - strength), 1 + strength, u), 1.0)

    def around_zero(strength, u):
        return jnp.where(active, _between(-strength, strength, u), 0.0) if strength else None

    brightness = around_zero if p.semantics == "byol" else around_one
    return color.Jitter(
        brightness(p.brightness, u[:, 0]),
        around_one(p.contrast, u[:, 1]),
        around_one(p.saturation, u[:, 2]),
        around_zero(p.hue, u[:, 3]),
    )


def _finish(x: jax.Array, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
    """Row-planar [b, h, C, w] -> (x − mean) / std as [b, h, w, C]."""
    channels = x.shape[2]
    x = x.swapaxes(2, 3)
    if all(m == 0 for m in mean) and all(s == 1 for s in std):
        return x
    return (x - _per_channel(mean, channels)) / _per_channel(std, channels)


def _per_channel(values: Sequence[float], channels: int) -> jax.Array:
    if len(values) not in (1, channels):
        values = (sum(values) / len(values),)  # three numbers for gray images: their average
    return jnp.asarray(tuple(values), float)


def _between(low: float, high: float, u: jax.Array) -> jax.Array:
    return low + (high - low) * u


def _check(images: jax.Array) -> None:
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.dtype != jnp.uint8:
        raise ValueError(f"images are {images.dtype} {images.shape}, not uint8 [b, H, W, 1 or 3]")
