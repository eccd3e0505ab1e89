"""The measures of dense prediction: intersection over union, and errors of depth."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

THRESHOLDS = (1.25, 1.25**2, 1.25**3)


def confusion(truth: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """Counts of (true, predicted) classes over the last axis.

    Args:
      truth: int [..., p]; where it is outside 0 … classes − 1, nothing is counted.
      predicted: int [..., p].
      classes: number of classes K.

    Returns:
      int32 [..., K, K], row: true class.
    """
    true, guess = (jax.nn.one_hot(x, classes, dtype=jnp.float32) for x in (truth, predicted))
    # [..., p, K] · [..., p, K] -> [..., K, K]: exact in float32 up to 2²⁴ pixels.
    counts = jnp.einsum("...pi,...pj->...ij", true, guess, precision=lax.Precision.HIGHEST)
    return jnp.round(counts).astype(jnp.int32)


def segmentation_scores(counts: np.ndarray) -> dict[str, Any]:
    """Intersection over union and pixel accuracy of a confusion matrix.

    IoU_c = n_cc / (Σ_j n_cj + Σ_i n_ic − n_cc); mIoU is its mean over the classes that occur, in
    truth or in prediction (Long et al. 2015, over the pixels of all images together).

    Args:
      counts: int [K, K], row: true class.

    Returns:
      {'miou', 'pixel_accuracy': in [0, 1]; 'iou': float [K], NaN for a class that does not occur}.

    Raises:
      ValueError: nothing was counted.
    """
    counts = np.asarray(counts, np.float64)
    if counts.sum() == 0:
        raise ValueError("segmentation_scores: no pixel was counted")
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    iou = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return {
        "miou": float(np.nanmean(iou)),
        "pixel_accuracy": float(hits.sum() / counts.sum()),
        "iou": iou,
    }


def depth_sums(truth: jax.Array, predicted: jax.Array) -> jax.Array:
    """What `depth_scores` divides, summed over the last axis.

    Args:
      truth: float32 [..., p], metres; where it is not > 0, nothing is counted.
      predicted: float32 [..., p], metres, > 0.

    Returns:
      float32 [..., 6]: pixels, (p − t)², |p − t| / t, and how many have max(p/t, t/p) below each
      of 1.25, 1.25², 1.25³.
    """
    known = truth > 0
    t = jnp.where(known, truth, 1.0)
    error = predicted - t
    ratio = jnp.maximum(predicted / t, t / predicted)
    terms = [jnp.ones_like(t), error**2, jnp.abs(error) / t, *(ratio < x for x in THRESHOLDS)]
    return jnp.stack([jnp.sum(jnp.where(known, x, 0.0), -1) for x in terms], -1)


def depth_scores(sums: np.ndarray) -> dict[str, float]:
    """The measures of Eigen et al. 2014 (section 4.1), over the pixels of all images together.

    RMSE = √(Σ (p − t)² / n), abs rel = Σ |p − t| / t / n, δ_i = share of the pixels with
    max(p/t, t/p) < 1.25^i. (Some codes average the RMSE of every image instead.)

    Args:
      sums: float [6], from `depth_sums`, summed over images.

    Returns:
      {'rmse': metres, 'abs_rel', 'delta1', 'delta2', 'delta3': in [0, 1]}.

    Raises:
      ValueError: nothing was counted.
    """
    n, square, relative, *below = np.asarray(sums, np.float64).tolist()
    if n == 0:
        raise ValueError("depth_scores: no pixel was counted")
    found = {"rmse": math.sqrt(square / n), "abs_rel": relative / n}
    return found | {f"delta{i + 1}": x / n for i, x in enumerate(below)}


def named(
    counts: np.ndarray | None, sums: np.ndarray | None, classes: Sequence[str]
) -> dict[str, Any]:
    """The measures of what was measured.

    Args:
      counts: as for `segmentation_scores`, or None.
      sums: as for `depth_scores`, or None.
      classes: names of the K classes.

    Returns:
      those of both; 'iou' by name of the class, None where a class does not occur.
    """
    found = {}
    if counts is not None:
        found |= segmentation_scores(counts)
        pairs = zip(classes, found.pop("iou").tolist(), strict=True)
        found["iou"] = {name: None if np.isnan(value) else value for name, value in pairs}
    if sums is not None:
        found |= depth_scores(sums)
    return found
