"""Losses of masked image modelling: the hidden patches told from the visible ones."""

import jax
import jax.numpy as jnp

from ssl_jax.contract.precision import wide
from ssl_jax.devices import collectives


def normalised_patches(patches: jax.Array, eps: float = 1e-6) -> jax.Array:
    """Every patch with mean 0 and variance 1: (x − mean) / (var + eps)^½.

    The variance is the unbiased one (÷ d − 1, torch.var's default); the paper speaks of "the mean
    and standard deviation of all pixels in a patch". A patch of one value becomes 0.

    Args:
      patches: floating [..., d], the d = p·p·C values of a patch, all channels together.
      eps: added to the variance.

    Returns:
      float32 [..., d].

    Raises:
      ValueError: a patch has a single value, and so no variance.

    Source: He et al. 2021 (MAE), section 3; facebookresearch/mae models_mae.py, forward_loss with
    norm_pix_loss.
    """
    if patches.shape[-1] < 2:
        raise ValueError("normalised_patches: a patch of one value has no variance")
    patches = wide(patches)
    mean = jnp.mean(patches, -1, keepdims=True)
    variance = jnp.var(patches, -1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + eps)


def masked_mse(
    prediction: jax.Array, target: jax.Array, mask: jax.Array, axis: str | None = None
) -> jax.Array:
    """Mean squared error over the hidden patches.

        Σ_bn m_bn · (1/d) Σ_d (prediction − target)²  /  Σ_bn m_bn,   m_bn = 1 where hidden

    Both sums run over the batch of all devices: every hidden patch weighs the same, also where
    images hide different numbers of them. Returned is the local share of it, whose mean over the
    devices (`collectives.pmean`) is this loss.

    Args:
      prediction, target: floating [b, N, d].
      mask: [b, N], bool or numbers in [0, 1]; true where the patch is hidden from the encoder.
      axis: device axis or None.

    Returns:
      float32 [], at least 0; 0 where nothing is hidden.

    Raises:
      ValueError: the shapes do not fit each other.

    Source: facebookresearch/mae models_mae.py, forward_loss.
    """
    if prediction.shape != target.shape or mask.shape != target.shape[:-1]:
        raise ValueError(
            f"prediction {prediction.shape}, target {target.shape} and mask {mask.shape}; "
            f"they must be [b, N, d], the same, and [b, N]"
        )
    mask = mask.astype(jnp.float32)
    difference = wide(prediction) - wide(target)
    error = jnp.mean(jnp.square(difference), -1)  # [b, N]
    count = collectives.pmean(jnp.sum(mask), axis)
    return jnp.sum(error * mask) / jnp.where(count > 0, count, 1.0)


def explained(
    value: jax.Array, target: jax.Array, mask: jax.Array, axis: str | None = None
) -> jax.Array:
    """1 − masked_mse / masked_mse of telling every hidden patch its own mean, a metric.

    Args:
      value: float32 [], what `masked_mse` returned.
      target, mask, axis: as for `masked_mse`.

    Returns:
      float32 []; 1: all pixels are right, 0: the structure within the patches is not.
    """
    flat = jnp.broadcast_to(jnp.mean(target, -1, keepdims=True), target.shape)
    plain = collectives.pmean(masked_mse(flat, target, mask, axis), axis)
    return 1 - value / jnp.maximum(plain, 1e-6)
