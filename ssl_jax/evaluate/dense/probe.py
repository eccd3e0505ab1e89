"""What dense probes share: a linear layer on frozen maps, read at every pixel.

One linear layer reads a map [h, w, d], its output is upsampled bilinearly to the pixels, and the
loss counts every pixel: the `linear` protocol of DINOv2 (Oquab et al. 2023, section 7.4). (The
layer and the upsampling commute, so features could as well be upsampled first.) What the layer
learns is in segmentation.py and depth.py.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.evaluate.dense import maps as dense_maps
from ssl_jax.evaluate.dense import scores

HOLDOUT = 0.2


class Statistics(NamedTuple):
    """What one look at the training images tells.

    Attributes:
      mean, scale: float32 [d], of the features; standardised is (x − mean) · scale.
      counts: int [classes], pixels of every class.
      log_depth: mean of log depth.
      nearest, farthest: depth, metres.
    """

    mean: np.ndarray
    scale: np.ndarray
    counts: np.ndarray
    log_depth: float
    nearest: float
    farthest: float


class Head(NamedTuple):
    """A linear layer on standardised features, or a stack of them: leading axis g.

    Attributes:
      weight: float32 [d, k].
      bias: float32 [k].
    """

    weight: Any
    bias: Any


def statistics(data: dense_maps.Set, batch: int, classes: int) -> Statistics:
    """One pass over the training images.

    Args:
      data: of them.
      batch: images at a time.
      classes: number of classes.

    Raises:
      UserError: features that are not finite.
    """
    total = square = log_depth = 0.0
    cells = pixels = 0
    counts = np.zeros(classes, np.int64)
    nearest, farthest = math.inf, 0.0
    for features, mask, depth in data.read(np.arange(data.examples), batch):
        real = depth[:, 0, 0] > 0
        x = features[real].reshape(-1, features.shape[-1]).astype(np.float64)
        if not np.isfinite(x).all():
            raise UserError("dense: the features are not all finite; the encoder diverged")
        total, square, cells = total + x.sum(0), square + np.square(x).sum(0), cells + len(x)
        counts += np.bincount(mask[mask >= 0].ravel(), minlength=classes)
        known = depth[real]
        log_depth, pixels = log_depth + np.log(known).sum(dtype=np.float64), pixels + known.size
        nearest, farthest = min(nearest, known.min()), max(farthest, known.max())
    mean = total / cells
    deviation = np.sqrt(np.maximum(square / cells - mean**2, 0))
    # A channel that is constant to float32's precision is silenced, as in linear.standardisation.
    alive = deviation > 1e-6 * np.abs(mean) + 1e-30
    scale = np.where(alive, 1 / np.where(alive, deviation, 1), 0)
    return Statistics(
        mean.astype(np.float32),
        scale.astype(np.float32),
        counts,
        float(log_depth / pixels),
        float(nearest),
        float(farthest),
    )


def holdout(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places to learn from and, a fifth, to choose hyperparameters on; both ascending.

    Raises:
      UserError: fewer than two images.
    """
    if examples < 2:
        raise UserError("dense: choosing hyperparameters needs at least two training images")
    order = np.random.Generator(np.random.Philox([seed, 2])).permutation(examples)
    held = max(1, int(HOLDOUT * examples))
    return np.sort(order[held:]), np.sort(order[:held])


def bilinear(size: int, cells: int) -> jax.Array:
    """The matrix of bilinear upsampling along one side, float32 [size, cells]; rows sum to 1.

    Cells are centred on their area and the edge is repeated: PyTorch's align_corners=False.
    """
    return jax.image.resize(jnp.eye(cells), (size, cells), "linear", antialias=False)


def upsample(maps: jax.Array, size: int) -> jax.Array:
    """[..., h, w, k] -> [..., size, size, k], bilinear."""
    h, w = maps.shape[-3:-1]
    rows = jnp.einsum("yh,...hwk->...ywk", bilinear(size, h), maps)
    return jnp.einsum("xw,...ywk->...yxk", bilinear(size, w), rows)


def outputs(heads: Head, features: jax.Array, mean, scale, size: int) -> jax.Array:
    """What a stack of heads says at every pixel.

    Args:
      heads: weight [g, d, k], bias [g, k].
      features: float32 [b, h, w, d].
      mean, scale: float32 [d].
      size: side S of the images, pixels.

    Returns:
      float32 [g, b, S, S, k].
    """
    x = (features - mean) * scale
    # [b, h, w, d] · [g, d, k] -> [g, b, h, w, k]
    small = jnp.einsum("bhwd,gdk->gbhwk", x, heads.weight) + heads.bias[:, None, None, None]
    return upsample(small, size)


def constants(data: dense_maps.Set, facts: Statistics, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """What knowing nothing of an image is worth: the commonest class, the geometric mean depth.

    Args:
      data: images to judge on.
      facts: of the training images, whose commonest class and mean log depth are said everywhere.
      batch: images at a time.

    Returns:
      (confusion int64 [K, K], `depth_sums` float64 [6]).
    """
    classes = len(facts.counts)
    matrix, sums = np.zeros((classes, classes), np.int64), np.zeros(6)
    for _, mask, depth in data.read(np.arange(data.examples), batch):
        counts = np.bincount(mask[mask >= 0].ravel(), minlength=classes)
        matrix[:, int(np.argmax(facts.counts))] += counts
        flat = depth.reshape(len(depth), -1)
        guess = np.full_like(flat, math.exp(facts.log_depth))
        sums += np.asarray(scores.depth_sums(flat, guess), np.float64).sum(0)
    return matrix, sums
