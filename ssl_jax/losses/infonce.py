"""One anchor against keys that are constants: a queue (MoCo, ReSSL) or the other view (MoCo v3)."""

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses.contrastive import PRECISION
from ssl_jax.losses.decoupled import von_mises_fisher_weights
from ssl_jax.models.heads import unit


def against_queue(
    q: jax.Array,
    k: jax.Array,
    queue: jax.Array,
    temperature: float,
    axis: str | None = None,
    decoupled: bool = False,
    sigma: float | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE of each query with its key, against the negatives of a queue (MoCo v1 and v2).

    With cosines s⁺ = q·k and s_j = q·n_j, j = 1 … K, averaged over the b queries,

        l = −s⁺/T + log( exp(s⁺/T) + Σ_j exp(s_j/T) ),

    the cross-entropy of K + 1 logits with the positive at index 0. With `decoupled` the positive
    leaves the denominator, which is Decoupled Contrastive Learning (DCL) on a queue,

        l = −w s⁺/T + log Σ_j exp(s_j/T),

    with w = 1, or, where `sigma` is given, DCLW's w = 2 − exp(s⁺/σ) / mean(exp(s⁺/σ)), the mean
    over the queries of all devices (`decoupled.von_mises_fisher_weights`).

    Args:
      q: floating [b, d], raw projections of the queries.
      k: floating [b, d], raw projections of their keys; no gradient flows into them. Both are
        normalised here (‖x‖ at least 1e-12), and everything is computed in float32.
      queue: float32 [K, d], rows of unit length, the same on every device; a constant.
      temperature: T > 0.
      axis: device axis or None; only the mean in the weights looks at other devices.
      decoupled: DCL.
      sigma: σ > 0 of the weights, only with `decoupled`; None: no weights.

    Returns:
      (loss float32 [], metrics), means over the local queries, float32 [] each:
        contrastive_accuracy: share of queries whose key is nearer than all of the queue, by more
          than rounding (1e-6 of cosine).
        positive_similarity: s⁺.

    Raises:
      UserError: temperature or sigma is not positive, or sigma without decoupled.
      ValueError: the shapes do not go together.

    Source: He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning",
    equation 1 and algorithm 1; facebookresearch/moco moco/builder.py. Yeh et al. 2022, "Decoupled
    Contrastive Learning", equations 5 to 7 (given there for SimCLR).
    """
    _check_temperature(temperature)
    _check_shapes(q, k, queue)
    if sigma is not None and not decoupled:
        raise UserError("the weights of the loss belong to the decoupled one; set decoupled")

    q, k = unit(q), unit(lax.stop_gradient(k))
    positive = jnp.sum(q * k, axis=-1)  # [b]
    negatives = _similarity(q, lax.stop_gradient(queue))  # [b, K]
    if decoupled:
        weight = 1.0 if sigma is None else von_mises_fisher_weights(positive, sigma, axis)
        repelled = jax.nn.logsumexp(negatives / temperature, axis=-1)
        losses = repelled - weight * positive / temperature
    else:
        logits = jnp.concatenate([positive[:, None], negatives], axis=-1) / temperature
        losses = -jax.nn.log_softmax(logits, axis=-1)[:, 0]
    metrics = {
        "contrastive_accuracy": jnp.mean(positive - jnp.max(negatives, axis=-1) > 1e-6),
        "positive_similarity": jnp.mean(positive),
    }
    return jnp.mean(losses), lax.stop_gradient(metrics)


def between_views(
    q: jax.Array, k: jax.Array, temperature: float, axis: str | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """InfoNCE of the queries of one view with the keys of the other, times 2T (MoCo v3).

    With cosines s_ij of local query i and key j of the B keys of all devices,

        l = 2T · mean_i( −log( exp(s_ii/T) / Σ_j exp(s_ij/T) ) ).

    Negatives are the other view's keys alone: no other query, no same-view key. MoCo v3's loss is
    the sum l(q1, k2) + l(q2, k1). The factor keeps the scale of the gradient as T changes.

    Args:
      q: floating [b, d], raw predictions of the queries.
      k: floating [b, d], raw projections of the keys of the same rows; no gradient flows into
        them. Both are normalised here, and everything is computed in float32.
      temperature: T > 0.
      axis: device axis or None; keys are gathered over it.

    Returns:
      (loss float32 [], metrics), means over the local queries as for `against_queue`. Averaged
      over devices (`collectives.pmean`) the loss is that of the global batch.

    Raises:
      UserError: the temperature is not positive.
      ValueError: the shapes of q and k are not one [b, d].

    Source: Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision
    Transformers", algorithm 1; facebookresearch/moco-v3 moco/builder.py, contrastive_loss.
    """
    _check_temperature(temperature)
    _check_shapes(q, k)
    q, k = unit(q), unit(lax.stop_gradient(k))
    similarity = _similarity(q, collectives.gather(k, axis))  # [b, B]
    b, B = similarity.shape
    own = jnp.arange(B) == collectives.rank(axis) * b + jnp.arange(b)[:, None]  # one True in a row
    losses = -jnp.sum(jax.nn.log_softmax(similarity / temperature, axis=-1), axis=-1, where=own)
    positive = jnp.sum(similarity, axis=-1, where=own)
    nearest = jnp.max(similarity, axis=-1, where=~own, initial=-jnp.inf)
    metrics = {
        "contrastive_accuracy": jnp.mean(positive - nearest > 1e-6),
        "positive_similarity": jnp.mean(positive),
    }
    return 2.0 * temperature * jnp.mean(losses), lax.stop_gradient(metrics)


def relation(
    student: jax.Array,
    teacher: jax.Array,
    queue: jax.Array,
    student_temperature: float,
    teacher_temperature: float,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of two views' similarities to a queue (ReSSL).

    With cosines s_j of the student's embedding and t_j of the teacher's to row j of the queue,

        l = −Σ_j softmax(t/T_t)_j · log softmax(s/T_s)_j,    averaged over the b rows.

    There is no positive: the teacher's own embedding is not among the candidates. T_t < T_s
    sharpens the target.

    Args:
      student: floating [b, d], raw projections.
      teacher: floating [b, d], raw projections of the same rows; no gradient flows into them. Both
        are normalised here, and everything is computed in float32.
      queue: float32 [K, d], rows of unit length, the same on every device; a constant.
      student_temperature: T_s > 0, 0.1 in the official code.
      teacher_temperature: T_t > 0, 0.04 there.

    Returns:
      (loss float32 [], metrics), means over the local rows, float32 [] each:
        teacher_entropy, student_entropy: of the two distributions, nats, at most log K. The loss
          is never below teacher_entropy.
        agreement: share of rows for which both are nearest to the same row of the queue.

    Raises:
      UserError: a temperature is not positive.
      ValueError: the shapes do not go together.

    Source: Zheng et al. 2021, "ReSSL: Relational Self-Supervised Learning with Weak Augmentation",
    equations 3 to 5; KyleZheng1997/ReSSL ressl.py, train.
    """
    _check_temperature(student_temperature)
    _check_temperature(teacher_temperature)
    _check_shapes(student, teacher, queue)
    queue = lax.stop_gradient(queue)
    s = _similarity(unit(student), queue)  # [b, K]
    t = _similarity(unit(lax.stop_gradient(teacher)), queue)
    log_student = jax.nn.log_softmax(s / student_temperature, axis=-1)
    log_teacher = jax.nn.log_softmax(t / teacher_temperature, axis=-1)
    target = jnp.exp(log_teacher)
    loss = -jnp.mean(jnp.sum(target * log_student, axis=-1))
    metrics = {
        "teacher_entropy": -jnp.mean(jnp.sum(target * log_teacher, axis=-1)),
        "student_entropy": -jnp.mean(jnp.sum(jnp.exp(log_student) * log_student, axis=-1)),
        "agreement": jnp.mean(jnp.argmax(s, axis=-1) == jnp.argmax(t, axis=-1)),
    }
    return loss, lax.stop_gradient(metrics)


def _similarity(x: jax.Array, candidates: jax.Array) -> jax.Array:
    """[b, d], [n, d] -> x · candidatesᵀ float32 [b, n]."""
    return jnp.einsum("bd,nd->bn", x, candidates, precision=PRECISION)


def _check_temperature(temperature: float) -> None:
    if isinstance(temperature, int | float) and temperature <= 0:
        raise UserError(f"the temperature of the loss is {temperature}; it must be above 0")


def _check_shapes(q: jax.Array, k: jax.Array, queue: jax.Array | None = None) -> None:
    if q.ndim != 2 or q.shape != k.shape:
        raise ValueError(f"embeddings of shapes {q.shape} and {k.shape}; both must be one [b, d]")
    if queue is not None and (queue.ndim != 2 or queue.shape[1] != q.shape[1]):
        raise ValueError(f"a queue of shape {queue.shape} for embeddings of shape {q.shape}")
