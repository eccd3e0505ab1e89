"""Crop, resize, flip and shear of a batch, each image with a box of its own.

Resampling is linear and separable, so crop + resize + flip of one image is `My @ x @ Mxᵀ` with two
small matrices built from its box: no gather, only batched matmuls.

Inside the package an image batch is float32 [b, h, C, w] ("row-planar": every row holds its channel
planes one after the other). Both matmuls of a separable filter then work on reshapes alone,
[b, h, C·w] and [b, h·C, w], without a transpose between them, and colour reads whole rows.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

TRIES = 10  # candidate boxes per image, as torchvision


def torchvision_boxes(u: jax.Array, height: int, width: int, area: Any, aspect: Any) -> jax.Array:
    """Boxes of torchvision's RandomResizedCrop, its 10 tries drawn at once.

    Each try: area ~ U(area)·height·width, log(w/h) ~ U(log aspect), w and h rounded, the corner
    uniform over the integer places where the box fits. The first try that fits is taken; if none
    does, the largest centred box whose aspect lies in the range.

    Args:
      u: uniform noise in [0, 1), [b, TRIES, 4]: area, aspect, top, left.
      height, width: of the image, pixels.
      area: (low, high) share of the image area, before rejection.
      aspect: (low, high) of width / height.

    Returns:
      float32 [b, 4]: top, left, height, width in whole pixels.

    Source: torchvision transforms.RandomResizedCrop.get_params.
    """
    target = height * width * _between(area, u[..., 0])
    ratio = jnp.exp(_between((math.log(aspect[0]), math.log(aspect[1])), u[..., 1]))
    w = jnp.round(jnp.sqrt(target * ratio))
    h = jnp.round(jnp.sqrt(target / ratio))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top, left = _below(u[..., 2], height - h + 1), _below(u[..., 3], width - w + 1)
    if width / height < aspect[0]:
        fall_w, fall_h = width, round(width / aspect[0])
    elif width / height > aspect[1]:
        fall_w, fall_h = round(height * aspect[1]), height
    else:
        fall_w, fall_h = width, height
    fallback = ((height - fall_h) // 2, (width - fall_w) // 2, fall_h, fall_w)
    return _first(jnp.stack([top, left, h, w], -1), fits, fallback)


def tf_boxes(u: jax.Array, height: int, width: int, area: Any, aspect: Any) -> jax.Array:
    """Boxes of tf.image.sample_distorted_bounding_box with the whole image as the object.

    Not the distribution of torchvision: the aspect is uniform (not its logarithm), and given the
    aspect the *height* is uniform between the heights of the smallest and largest area, so small
    areas are likelier (mean share .42 instead of .48 for (.08, 1)). `min_object_covered=0.1`,
    which SimCLR leaves at its default, rejects shares below .1 whatever `area` says. The op draws
    the corner from [0, height − h), so the last place is never used. It tries 100 times, here
    TRIES; a try fails with a probability of about 5%. If all fail: the whole image.

    Args and returns as `torchvision_boxes`.

    Source: tensorflow/core/kernels/image/sample_distorted_bounding_box_op.cc.
    """
    smallest, largest = area[0] * height * width, area[1] * height * width
    ratio = _between(aspect, u[..., 1])
    low = jnp.round(jnp.sqrt(smallest / ratio))
    high = jnp.round(jnp.sqrt(largest / ratio))
    widest = jnp.floor((width + 0.5 - 1e-7) / ratio)
    widest -= jnp.round(widest * ratio) > width
    high = jnp.minimum(jnp.where(jnp.round(high * ratio) > width, widest, high), height)
    low = jnp.minimum(low, high)
    h = low + _below(u[..., 0], high - low + 1)
    # A rounding error may put the area just outside of its range: one step up, then one down.
    h += h * jnp.round(h * ratio) < smallest
    h -= h * jnp.round(h * ratio) > largest
    w = jnp.round(h * ratio)
    share = h * w
    fits = (share >= smallest) & (share <= largest) & (share >= 0.1 * height * width)
    fits &= (w > 0) & (w <= width) & (h > 0) & (h <= height)
    top, left = _below(u[..., 2], height - h), _below(u[..., 3], width - w)
    return _first(jnp.stack([top, left, h, w], -1), fits, (0, 0, height, width))


def byol_boxes(u: jax.Array, height: int, width: int, area: Any, aspect: Any) -> jax.Array:
    """Boxes of BYOL: one draw as torchvision's, sides cut to the image instead of drawn again.

    Args and returns as `torchvision_boxes` (only the first try of `u` is used).

    Source: deepmind-research byol/utils/dataset.py, _decode_and_random_crop.
    """
    u = u[:, 0]
    target = height * width * _between(area, u[:, 0])
    ratio = jnp.exp(_between((math.log(aspect[0]), math.log(aspect[1])), u[:, 1]))
    w = jnp.clip(jnp.round(jnp.sqrt(target * ratio)), 1, width)
    h = jnp.clip(jnp.round(jnp.sqrt(target / ratio)), 1, height)
    top, left = _below(u[:, 2], height - h + 1), _below(u[:, 3], width - w + 1)
    return jnp.stack([top, left, h, w], -1)


BOXES = {"torchvision": torchvision_boxes, "tf": tf_boxes, "byol": byol_boxes}


def centre_boxes(b: int, height: int, width: int) -> jax.Array:
    """The centred square of the shorter side, for every image: float32 [b, 4] as above."""
    side = min(height, width)
    box = jnp.array([(height - side) // 2, (width - side) // 2, side, side], float)
    return jnp.broadcast_to(box, (b, 4))


def resize_weights(
    start: jax.Array,
    length: jax.Array,
    n: int,
    out: int,
    interpolation: str = "bilinear",
    antialias: bool = True,
    reverse: jax.Array | None = None,
) -> jax.Array:
    """Matrices that resample [start, start + length) of an axis of n pixels to `out` pixels.

    Output pixel i looks at c = start + (i + ½)·length/out with the kernel k((j + ½ − c) / width),
    width = max(length/out, 1) with antialiasing (Pillow, torch antialias=True) and 1 without
    (tf.image.resize). Pixels outside of the box do not count; each row is divided by its sum.

    'bilinear' is the triangle. 'bicubic' is Keys' cubic with a = −0.5, as Pillow, TF and
    torch's antialias=True (torch without antialias has a = −0.75). Its overshoot is not clipped.

    Args:
      start, length: of the box in pixels, float32 [b].
      n, out: pixels before and after.
      interpolation: 'bilinear' or 'bicubic'.
      antialias: widen the kernel where the box is larger than `out`.
      reverse: bool [b], mirror the output where true; None: nowhere.

    Returns:
      float32 [b, out, n].
    """
    i = jnp.broadcast_to(jnp.arange(out, dtype=float), (start.shape[0], out))
    if reverse is not None:
        i = jnp.where(reverse[:, None], out - 1 - i, i)
    start, length = start[:, None], length[:, None]
    centre = start + (i + 0.5) * (length / out)  # [b, out]
    width = jnp.maximum(length / out, 1.0) if antialias else jnp.ones_like(length)
    j = jnp.arange(n, dtype=float) + 0.5
    d = jnp.abs(j - centre[..., None]) / width[..., None]  # [b, out, n]
    if interpolation == "bilinear":
        k = jnp.maximum(1.0 - d, 0.0)
    elif interpolation == "bicubic":
        near = (1.5 * d - 2.5) * d * d + 1.0
        far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
        k = jnp.where(d < 1.0, near, jnp.where(d < 2.0, far, 0.0))
    else:
        raise ValueError(f"interpolation is {interpolation!r}, not 'bilinear' or 'bicubic'")
    k = jnp.where((j > start[..., None]) & (j < (start + length)[..., None]), k, 0.0)
    return k / k.sum(-1, keepdims=True)


def resample(
    images: jax.Array, rows: jax.Array, columns: jax.Array, support: float = math.inf
) -> jax.Array:
    """rows @ x @ columnsᵀ of every image and channel, scaled from [0, 255] to [0, 1].

    Args:
      images: uint8 [b, H, W, C].
      rows: float32 [b, h, H], as `resize_weights` makes them, for boxes no longer than the image.
      columns: float32 [b, w, W], likewise.
      support: how far from its centre an output pixel looks, in pixels, at most; see `banded_dot`.

    Returns:
      float32 [b, h, C, w], row-planar.
    """
    b, height, width, c = images.shape
    h, w = rows.shape[1], columns.shape[1]
    x = images.astype(float).reshape(b, height, width * c)
    # [b,h,H] · [b,H,W·C] -> [b,h,W·C]
    x = banded_dot(x, rows * (1.0 / 255.0), 1, height / h, support)
    x = x.reshape(b, h, width, c).swapaxes(2, 3).reshape(b, h * c, width)
    x = banded_dot(x, columns, 2, width / w, support)  # [b,h·C,W] · [b,w,W] -> [b,h·C,w]
    return x.reshape(b, h, c, w)


def crop_resize(
    images: jax.Array,
    boxes: jax.Array,
    size: int,
    interpolation: str = "bilinear",
    antialias: bool = True,
    flip: jax.Array | None = None,
) -> jax.Array:
    """Cuts a box out of every image, resizes it to size × size and mirrors it left to right.

    Args:
      images: uint8 [b, H, W, C].
      boxes: float32 [b, 4]: top, left, height, width in pixels.
      size: side of the output, pixels.
      interpolation, antialias: see `resize_weights`.
      flip: bool [b], mirror where true; None: nowhere.

    Returns:
      float32 [b, size, C, size] in [0, 1]; the overshoot of 'bicubic' is clipped, as 8-bit Pillow
      and BYOL do (tf.image.resize does not; SimCLR clips after its next operation).
    """
    _, height, width, _ = images.shape
    top, left, h, w = (boxes[:, i] for i in range(4))
    rows = resize_weights(top, h, height, size, interpolation, antialias)
    columns = resize_weights(left, w, width, size, interpolation, antialias, flip)
    support = 2.0 if interpolation == "bicubic" else 1.0
    support *= max(height / size, width / size, 1.0) if antialias else 1.0
    x = resample(images, rows, columns, support)
    return jnp.clip(x, 0.0, 1.0) if interpolation == "bicubic" else x


def resize_centre(
    images: jax.Array, size: int, crop_fraction: float, interpolation: str
) -> jax.Array:
    """Resizes the shorter side to round(size / crop_fraction) and cuts out the centre.

    Args:
      images: uint8 [b, H, W, C].
      size: side of the output, pixels.
      crop_fraction: in (0, 1]; 224 / 256 = 0.875 is ImageNet's usual view.
      interpolation: see `resize_weights`.

    Returns:
      float32 [b, size, C, size] in [0, 1].

    Source: torchvision Resize (antialiased) and CenterCrop, with their roundings.
    """
    b, height, width, _ = images.shape
    short = round(size / crop_fraction)

    def weights(n):
        out = short if n == min(height, width) else int(short * n / min(height, width))
        first = round((out - size) / 2)
        zero, full = jnp.zeros(1), jnp.full(1, float(n))
        w = resize_weights(zero, full, n, out, interpolation)[:, first : first + size]
        return jnp.broadcast_to(w, (b, size, n))

    x = resample(images, weights(height), weights(width))
    return jnp.clip(x, 0.0, 1.0) if interpolation == "bicubic" else x


def shear(x: jax.Array, along_x: jax.Array, along_y: jax.Array, limit: float) -> jax.Array:
    """Two shears about the centre, first of the rows, then of the columns.

    y[r, c] = x[r, c + along_x·(r − m)], then z[r, c] = y[r + along_y·(c − m), c], with m the
    centre, linear interpolation and zeros from outside. Together z[r, c] = x[r', c +
    along_x·(r' − m)], r' = r + along_y·(c − m): an affine map with determinant 1.

    It follows the crop, at its output resolution, so the corners of the crop may turn zero even
    where the image went on, and pixels are interpolated twice. Rows move by whole pixels in
    log₂ steps of "shift by 2^k or stay", then by the fraction: selects and static slices instead
    of a gather (as fast as one on CPU at 28 px, and without one on accelerators).

    Args:
      x: float32 [b, h, C, w].
      along_x, along_y: shear factors (pixels per pixel), float32 [b].
      limit: static bound of their absolute values.

    Returns:
      float32 [b, h, C, w].
    """
    _, h, _, w = x.shape
    x = _shift(x, along_x[:, None] * (jnp.arange(h) - (h - 1) / 2), limit * (h - 1) / 2)
    x = x.transpose(0, 3, 2, 1)  # [b, w, C, h]
    x = _shift(x, along_y[:, None] * (jnp.arange(w) - (w - 1) / 2), limit * (w - 1) / 2)
    return x.transpose(0, 3, 2, 1)


def banded_dot(x: jax.Array, w: jax.Array, axis: int, step: float, support: float) -> jax.Array:
    """Filters an axis of every image: contracts it with the last axis of w, which is banded.

    Output pixel i of a filter looks at inputs within `support` of its centre, and two neighbours'
    centres are at most `step` apart. A batch takes the whole matrix, mostly zeros: one large matmul
    for all. A single image takes a run of outputs at a time, with the inputs that they look at.

    Args:
      x: float32 [b, k, l]; axis 1 or 2, of n pixels, is filtered.
      w: float32 [b, out, n].
      axis: 1 or 2.
      step, support: static, in pixels of x.

    Returns:
      float32, x with `out` pixels on that axis.
    """

    def dot(w, x):
        return batched_dot(w, x, 2, 1) if axis == 1 else batched_dot(x, w, 2, 2)

    out, n = w.shape[1:]
    # Runs of equal length, of 40 at least: shorter ones make slow matmuls.
    runs = next((k for k in range(out // 40, 0, -1) if out % k == 0), 1)
    reach = (out / runs - 1) * step + 2 * support + 1
    if len(x) > 1 or reach >= n:
        return dot(w, x)
    parts = []
    for part in jnp.split(w, runs, 1):
        first = jnp.argmax((part != 0).any((0, 1)))
        parts.append(
            dot(
                lax.dynamic_slice_in_dim(part, first, math.ceil(reach), 2),
                lax.dynamic_slice_in_dim(x, first, math.ceil(reach), axis),
            )
        )
    return jnp.concatenate(parts, axis)


def batched_dot(x: jax.Array, y: jax.Array, i: int, j: int) -> jax.Array:
    """One matmul per row of the batch, contracting axis i of x with axis j of y, in float32.

    Precision HIGHEST: bfloat16 passes (TPU) or TF32 (GPU) would err by up to one 8-bit level.
    """
    dims = (((i,), (j,)), ((0,), (0,)))
    return lax.dot_general(x, y, dims, precision=lax.Precision.HIGHEST)


def _shift(x: jax.Array, s: jax.Array, limit: float) -> jax.Array:
    """out[b, r, :, c] = x[b, r, :, c + s[b, r]], linear, zeros outside; |s| <= limit."""
    w = x.shape[-1]
    m = math.ceil(limit)
    whole = jnp.floor(s)
    fraction = (s - whole)[:, :, None, None]
    # After the padding, out[c] mixes x[c + steps] and x[c + steps + 1].
    steps = jnp.clip(whole.astype(jnp.int32) + m, 0, 2 * m)[:, :, None, None]
    x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (m, m + 1)))
    for k in reversed(range((2 * m).bit_length())):
        moved = jnp.pad(x[..., 1 << k :], ((0, 0), (0, 0), (0, 0), (0, min(1 << k, x.shape[-1]))))
        # The barrier keeps XLA from fusing the chain, which would evaluate it 2^k times.
        x = lax.optimization_barrier(jnp.where((steps >> k) & 1 == 1, moved, x))
    return (1.0 - fraction) * x[..., :w] + fraction * x[..., 1 : w + 1]


def _between(interval: Any, u: jax.Array) -> jax.Array:
    return interval[0] + (interval[1] - interval[0]) * u


def _below(u: jax.Array, n: jax.Array) -> jax.Array:
    """Uniform whole number in [0, n); 0 where n < 1. (u·n may round up to n.)"""
    return jnp.maximum(jnp.minimum(jnp.floor(u * n), n - 1), 0)


def _first(boxes: jax.Array, fits: jax.Array, fallback: Any) -> jax.Array:
    """The first box that fits of each row: boxes [b, TRIES, 4], fits bool [b, TRIES] -> [b, 4]."""
    taken = fits & (jnp.cumsum(fits, 1) == 1)
    chosen = jnp.where(taken[..., None], boxes, 0.0).sum(1)
    return jnp.where(fits.any(1)[:, None], chosen, jnp.asarray(fallback, float))
