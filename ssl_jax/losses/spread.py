"""Spread of the embeddings of a batch, which tells a collapse where it begins: before the loss."""

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.precision import wide
from ssl_jax.devices import collectives
from ssl_jax.losses.contrastive import PRECISION

DIMENSIONS = 128  # looked at; a collapse shows in any of them, and all of 8,192 would be slow


def spread(z: jax.Array, axis: str | None) -> dict[str, jax.Array]:
    """How far embeddings are spread, and over how many directions.

    With u = z / ‖z‖ and C the covariance of (the first DIMENSIONS of) u over all rows,

        embedding_std = mean_j √C_jj · √d         the std of Chen and He 2021 ("SimSiam", figure 2),
                                                  relative to that of isotropic vectors: 1. All
                                                  rows alike: 0.
        embedding_rank = (tr C)² / tr(C²)         participation ratio: m, where m directions share
                                                  the variance equally. On a line: 1.

    Metrics without a gradient. `evaluate/health/collapse.py` measures the encoder's features, at
    leisure; this is what the loss sees, in every step.

    Args:
      z: [..., d], any finite scale; rows of this device.
      axis: device axis or None.

    Returns:
      {'embedding_std', 'embedding_rank'}: float32 [], the same on every device.
    """
    z = lax.stop_gradient(wide(z.reshape(-1, z.shape[-1])))
    z = z / jnp.maximum(jnp.max(jnp.abs(z), 1, keepdims=True), 1e-30)  # no square overflows
    u = z / jnp.maximum(jnp.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    u = u[:, :DIMENSIONS]
    # The mean first: a difference of moments would be rounding where all rows are alike.
    u = u - collectives.pmean(jnp.mean(u, 0), axis)
    # [D, n] @ [n, D] -> [D, D]
    covariance = collectives.pmean(jnp.matmul(u.T, u, precision=PRECISION) / len(u), axis)
    variance = jnp.diagonal(covariance)
    total, squares = jnp.sum(variance), jnp.sum(jnp.square(covariance))
    rank = jnp.square(total) / jnp.where(squares > 0, squares, 1)
    return {
        "embedding_std": jnp.mean(jnp.sqrt(variance)) * jnp.sqrt(1.0 * z.shape[1]),
        "embedding_rank": jnp.maximum(rank, 1),
    }
