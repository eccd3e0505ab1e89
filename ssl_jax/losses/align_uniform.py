"""Alignment and uniformity of unit vectors (Wang & Isola 2020, "Understanding Contrastive
Representation Learning through Alignment and Uniformity on the Hypersphere";
SsnL/align_uniform align_uniform/__init__.py).

What a contrastive loss makes of many negatives, taken apart: positives near each other, everything
spread over the sphere. Low is good for both.
"""

import chex
import jax
import jax.numpy as jnp

from ssl_jax.contract.precision import wide
from ssl_jax.losses.contrastive import PRECISION


def alignment(x: jax.Array, y: jax.Array, alpha: float = 2.0) -> jax.Array:
    """mean_n ‖x_n − y_n‖^α; between unit vectors, with α = 2, from 0 to 4.

    Args:
      x, y: float [n, d], row n of both from one image, of length 1.
      alpha: α > 0.

    Returns:
      float32 [].

    Raises:
      AssertionError: another shape of y, which might be broadcast.
    """
    chex.assert_equal_shape([x, y])
    difference = wide(x) - wide(y)
    return jnp.mean(jnp.sum(jnp.square(difference), 1) ** (alpha / 2))


def uniformity(x: jax.Array, t: float = 2.0) -> jax.Array:
    """log of the mean of exp(−t ‖x_i − x_j‖²) over the n (n − 1) / 2 pairs of different rows.

    0 where all are alike; evenly over a sphere of many dimensions about −2 t, the least for t = 2
    being −4 (appendix A of the paper).

    Args:
      x: float [n, d], of length 1, n ≥ 2. Memory n² · 4 bytes.
      t: t > 0.

    Returns:
      float32 [].
    """
    x = wide(x)
    n = len(x)
    squares = jnp.sum(jnp.square(x), 1)
    # [n, d] @ [d, n] -> [n, n]
    distance = squares[:, None] + squares - 2 * jnp.matmul(x, x.T, precision=PRECISION)
    other = ~jnp.eye(n, dtype=bool)
    exponent = jnp.where(other, -t * jnp.maximum(distance, 0), -jnp.inf)
    return jax.nn.logsumexp(exponent) - jnp.log(n * (n - 1.0))
