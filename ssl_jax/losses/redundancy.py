"""Losses on the second moments of a batch: Barlow Twins' correlations, VICReg's covariances.

Nothing is contrasted: the features of a batch, not its rows, are compared with each other. The
statistics are those of the rows of all devices, so both losses belong to the global batch.
"""

import jax
import jax.numpy as jnp

from ssl_jax.contract.precision import wide
from ssl_jax.devices import collectives
from ssl_jax.losses.contrastive import PRECISION


def standardize(z: jax.Array, axis: str | None = None, epsilon: float = 1e-5) -> jax.Array:
    """(z − mean) / √(var + epsilon) per feature: BatchNorm without parameters or running values.

    The variance is biased (÷ B) and taken around the mean in a second pass: features of a small
    spread far from 0 keep their digits.

    Args:
      z: floating [b, d], rows of this device.
      axis: device axis or None; mean and variance are those of all B rows, gradients included.
      epsilon: added to the variance.

    Returns:
      float32 [b, d].
    """
    z = wide(z)
    z = z - collectives.pmean(jnp.mean(z, 0), axis)
    variance = collectives.pmean(jnp.mean(jnp.square(z), 0), axis)
    return z * jax.lax.rsqrt(variance + epsilon)


def cross_correlation(z1: jax.Array, z2: jax.Array, axis: str | None = None) -> jax.Array:
    """c_ij = 1/B Σ_n ẑ1_ni ẑ2_nj, the correlation of feature i of view 1 with feature j of view 2.

    Each ẑ is `standardize`d on its own, so c_ij lies in [−1, 1] (short of ±1 by epsilon).

    Args:
      z1, z2: floating [b, d], rows of this device, row n of both from one image.
      axis: device axis or None.

    Returns:
      float32 [d, d], that of all B rows, the same on every device. Its gradient is the global
      one: averaged over the devices, what reaches the parameters is what a single device with all
      rows would give them.

    Raises:
      ValueError: the shapes of the views are not one [b, d].
    """
    check(z1, z2)
    z1, z2 = standardize(z1, axis), standardize(z2, axis)
    # [d, b] @ [b, d]; rows of the other devices come in by the mean of d² numbers.
    return collectives.pmean(jnp.matmul(z1.T, z2, precision=PRECISION) / len(z1), axis)


def barlow_twins(z1: jax.Array, z2: jax.Array, axis: str | None = None) -> dict[str, jax.Array]:
    """The two terms of Barlow Twins, of the global batch.

    With the `cross_correlation` c of the two views

        invariance = Σ_i (1 − c_ii)²,    redundancy = Σ_i Σ_{j ≠ i} c_ij²

    and the loss is invariance + λ · redundancy, λ = 0.0051: sums over the features, not means.

    In the official code the all-reduce of c is outside autograd. With W processes its gradient is
    therefore 1/W of the gradient of the loss that it reports (measured: exactly, with synchronised
    BatchNorm). Here the gradient is that of the loss, whatever the device count.

    Args:
      z1, z2: floating [b, d], raw projections of the two views, row n of both from one image.
        Everything is computed in float32.
      axis: device axis or None.

    Returns:
      {'invariance', 'redundancy'}, float32 [] each, the same on every device.

    Raises:
      ValueError: the shapes of the views are not one [b, d].

    Source: Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy Reduction",
    equations 1 and 2; facebookresearch/barlowtwins main.py, BarlowTwins.forward.
    """
    c = cross_correlation(z1, z2, axis)
    diagonal = jnp.diagonal(c)
    return {
        "invariance": jnp.sum(jnp.square(1 - diagonal)),
        "redundancy": off_diagonal_squares(c),
    }


def covariance(z: jax.Array, axis: str | None = None) -> jax.Array:
    """1/(B − 1) Σ_n (z_n − mean)(z_n − mean)ᵀ over the rows of all devices.

    Args:
      z: floating [b, d], rows of this device.
      axis: device axis or None.

    Returns:
      float32 [d, d], the same on every device, with the global gradient.

    Raises:
      ValueError: there is only one row.
    """
    rows = len(z) * collectives.size(axis)
    if rows < 2:
        raise ValueError("the covariance needs at least two rows")
    z = wide(z)
    z = z - collectives.pmean(jnp.mean(z, 0), axis)
    mean = collectives.pmean(jnp.matmul(z.T, z, precision=PRECISION) / len(z), axis)
    return mean * (rows / (rows - 1))


def vicreg(z1: jax.Array, z2: jax.Array, axis: str | None = None) -> dict[str, jax.Array]:
    """The three terms of VICReg.

    With C(z) the `covariance` of a view over the global batch

        invariance = mean over rows and features of (z1 − z2)²
        variance   = mean over views and features of max(0, 1 − √(C(z)_jj + 1e-4))
        covariance = Σ over views of 1/d Σ_j Σ_{k ≠ j} C(z)_jk²

    and the loss is 25 · invariance + 25 · variance + 1 · covariance. This is the code. The paper's
    invariance (equation 5) is not divided by d, its variance (equation 6) sums the two views; with
    the same coefficients, solo-learn's variance is that sum.

    Args:
      z1, z2: floating [b, d], raw projections of the two views, row n of both from one image.
        Everything is computed in float32.
      axis: device axis or None.

    Returns:
      {'invariance', 'variance', 'covariance'}, float32 [] each. The first is the mean over the
      local rows, the others belong to the global batch and are the same on every device. Averaged
      over the devices, values and gradients are those of a single device with all rows.

    Raises:
      ValueError: the shapes of the views are not one [b, d], or there is only one row.

    Source: Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for
    Self-Supervised Learning"; facebookresearch/vicreg main_vicreg.py, VICReg.forward.
    """
    check(z1, z2)
    invariance = jnp.mean(jnp.square(wide(z1) - wide(z2)))
    variance = decorrelation = 0.0
    for z in (z1, z2):
        c = covariance(z, axis)
        deviation = jnp.sqrt(jnp.diagonal(c) + 1e-4)
        variance += jnp.mean(jax.nn.relu(1 - deviation)) / 2
        decorrelation += off_diagonal_squares(c) / len(c)
    return {"invariance": invariance, "variance": variance, "covariance": decorrelation}


def off_diagonal_squares(c: jax.Array) -> jax.Array:
    """Σ_i Σ_{j ≠ i} c_ij², both triangles. [d, d] -> []."""
    # The diagonal is taken out before squaring; subtracted afterwards it would leave its rounding.
    return jnp.sum(jnp.square(c - jnp.diag(jnp.diagonal(c))))


def check(z1: jax.Array, z2: jax.Array) -> None:
    """Raises ValueError unless the two views are of one shape [b, d]."""
    if z1.ndim != 2 or z1.shape != z2.shape:
        raise ValueError(f"views of shapes {z1.shape} and {z2.shape}; both must be one [b, d]")
