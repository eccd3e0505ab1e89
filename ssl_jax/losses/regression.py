"""One embedding regressed onto another, by direction alone: the losses of BYOL and SimSiam.

Both are the cosine in another scale: ‖p̂ − ẑ‖² = 2 − 2 cos(p, z). No gradient is stopped here;
which side learns is the method's affair.
"""

import jax
import jax.numpy as jnp

from ssl_jax.losses.contrastive import normalize


def squared_distance(p: jax.Array, z: jax.Array) -> jax.Array:
    """Mean squared distance of the rows at unit length:

        mean_i ‖ p_i/‖p_i‖ − z_i/‖z_i‖ ‖² = mean_i (2 − 2 cos(p_i, z_i)),   in [0, 4].

    BYOL adds the two directions, l(p1, z2) + l(p2, z1). Its code sums over the d features and
    averages over the rows; a mean over all numbers would be d times smaller.

    Args:
      p: floating [b, d], predictions, raw: they are normalised here, in float32, each by
        max(‖p_i‖, 1e-6).
      z: floating [b, d], targets, raw; row i of both from one image.

    Returns:
      float32 [].

    Raises:
      ValueError: the shapes are not one [b, d].

    Source: Grill et al. 2020, "Bootstrap Your Own Latent", equation 2; deepmind-research
    byol/utils/helpers.py, regression_loss and l2_normalize.
    """
    _check(p, z)
    return jnp.mean(jnp.sum(jnp.square(normalize(p) - normalize(z)), axis=-1))


def negative_cosine(p: jax.Array, z: jax.Array) -> jax.Array:
    """Mean negative cosine of the rows:

        −mean_i cos(p_i, z_i),   in [−1, 1].

    SimSiam takes the mean of the two directions, l(p1, z2)/2 + l(p2, z1)/2.

    Args:
      p: floating [b, d], predictions, raw: they are normalised here, in float32, each by
        max(‖p_i‖, 1e-8).
      z: floating [b, d], targets, raw; row i of both from one image.

    Returns:
      float32 [].

    Raises:
      ValueError: the shapes are not one [b, d].

    Source: Chen & He 2021, "Exploring Simple Siamese Representation Learning", equation 1;
    facebookresearch/simsiam main_simsiam.py, train: torch.nn.CosineSimilarity, its eps 1e-8.
    """
    _check(p, z)
    return -jnp.mean(jnp.sum(normalize(p, 1e-16) * normalize(z, 1e-16), axis=-1))


def _check(p, z):
    if p.ndim != 2 or p.shape != z.shape:
        raise ValueError(
            f"predictions of shape {p.shape}, targets of {z.shape}; both must be one [b, d]"
        )
