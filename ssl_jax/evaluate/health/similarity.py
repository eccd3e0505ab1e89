"""What features say of two views of an image, of other images, of the same class; no training.

Sources: Wang & Isola 2020 (alignment, uniformity), Wang & Liu 2021, "Understanding the Behaviour of
Contrastive Loss" (temperature, hardness, the uniformity–tolerance dilemma).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from ml_collections import ConfigDict

from ssl_jax import augment
from ssl_jax.devices import mapping
from ssl_jax.losses import align_uniform

BINS = 80  # of the histograms, over [−1, 1]
HARD = 0.01  # share of the negatives that count as the hardest


class Histograms(NamedTuple):
    """Densities of cosines: each sums to 1 over its BINS bins.

    Attributes:
      positive: of two views of one image.
      negative: of views of two images.
      same_class: of views of two images of one class; None without labels.
    """

    positive: np.ndarray
    negative: np.ndarray
    same_class: np.ndarray | None


def policies(config: ConfigDict, name: str) -> tuple[augment.Policy, augment.Policy]:
    """The two augmentations that make the pair of views.

    Args:
      config: of the run.
      name: of a policy (`augment.policies`), drawn twice at the size of `config.evaluate` and with
        its normalisation, so that runs can be compared; '': the run's own two views (its one view
        twice, where it has one; crops named 'local' are left out).

    Raises:
      UserError: no such policy.
    """
    view = config.evaluate
    if name:
        both = augment.make(name, view.size, mean=view.mean, std=view.std)
        return both, both
    own = [augment.make("none", **config.views[k]) for k in sorted(config.views) if k != "local"]
    return own[0], own[min(1, len(own) - 1)]


def compile_encode(
    embed: Callable[[Any, jax.Array], jax.Array],
    pair: tuple[augment.Policy, augment.Policy],
    seed: int,
    mesh: Any,
) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Compiles the encoder on two random views of every image, in evaluation mode.

    The noise of an example depends on `seed` and its index alone.

    Args:
      embed: (variables, views) -> [b, d], see `Encoder`.
      pair: of `policies`.
      seed: of the views.
      mesh: from `layout.mesh()`.

    Returns:
      what `encoder.compile_encode` returns, with features float32 [B, 2, d].
    """

    def encode(variables, rows):
        key = jax.random.key(seed)
        keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i), 2))(rows["index"])
        views = [augment.apply(p, keys[:, i], rows["image"]) for i, p in enumerate(pair)]
        out = [embed(variables, v).astype(jnp.float32) for v in views]
        return {
            "features": jnp.stack(out, 1),  # [b, 2, d]
            "label": rows["label"],
            "valid": rows["index"] >= 0,
        }

    return mapping.compile_rows(encode, mesh)


def unit(x: np.ndarray) -> jax.Array:
    """Rows of length 1; a row of zeros stays."""
    x = jnp.asarray(x, jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def measure(x: jax.Array, y: jax.Array, labels: np.ndarray, alpha: float, t: float):
    """Numbers and histograms of a pair of views.

    alignment, uniformity (of x, of y, their mean): `losses.align_uniform`.
    positive_similarity, negative_similarity: mean cosine of two views of an image, of two images.
    positive_recall: share of images whose own second view is nearer than that of any other image.
    tolerance: mean cosine of two images of one class; Wang & Liu, equation 8, but over the pairs of
      one class alone (there, pairs of two classes count as 0).

    Args:
      x, y: float32 [n, d], of `unit`, row n of both from one image, n ≥ 2. Memory n² · 12 bytes.
      labels: int [n], −1 for none.
      alpha, t: of alignment and uniformity.

    Returns:
      (numbers: str -> float, Histograms).
    """
    n = len(x)
    s = np.array(jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST))  # [n, d] @ [d, n]
    positive = np.diagonal(s).copy()
    other = ~np.eye(n, dtype=bool)
    known = labels >= 0
    alike = (labels[:, None] == labels) & known[:, None] & known & other
    found = {
        "alignment": float(align_uniform.alignment(x, y, alpha)),
        "uniformity": float((align_uniform.uniformity(x, t) + align_uniform.uniformity(y, t)) / 2),
        "positive_similarity": float(positive.mean()),
        "negative_similarity": float(s[other].mean()),
        "positive_recall": float(np.mean(positive > np.where(other, s, -np.inf).max(1))),
    }
    if alike.any():
        found["tolerance"] = float(s[alike].mean())

    def density(values):
        count, _ = np.histogram(np.clip(values, -1, 1), BINS, (-1, 1))
        return count / max(count.sum(), 1)

    return found, Histograms(
        density(positive), density(s[other]), density(s[alike]) if alike.any() else None
    )


def hardness(x: jax.Array, y: jax.Array, temperatures: Sequence[float]) -> list[dict[str, float]]:
    """How a contrastive loss at temperature τ would share its repulsion among the negatives.

    For an image i and the other images j, r_ij = exp(x_i·y_j / τ) / Σ_k≠i exp(x_i·y_k / τ) is the
    relative penalty on j (Wang & Liu, equation 5; with all candidates of one anchor it is the share
    of j in the gradient). A large τ pushes all alike; a small one the nearest alone, which are
    often of the same class.

    Args:
      x, y: as for `measure`.
      temperatures: τ > 0.

    Returns:
      for each τ: 'temperature'; 'negatives', exp(entropy of r_i) as a share of all n − 1, averaged
      over i: 1 where all count alike; 'hardest', the part of r_i on the HARD share of negatives
      that are nearest.
    """
    n = len(x)
    s = jnp.matmul(x, y.T, precision=lax.Precision.HIGHEST)  # [n, d] @ [d, n]
    s = jnp.where(jnp.eye(n, dtype=bool), -jnp.inf, s)
    count = max(1, round(HARD * (n - 1)))
    rows = []
    for temperature in temperatures:
        log_r = jax.nn.log_softmax(s / temperature, axis=1)
        r = jnp.exp(log_r)
        entropy = -jnp.sum(jnp.where(r > 0, r * log_r, 0.0), 1)
        rows.append(
            {
                "temperature": float(temperature),
                "negatives": float(jnp.mean(jnp.exp(entropy)) / (n - 1)),
                "hardest": float(jnp.mean(jnp.sum(lax.top_k(r, count)[0], 1))),
            }
        )
    return rows


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
    """Spearman's ρ of two series, ties by their mean rank, and its two-sided p value (by t).

    NaN where one of them is constant.
    """
    from scipy import stats

    found = stats.spearmanr(a, b)
    return float(found.statistic), float(found.pvalue)
