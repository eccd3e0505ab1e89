"""Collapse monitors: is the representation still worth anything? No labels needed.

Two things go wrong. Complete collapse: every image is mapped to the same vector. Dimensional
collapse: vectors differ, but only along a few directions. The first is measured as SimSiam does,
the second as RankMe does, on the encoder's features, which probing uses. The projector's output
goes first: what a step says of it (`losses.spread`) is judged here as well.
"""

import math

import jax
import jax.numpy as jnp

STD_RATIO = 0.02  # complete collapse of features below; see `alarm`
EMBEDDING_STD, EMBEDDING_RANK = 0.1, 1.5  # of embeddings; see `embedding_alarm`


def rank_threshold(d: int) -> float:
    """Effective rank below which `alarm` speaks of dimensional collapse; see there."""
    return min(max(4.0, d / 100), d / 4)


@jax.jit
def measure(features: jax.Array) -> dict[str, jax.Array]:
    """Spread and rank of features, from one matrix of them.

    feature_std = mean over dimensions j of std over rows i of z_ij / ‖z_i‖ (biased std).
      Chen and He 2021, "Exploring Simple Siamese Representation Learning", section 4.1, figure 2.
      0 when all rows point the same way; 1/sqrt(d) for an isotropic Gaussian of zero mean.
    feature_std_ratio = feature_std · sqrt(d), comparable between widths, in [0, 1]. It is at most
      sqrt(1 − mean cosine of two rows).
    effective_rank = exp(−Σ_k p_k log p_k), p_k = σ_k / Σ_j σ_j + 1e-7, σ the singular values of
      the features as they are: not centred and not normalised. Garrido et al. 2023, "RankMe",
      equations 1 and 2. In [1, min(n, d)]. A mean far from the origin, as after ReLU and
      pooling, counts as one strong direction and lowers it.

    The singular values are those of R in a QR decomposition, exact to float32. The eigenvalues
    of the d×d Gram matrix would be cheaper by nothing measurable, but they square the condition
    number: for a spectrum k^-2 at d = 2048 they make 4.4 of an effective rank of 3.35.

    Args:
      features: float [n, d], any finite scale; a few thousand rows are plenty. Memory 2·n·d.

    Returns:
      {'feature_std', 'feature_std_ratio', 'effective_rank': float32 [], 'singular_values':
      float32 [min(n, d)], descending}.
    """
    z = features.astype(jnp.float32)
    n, d = z.shape
    unit = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    std = jnp.mean(jnp.std(unit, axis=0))
    tall = z if n >= d else z.T  # the same singular values, the smaller R
    r = jnp.linalg.qr(tall, mode="r")  # [max(n, d), s] -> [s, s], s = min(n, d)
    sigma = jnp.linalg.svd(r, compute_uv=False)
    return {
        "feature_std": std,
        "feature_std_ratio": std * math.sqrt(d),
        "effective_rank": effective_rank(sigma),
        "singular_values": sigma,
    }


def effective_rank(singular_values: jax.Array) -> jax.Array:
    """RankMe of a spectrum, float32 []; formula in `measure`. A spectrum of zeros gives 1
    (to 1e-5: the 1e-7 inside the logarithm is RankMe's guard against log 0)."""
    total = jnp.sum(singular_values)
    p = singular_values / jnp.where(total > 0, total, 1) + 1e-7
    return jnp.exp(-jnp.sum(p * jnp.log(p)))


def alarm(std_ratio: float, effective_rank: float, d: int) -> str | None:
    """Says in words that features have collapsed, or None.

    Complete collapse: std_ratio < 0.02, that is, two images have a mean cosine above 0.9996.
    Dimensional collapse: effective_rank < max(4, d/100), but never above d/4.

    Both are set to stay silent on anything that still learns. Measured (std_ratio, effective
    rank; n = 1000, or 4000 at d = 2048; "offset": a mean three times the mean deviation added to
    every dimension, which is what ReLU features look like):

                                              d = 128      d = 512      d = 2048
        isotropic                             1.00, 126    1.00, 473    1.00, 1895
        isotropic, offset                     0.32,  75    0.32, 319    0.32, 1464
        spectrum k^-1                         0.95,  45    0.95, 107    0.95,  257
        spectrum k^-1, offset                 0.28,  18    0.29,  37    0.29,   80
        spectrum k^-2, offset                 0.26, 3.3    0.26, 3.3    0.26,  3.3   dimensional
        one direction + 0.1% noise            0.78, 1.1    0.79, 1.3    0.80,  1.6   dimensional
        one vector + 1% noise                 0.01, 2.2    0.01, 4.6    0.01,   17   complete
        small ConvNet, digits, untrained      0.24,  39
        the same, least in 300 SimCLR steps   0.14,  12

    Args:
      std_ratio: 'feature_std_ratio' of `measure`.
      effective_rank: 'effective_rank' of `measure`.
      d: width of the features.

    Returns:
      one sentence, or None. Values that are not finite are reported as such.
    """
    if not (math.isfinite(std_ratio) and math.isfinite(effective_rank)):
        return "the features are not finite: training has diverged"
    if std_ratio < STD_RATIO:
        return (
            f"complete collapse: all images get nearly the same features "
            f"(std is {std_ratio:.4f} of an isotropic one, alarm below {STD_RATIO})"
        )
    if effective_rank < rank_threshold(d):
        return (
            f"dimensional collapse: the features use about {effective_rank:.1f} of {d} dimensions "
            f"(alarm below {rank_threshold(d):.1f})"
        )
    return None


def embedding_alarm(embedding_std: float, embedding_rank: float) -> str | None:
    """Says in words that embeddings, the projector's output, have collapsed, or None.

    Encoders hold out: with the ablations of SimSiam, BYOL and SwAV that collapse in the papers, the
    features on the digits stay spread (std ratio 0.3 to 0.5, effective rank above 10), while the
    embeddings do not (docs/results.md).

    Complete collapse: embedding_std < 0.1. A mean cosine of two images above 0.99 is always below
    it; so are embeddings that differ in a few of many dimensions.
    Dimensional collapse: embedding_rank < 1.5. What counts are the embeddings as they are: a loss
    that takes scale or mean off first (Barlow Twins, DINO) may still see more.

    Args:
      embedding_std, embedding_rank: of `losses.spread.spread`.

    Returns:
      one sentence, or None. Values that are not finite are reported as such.
    """
    if not (math.isfinite(embedding_std) and math.isfinite(embedding_rank)):
        return "the embeddings are not finite: training has diverged"
    if embedding_std < EMBEDDING_STD:
        return (
            f"complete collapse of the embeddings: all images are projected to nearly the same "
            f"vector (std is {embedding_std:.4f} of an isotropic one, alarm below {EMBEDDING_STD})"
        )
    if embedding_rank < EMBEDDING_RANK:
        return (
            f"dimensional collapse of the embeddings: they vary along {embedding_rank:.2f} "
            f"directions (alarm below {EMBEDDING_RANK})"
        )
    return None
