"""Cluster assignments and their prediction: SwAV, DeepCluster-v2, SeLa-v2.

K prototypes are the columns of a kernel [d, K], which is what `heads.Prototypes` learns. Over a
memory of N examples the K × N scores are never held at once: rows are taken `chunk` at a time.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.precision import wide
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses.contrastive import PRECISION
from ssl_jax.models.heads import unit

UNLABELLED = -100  # the label of an example that has none (PyTorch's ignore_index)
CHUNK = 8192  # rows of a memory that are compared at a time


def scores(z: jax.Array, kernel: jax.Array) -> jax.Array:
    """z @ kernel: the cosines of embeddings and prototypes, where both have unit length.

    Args:
      z: float32 [..., d].
      kernel: float32 [d, K].

    Returns:
      float32 [..., K].
    """
    return jnp.matmul(z, kernel, precision=PRECISION)


def sinkhorn(scores: jax.Array, epsilon: float, iterations: int) -> jax.Array:
    """Assignments Q of n rows to K prototypes that use every prototype alike.

    From Q = exp(scores / ε), every iteration makes the prototypes equal, Σ_n Q_nk = 1/K, and then
    the rows, Σ_k Q_nk = 1/n; the result is n·Q, so every row sums to 1. That is Sinkhorn–Knopp for
    max_Q ⟨Q, scores⟩ + ε·entropy(Q) over the Q with these sums; few iterations leave the prototypes
    only nearly equal. Factors common to all of Q cancel, so it is done on log Q, where no
    exponential can overflow or vanish; the official code exponentiates first, which is the same as
    long as none does.

    Args:
      scores: float32 [..., n, K], rows of ALL devices (`collectives.gather`), the queue's included;
        each [n, K] is balanced on its own.
      epsilon: ε > 0; small is sharp.
      iterations: of both steps; 0: the softmax of the scores / ε, without any balance.

    Returns:
      float32 [..., n, K], rows sum to 1. No gradient flows through it.

    Raises:
      UserError: epsilon is not positive, or iterations negative.

    Source: Caron et al. 2020 (SwAV), equations 3 to 5; facebookresearch/swav main_swav.py,
    distributed_sinkhorn.
    """
    if epsilon <= 0:
        raise UserError(f"epsilon of Sinkhorn is {epsilon}; it must be above 0")
    if iterations < 0:
        raise UserError(f"iterations of Sinkhorn are {iterations}; they must not be negative")

    def balance(_, log_q):
        return jax.nn.log_softmax(jax.nn.log_softmax(log_q, axis=-2), axis=-1)

    log_q = wide(lax.stop_gradient(scores)) / epsilon
    return jax.nn.softmax(lax.fori_loop(0, iterations, balance, log_q), axis=-1)


def swapped_cross_entropy(scores: jax.Array, q: jax.Array, temperature: float) -> jax.Array:
    """Every view predicts the assignments of the others.

        −1/A Σ_a 1/(V−1) Σ_{v ≠ a} mean_b Σ_k q_bak log softmax_k(scores_bv / T)

    Args:
      scores: float32 [b, V, K] of all V views, those with assignments first.
      q: float32 [b, A, K], A ≤ V: assignments of the first A views. Constants to the gradient.
      temperature: T > 0.

    Returns:
      float32 [], the mean over the local rows.

    Raises:
      UserError: temperature is not positive.
      ValueError: the shapes do not fit, or there is no other view.

    Source: Caron et al. 2020 (SwAV), equations 1, 2 and 6; facebookresearch/swav main_swav.py,
    train. The paper sums over pairs of views; the code takes the means above.
    """
    if temperature <= 0:
        raise UserError(f"the temperature of the loss is {temperature}; it must be above 0")
    b, views, k = scores.shape
    assigned = q.shape[1]
    if q.shape != (b, assigned, k) or not 1 <= assigned <= views or views < 2:
        raise ValueError(f"scores {scores.shape} and assignments {q.shape} do not fit")
    log_p = jax.nn.log_softmax(wide(scores) / temperature, axis=-1)
    q = wide(lax.stop_gradient(q))
    pairs = -jnp.einsum("bak,bvk->av", q, log_p, precision=PRECISION) / b
    return jnp.sum(pairs * (1 - jnp.eye(assigned, views))) / (assigned * (views - 1))


def pseudo_label_cross_entropy(
    scores: jax.Array, labels: jax.Array, temperature: float, axis: str | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Every view predicts the label of its example; rows without a label drop out of the mean.

    The mean is over the labelled rows of all devices, and 0 if there is none: numerator and
    denominator are averaged over the devices apart, as devices differ in how many rows they hold.
    (The official code takes the mean on each process and averages the gradients.)

    Args:
      scores: float32 [b, V, K].
      labels: int32 [b]; negative: without a label.
      temperature: T > 0.
      axis: device axis or None.

    Returns:
      (loss float32 [], equal on every device; metrics, float32 [] each: `labelled`, the share of
      rows with a label; `accuracy`, the share of their views whose best prototype is the label).

    Raises:
      UserError: temperature is not positive.

    Source: Caron et al. 2020 (SwAV), appendix D, equation 8; facebookresearch/swav
    main_deepclusterv2.py, train.
    """
    if temperature <= 0:
        raise UserError(f"the temperature of the loss is {temperature}; it must be above 0")
    known = labels >= 0
    index = jnp.where(known, labels, 0)[:, None]  # [b, 1]
    log_p = jax.nn.log_softmax(wide(scores) / temperature, axis=-1)
    losses = -jnp.take_along_axis(log_p, index[..., None], axis=-1).mean((1, 2))  # [b]
    hits = jnp.mean(jnp.argmax(scores, -1) == index, axis=1)  # [b]
    sums = [jnp.mean(jnp.where(known, x, 0.0)) for x in (losses, hits, jnp.ones_like(losses))]
    loss, hit, share = collectives.pmean(sums, axis)
    divisor = jnp.where(share > 0, share, 1.0)
    return loss / divisor, {"accuracy": hit / divisor, "labelled": share}


def store(bank: jax.Array, index: jax.Array, rows: jax.Array) -> jax.Array:
    """The bank with rows written at `index`; of rows with one index, the last stays.

    Scattering equal indices would leave any of them, on another device perhaps another.

    Args:
      bank: [N, …].
      index: int32 [n], in [0, N).
      rows: [n, …], gathered: equal on every device.

    Returns:
      like bank.
    """
    place = jnp.arange(len(index))
    last = jnp.zeros(len(bank), place.dtype).at[index].max(place)
    index = jnp.where(last[index] == place, index, len(bank))
    return bank.at[index].set(rows.astype(bank.dtype), mode="drop")


def draw_members(key: jax.Array, member: jax.Array, count: int) -> jax.Array:
    """`count` different examples of the memory, drawn without preference.

    Args:
      key: typed key [].
      member: bool [N], at least `count` of them True.
      count: how many.

    Returns:
      int32 [count], their indices.
    """
    noise = jnp.where(member, jax.random.uniform(key, member.shape), -1.0)
    return lax.top_k(noise, count)[1]


def spherical_kmeans(
    x: jax.Array, member: jax.Array, centroids: jax.Array, iterations: int, chunk: int = CHUNK
) -> tuple[jax.Array, jax.Array]:
    """k-means of unit vectors by their cosine.

    Every iteration assigns each member to the centroid with the largest cosine (the first of equal
    ones) and then makes each centroid the mean of its members, scaled to unit length; a centroid
    without members stays. The labels come from one more assignment after the last iteration.

    Args:
      x: float32 [N, d], rows of unit length.
      member: bool [N]; the other rows take no part.
      centroids: float32 [d, K], where to begin (columns).
      iterations: of assignment and mean.
      chunk: rows that are compared at a time.

    Returns:
      (centroids float32 [d, K], labels int32 [N], UNLABELLED where not a member).

    Source: Caron et al. 2020 (SwAV), appendix D, equation 11; facebookresearch/swav
    main_deepclusterv2.py, cluster_memory.
    """
    count = centroids.shape[1]

    def improve(_, centroids):
        def add(carry, block):
            sums, sizes = carry  # [d, K], [K]
            mine = block.take(x)
            nearest = jnp.argmax(scores(mine, centroids), axis=1)
            one_hot = jax.nn.one_hot(nearest, count) * (block.new & block.take(member))[:, None]
            # A product, not a scatter: its sum has one order on every device and in every run.
            sums += jnp.matmul(mine.T, one_hot, precision=PRECISION)
            return sums, sizes + one_hot.sum(0)

        nothing = jnp.zeros_like(centroids), jnp.zeros(count)
        sums, sizes = _over_blocks(add, nothing, len(x), chunk)
        return unit(jnp.where(sizes > 0, sums / jnp.maximum(sizes, 1), centroids), 0)

    centroids = lax.fori_loop(0, iterations, improve, centroids)
    return centroids, _best(lambda block: scores(block.take(x), centroids), member, chunk)


def balanced_labels(
    x: jax.Array,
    member: jax.Array,
    kernel: jax.Array,
    temperature: float,
    sharpness: float,
    iterations: int,
    tolerance: float = 0.1,
    chunk: int = CHUNK,
) -> tuple[jax.Array, jax.Array]:
    """Labels of a memory that give every prototype alike many examples (SeLa).

    With p_kn = softmax_k(x_n · kernel / T) and its power P = p^λ, Sinkhorn–Knopp seeks r [K] and
    c [N] such that Q = diag(r) P diag(c) has row sums 1/K and column sums 1/N:

        r_k = 1 / (K Σ_n P_kn c_n),   c_n = 1 / (N Σ_k r_k P_kn),   from c = 1/N,

    until Σ_n |c_n / c'_n − 1| ≤ tolerance, c' the next c, which is looked at in iterations 0, 10,
    20, …, or for `iterations`. The label of n is the k with the largest Q_kn, which is that of the
    largest λ log p_kn + log r_k. r and c are kept as logarithms and P is made anew in every
    iteration, a pass over the memory. In float32 the sum over very many examples may stay above
    the tolerance; the official code is in float64 and has no bound on its iterations.

    Args:
      x: float32 [N, d].
      member: bool [N]; the other rows take no part.
      kernel: float32 [d, K].
      temperature: T > 0.
      sharpness: λ > 0, the inverse strength of the entropy.
      iterations: at most so many.
      tolerance: as above.
      chunk: rows that are compared at a time.

    Returns:
      (labels int32 [N], UNLABELLED where not a member; log r float32 [K]).

    Raises:
      UserError: temperature or sharpness is not positive, or there is no iteration.

    Source: Asano et al. 2020 (SeLa), section 3 and equation 8; yukimasano/self-label
    sinkhornknopp.py, optimize_L_sk (λ = 25).
    """
    for name, value in (("temperature", temperature), ("sharpness", sharpness)):
        if value <= 0:
            raise UserError(f"the {name} of SeLa's labels is {value}; it must be above 0")
    if iterations < 1:
        raise UserError(f"iterations of SeLa's labels are {iterations}; at least 1 is needed")
    n, count = len(x), kernel.shape[1]
    log_n, log_k = jnp.log(jnp.maximum(member.sum(), 1).astype(float)), jnp.log(float(count))

    def log_power(block):  # λ log p of a block, [chunk, K]
        logits = scores(block.take(x), kernel) / temperature
        return sharpness * jax.nn.log_softmax(logits, axis=1)

    def weigh(log_sum, log_power, log_c, block):  # adds a block to log Σ_n P_kn c_n, [K]
        log_c = jnp.where(block.new & block.take(member), log_c, -jnp.inf)
        return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_power + log_c[:, None], axis=0))

    def iterate(carry):
        done, change, log_sum, log_c, _ = carry
        log_r = -log_k - log_sum

        def solve(carry, block):  # c of a block from r, and at once its part of the next r
            log_sum, log_c, moved = carry
            power, old = log_power(block), block.take(log_c)
            now = -log_n - jax.nn.logsumexp(power + log_r, axis=1)
            counts = block.new & block.take(member)
            moved += jnp.sum(jnp.where(counts, jnp.abs(jnp.expm1(old - now)), 0.0))
            return weigh(log_sum, power, now, block), block.put(log_c, now), moved

        nothing = jnp.full(count, -jnp.inf), log_c, jnp.zeros(())
        log_sum, log_c, moved = _over_blocks(solve, nothing, n, chunk)
        return done + 1, jnp.where(done % 10 == 0, moved, change), log_sum, log_c, log_r

    def begin(log_sum, block):
        return weigh(log_sum, log_power(block), -log_n, block)

    log_sum = _over_blocks(begin, jnp.full(count, -jnp.inf), n, chunk)
    *_, log_r = lax.while_loop(
        lambda carry: (carry[0] < iterations) & (carry[1] > tolerance),
        iterate,
        (0, jnp.inf, log_sum, jnp.full(n, -log_n), jnp.zeros(count)),
    )
    return _best(lambda block: log_power(block) + log_r, member, chunk), log_r


class _Block(NamedTuple):
    """`size` consecutive rows of a memory.

    Attributes:
      start: int32 [], the first.
      new: bool [size], False for rows that the block before has had.
    """

    start: jax.Array
    new: jax.Array

    def take(self, x):
        return lax.dynamic_slice_in_dim(x, self.start, len(self.new))

    def put(self, x, rows):
        return lax.dynamic_update_slice_in_dim(x, rows, self.start, 0)


def _over_blocks(step: Callable[[Any, _Block], Any], carry: Any, n: int, chunk: int) -> Any:
    """step(carry, block) -> carry, over n rows in blocks of `chunk`; the last one ends at row n."""
    size = min(chunk, n)

    def body(i, carry):
        start = jnp.minimum(i * size, n - size)
        return step(carry, _Block(start, start + jnp.arange(size) >= i * size))

    return lax.fori_loop(0, -(-n // size), body, carry)


def _best(values: Callable[[_Block], jax.Array], member: jax.Array, chunk: int) -> jax.Array:
    """int32 [N]: the column of the largest of values(block) [size, K]; UNLABELLED outside."""

    def write(labels, block):
        best = jnp.argmax(values(block), axis=1).astype(jnp.int32)
        return block.put(labels, jnp.where(block.take(member), best, UNLABELLED))

    return _over_blocks(write, jnp.zeros(member.shape, jnp.int32), len(member), chunk)
