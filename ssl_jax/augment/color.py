"""Colour operations on a batch, every image with factors of its own.

Images are float32 [b, h, C, w] (row-planar, see geometry.py) in [0, 1], C is 1 or 3. On C = 1 gray
is the image itself, so that saturation, hue and grayscale leave it as it is.

The same names mean different things in the official code; `semantics` chooses (s: strength,
every operation is followed by a clip to [0, 1]):

                torchvision                 tf                          byol
    brightness  f·x                         f·x                         x + δ, δ ~ U(−s, s)
    contrast    f·x + (1−f)·mean(gray(x))   f·x + (1−f)·mean(x_c), per channel c        as tf
    saturation  f·x + (1−f)·gray(x)         HSV: S ← clip(f·S, 0, 1)                    as tf
    hue         H ← H + δ (mod 1), δ ~ U(−s, s), in all of them

with f ~ U(max(0, 1 − s), 1 + s). 'torchvision' is also Pillow's, but for its 8-bit rounding between
the operations (hue up to 15 levels). 'tf' is Google's SimCLR (tf2/data_util.py, impl 'simclrv2');
'byol' is BYOL's augmentations.py and TF1's tf.image.random_brightness ('simclrv1').
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

SEMANTICS = ("torchvision", "tf", "byol")
# ITU-R 601 as TF, torchvision and BYOL write it (Pillow: .299, .587, .114).
GRAY = (0.2989, 0.5870, 0.1140)


class Jitter(NamedTuple):
    """Factors of the four operations, float32 [b] each; an operation that is None is not compiled.

    Attributes:
      brightness: factor (neutral 1); with semantics 'byol' the difference δ (neutral 0).
      contrast, saturation: factors (neutral 1).
      hue: difference δ in turns (neutral 0).
    """

    brightness: jax.Array | None = None
    contrast: jax.Array | None = None
    saturation: jax.Array | None = None
    hue: jax.Array | None = None


def jitter(x: jax.Array, factors: Jitter, order: jax.Array, semantics: str) -> jax.Array:
    """Brightness, contrast, saturation and hue, in an order of its own for every image.

    Four rounds of "compute all four, select one" would waste three quarters of the work. All but
    hue are affine in x with cheap terms, so any order is: one slot for each affine operation, hue
    once, and the same slots again; an operation acts in the slot of its rank, before or after
    hue, and everywhere else its factor is neutral.

    A single image has one order, so it takes four branches and no slots: an operation is computed
    once, and not at all where its factor is neutral.

    Args:
      x: float32 [b, h, C, w] in [0, 1].
      factors: see `Jitter`.
      order: [b, 4], the place of brightness, contrast, saturation and hue; any distinct numbers.
      semantics: 'torchvision', 'tf' or 'byol', see above.

    Returns:
      float32 [b, h, C, w] in [0, 1].
    """
    if semantics not in SEMANTICS:
        raise ValueError(f"semantics is {semantics!r}, not one of {SEMANTICS}")
    slot = _slot_torchvision if semantics == "torchvision" else _slot_tf
    neutral = Jitter(0.0 if semantics == "byol" else 1.0, 1.0, 1.0, 0.0)
    if len(x) == 1:
        return _one_image(
            x, factors, order[0], neutral, functools.partial(slot, semantics=semantics)
        )
    hue_factor = None if x.shape[2] == 1 else factors.hue
    affine = [i for i in range(3) if factors[i] is not None]
    rank = {i: sum((order[:, j] < order[:, i]).astype(jnp.int32) for j in affine) for i in affine}

    def slots(x, allowed):
        for s in range(len(affine)):
            now = [None, None, None]
            for i in affine:
                active = (rank[i] == s) & allowed(order[:, i])
                now[i] = jnp.where(active, factors[i], neutral[i])[:, None, None]
            # A barrier after each slot: fused further, XLA's CPU code evaluates a slot once for
            # every reader, 1.5 times slower over all (and means need a whole image anyway).
            x = lax.optimization_barrier(slot(x, Jitter(*now), semantics))
        return x

    if hue_factor is None:
        return slots(x, lambda place: True)
    x = slots(x, lambda place: place < order[:, 3])
    x = lax.optimization_barrier(hue(x, hue_factor))
    return slots(x, lambda place: place > order[:, 3])


def _one_image(x, factors, order, neutral, slot):
    """`jitter` of [1, h, C, w], one operation after the other."""
    names = [n for n in Jitter._fields if getattr(factors, n) is not None]
    if x.shape[2] == 1:
        names = [n for n in names if n != "hue"]

    def operation(name):
        f = getattr(factors, name)
        if name == "hue":
            return lambda x: hue(x, f)
        return lambda x: slot(x, Jitter(**{name: f[:, None, None]}))

    if not names:
        return x
    branches = [operation(name) for name in names] + [lambda x: x]
    acts = jnp.stack([getattr(factors, n)[0] != getattr(neutral, n) for n in names])
    places = jnp.argsort(jnp.stack([order[Jitter._fields.index(n)] for n in names]))
    for place in jnp.where(acts[places], places, len(names)):
        x = lax.switch(place, branches, x)
    return x


def hue(x: jax.Array, delta: jax.Array) -> jax.Array:
    """Turns the hue of RGB images by `delta` turns, S and V kept.

    With V = max, c = V − min and h = 6·H, every channel is V − c·clip(min(k, 4 − k), 0, 1),
    k = (n + h + 6·delta) mod 6, n = 5, 3, 1 for R, G, B: HSV to RGB without branches.

    Args:
      x: float32 [b, h, 3, w].
      delta: float32 [b].

    Returns:
      float32 [b, h, 3, w].
    """
    r, g, b = x[:, :, 0], x[:, :, 1], x[:, :, 2]
    v = jnp.maximum(jnp.maximum(r, g), b)
    c = v - jnp.minimum(jnp.minimum(r, g), b)
    per_c = 1.0 / jnp.where(c > 0, c, 1.0)
    h = jnp.where(
        v == r, (g - b) * per_c, jnp.where(v == g, 2 + (b - r) * per_c, 4 + (r - g) * per_c)
    )
    h = h + 6 * delta[:, None, None]

    def channel(n):
        k = h + n
        k = k - 6 * jnp.floor(k * (1 / 6))
        return v - c * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([channel(5), channel(3), channel(1)], 2)


def gray(x: jax.Array) -> jax.Array:
    """0.2989·R + 0.587·G + 0.114·B, or the one channel: float32 [b, h, C, w] -> [b, h, w]."""
    if x.shape[2] == 1:
        return x[:, :, 0]
    return GRAY[0] * x[:, :, 0] + GRAY[1] * x[:, :, 1] + GRAY[2] * x[:, :, 2]


def grayscale(x: jax.Array, apply: jax.Array) -> jax.Array:
    """Gray in all channels where `apply` (bool [b]) is true: [b, h, C, w] -> [b, h, C, w]."""
    return jnp.where(_column(apply), gray(x)[:, :, None], x)


def solarize(x: jax.Array, apply: jax.Array, threshold: float) -> jax.Array:
    """1 − x at the values from the threshold on, where `apply` (bool [b]) is true.

    Threshold 0.5 on [0, 1] is Pillow's 128 on 8 bits: 127 stays, 128 is inverted.
    """
    return jnp.where(_column(apply) & (x >= threshold), 1.0 - x, x)


def _slot_torchvision(x, f, semantics):
    """One operation: clip(a·x + (1−a)·ref), ref = 0, mean of gray or gray; f: [b,1,1] or None."""
    del semantics
    a, shift, y = 1.0, 0.0, gray(x)
    # All but one factor are neutral here, so a is that one and the other shifts are zero.
    if f.brightness is not None:
        a = a * f.brightness
    if f.contrast is not None:
        a = a * f.contrast
        shift = shift + (1 - f.contrast) * y.mean((1, 2), keepdims=True)
    if f.saturation is not None:
        a = a * f.saturation
        shift = shift + (1 - f.saturation) * y
    return _stack([jnp.clip(a * x[:, :, c] + shift, 0, 1) for c in range(x.shape[2])])


def _slot_tf(x, f, semantics):
    """One operation, around the mean of each channel, or on S of HSV; f: [b,1,1] or None.

    S ← clip(f·S, 0, 1) at constant H and V moves every channel along its distance to V:
    x ← k·x + (1−k)·V, k = min(f, 1/S), 1/S = V / (V − min). No conversion to HSV is needed, and
    with the neutral f = 1, k is 1: one affine form serves all, as in torchvision's semantics.
    """
    channels = [x[:, :, c] for c in range(x.shape[2])]
    a, shift, mean_shift = 1.0, 0.0, [0.0] * len(channels)
    if f.brightness is not None and semantics == "byol":
        shift = shift + f.brightness
    elif f.brightness is not None:
        a = a * f.brightness
    if f.saturation is not None:
        v = functools.reduce(jnp.maximum, channels)
        low = functools.reduce(jnp.minimum, channels)
        k = jnp.minimum(f.saturation, v / jnp.maximum(v - low, 1e-12))
        a = a * k
        shift = shift + (1 - k) * v
    if f.contrast is not None:
        a = a * f.contrast
        means = x.mean((1, 3))[:, :, None, None]  # [b, C, 1, 1]
        mean_shift = [(1 - f.contrast) * means[:, c] for c in range(len(channels))]
    return _stack(
        [jnp.clip(a * y + (shift + m), 0, 1) for y, m in zip(channels, mean_shift, strict=True)]
    )


def _stack(channels):
    return jnp.stack(channels, 2)  # C × [b, h, w] -> [b, h, C, w]


def _column(flag):
    return flag[:, None, None, None]
