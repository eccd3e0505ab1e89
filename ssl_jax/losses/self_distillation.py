"""The loss of DINO: a student learns the teacher's distribution over K outputs, across views."""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.precision import wide
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses.contrastive import PRECISION


def centred_targets(teacher: jax.Array, centre: jax.Array, temperature: jax.Array) -> jax.Array:
    """softmax((t − c) / τ): the teacher's distributions, centred and sharpened.

    Centring alone leads to uniform targets, sharpening alone to one output for everything; together
    they keep both collapses away.

    Args:
      teacher: floating [b, g, K], raw logits of the g global views.
      centre: c float32 [K], as it was before this batch; zeros: no centring.
      temperature: τ > 0, float32 [] or a number.

    Returns:
      float32 [b, g, K], without gradient.

    Raises:
      UserError: temperature is not positive.
      AssertionError: a centre of another shape, which might be broadcast.

    Source: Caron et al. 2021 (DINO), equation 1 and algorithm 1; facebookresearch/dino
    main_dino.py, DINOLoss.forward.
    """
    _check_temperature("teacher", temperature)
    chex.assert_shape(centre, teacher.shape[-1:])
    teacher = wide(lax.stop_gradient(teacher))
    return jax.nn.softmax((teacher - lax.stop_gradient(centre)) / temperature)


def sinkhorn_targets(
    teacher: jax.Array, temperature: jax.Array, iterations: int = 3, axis: str | None = None
) -> jax.Array:
    """exp(t / τ), scaled until every output has the same share of the global batch.

    Each iteration divides by the sum over all views of all devices, per output, and then by the sum
    over the outputs, per view. It is `clustering.sinkhorn` with logits that stay on their device:
    there are too many outputs to gather.

    Args:
      teacher: floating [b, g, K], raw logits of the g global views.
      temperature: τ > 0, float32 [] or a number.
      iterations: ≥ 1.
      axis: device axis or None; one sum of K numbers travels per iteration.

    Returns:
      float32 [b, g, K], rows that sum to 1, without gradient.

    Raises:
      UserError: temperature or iterations is not positive.

    Source: Caron et al. 2020 (SwAV); facebookresearch/dinov2 dinov2/loss/dino_clstoken_loss.py,
    sinkhorn_knopp_teacher. Its factors 1/K, 1/B and the first total cancel in the last division.
    """
    _check_temperature("teacher", temperature)
    if iterations < 1:
        raise UserError(f"Sinkhorn needs at least 1 iteration, not {iterations}")
    q = wide(lax.stop_gradient(teacher)) / temperature
    for _ in range(iterations):
        here = jax.nn.logsumexp(q, (0, 1))  # [K]
        q = q - jax.nn.logsumexp(collectives.gather(here[None], axis), 0)  # [devices, K] -> [K]
        q = jax.nn.log_softmax(q)
    return jnp.exp(q)


def cross_view(student: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Cross-entropy of the student's views with the targets of the other views.

        −1/P Σ_{i ≠ j} q_i · log softmax(s_j / T),  i of the g targets, j of the v student views,

    averaged over the local rows, P = g (v − 1) pairs: a target never meets its own view.

    Args:
      student: floating [b, v, K], raw logits; views 0 … g − 1 are those of the targets.
      targets: float32 [b, g, K], distributions. No gradient flows into them.
      temperature: T > 0, of the student.

    Returns:
      float32 [], the mean over the local rows.

    Raises:
      UserError: temperature is not positive.
      ValueError: shapes that do not fit, or no pair of different views.

    Source: Caron et al. 2021 (DINO), equation 3; facebookresearch/dino main_dino.py,
    DINOLoss.forward. Algorithm 1 of the paper halves the sum of two pairs, which is the same mean.
    """
    _check_temperature("student", temperature)
    (b, v, k), (rows, g, outputs) = student.shape, targets.shape
    if (rows, outputs) != (b, k) or not 1 <= g <= v or v < 2:
        raise ValueError(
            f"student {student.shape} and targets {targets.shape} must be [b, v, K] and "
            "[b, g, K] with g ≤ v and v ≥ 2"
        )
    log_p = jax.nn.log_softmax(wide(student) / temperature)
    pairs = -jnp.einsum("bgk,bvk->gv", lax.stop_gradient(targets), log_p, precision=PRECISION)
    other = 1.0 - jnp.eye(g, v)
    return jnp.sum(pairs * other) / (b * g * (v - 1))


def update_centre(
    centre: jax.Array, teacher: jax.Array, momentum: float, axis: str | None = None
) -> jax.Array:
    """m c + (1 − m) · mean of the raw logits over all views of all devices.

    Args:
      centre: c float32 [K].
      teacher: floating [b, g, K], raw logits, without temperature or centre.
      momentum: m in [0, 1].
      axis: device axis or None.

    Returns:
      float32 [K], equal on every device.

    Source: Caron et al. 2021 (DINO), equation 4; facebookresearch/dino main_dino.py,
    DINOLoss.update_center.
    """
    teacher = wide(lax.stop_gradient(teacher))
    mean = collectives.pmean(jnp.mean(teacher, (0, 1)), axis)
    return momentum * centre + (1 - momentum) * mean


def _check_temperature(whose: str, temperature: jax.Array | float) -> None:
    if isinstance(temperature, int | float) and temperature <= 0:
        raise UserError(f"the {whose}'s temperature is {temperature}; it must be above 0")
