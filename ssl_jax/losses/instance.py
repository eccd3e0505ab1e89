"""Instance discrimination: every image is a class of its own, its weight the row of a memory bank.

`z` are embeddings of unit length, `bank` [N, d] holds one row for every image of the data set.
"""

import math

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from ssl_jax.contract.precision import wide
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses.contrastive import PRECISION
from ssl_jax.models.heads import unit

EPSILON = 1e-7  # in the denominators of the official NCECriterion


def full_softmax(
    z: jax.Array,
    bank: jax.Array,
    index: jax.Array,
    temperature: float,
    chunk: int | None = None,
) -> jax.Array:
    """−log( exp(z_i · v_i / T) / Σ_n exp(z_i · v_n / T) ), averaged over the local rows.

    The sum runs over the whole bank. With `chunk` the memory is O(b·chunk) beside the bank, in the
    backward pass as well, which compares again.

    Args:
      z: floating [b, d], of unit length.
      bank: float32 [N, d]; no gradient flows into it.
      index: int32 [b], the row of each z in the bank.
      temperature: T > 0.
      chunk: rows of the bank that are compared at a time; None: all N.

    Returns:
      float32 [], the mean over the local rows.

    Raises:
      UserError: temperature or chunk is not positive.
      AssertionError: an index for every row of z is not what was given.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
    Discrimination", equations 2 and 3; zhirongw/lemniscate.pytorch lib/LinearAverage.py with
    CrossEntropyLoss.
    """
    _check_temperature(temperature)
    if chunk is not None and chunk < 1:
        raise UserError(f"the chunk of the loss is {chunk}; it must be at least 1, or None")
    chex.assert_shape(index, (len(z),))
    z, bank = wide(z), lax.stop_gradient(bank)
    n = len(bank)
    chunk = min(chunk or n, n)

    def total(first):
        """log Σ exp over the rows first … first + chunk − 1, [b]."""
        # The last block begins early enough to be whole; what others had before is masked.
        begin = jnp.minimum(first, n - chunk)
        block = lax.dynamic_slice_in_dim(bank, begin, chunk)
        logits = jnp.matmul(z, block.T, precision=PRECISION) / temperature  # [b, chunk]
        return jax.nn.logsumexp(jnp.where(begin + jnp.arange(chunk) >= first, logits, -jnp.inf), 1)

    firsts = chunk * jnp.arange(-(-n // chunk))
    totals = lax.map(jax.checkpoint(total, prevent_cse=False), firsts)  # [blocks, b]
    positive = jnp.sum(z * bank[index], 1) / temperature
    return jnp.mean(jax.nn.logsumexp(totals, 0) - positive)


def nce(
    z: jax.Array,
    bank: jax.Array,
    index: jax.Array,
    noise: jax.Array,
    temperature: float,
    normaliser: jax.Array,
    axis: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Noise-contrastive estimation: tell the own row of the bank from m rows drawn at random.

    With the model P(n) = exp(z · v_n / T) / Z, noise of 1/N each, and c = m/N,

        −log( P(i) / (P(i) + c + ε) ) − Σ_{j of m} log( c / (P(j) + c + ε) ),  ε = 1e-7,

    averaged over the local rows. Z is a constant: N times the mean of exp(z · v / T) over the rows
    and their 1 + m candidates, of the first batch that there is. No gradient flows through it.

    Args:
      z: floating [b, d], of unit length.
      bank: float32 [N, d]; no gradient flows into it.
      index: int32 [b], the row of each z in the bank.
      noise: int32 [b, m], rows drawn uniformly with replacement; the own row may be among them.
      temperature: T > 0.
      normaliser: Z float32 []; 0 where it is not known yet.
      axis: device axis or None: the first Z is of all devices.

    Returns:
      (loss float32 [], Z float32 [], equal on every device).

    Raises:
      UserError: temperature is not positive.
      AssertionError: index or noise has not a row for every row of z.

    Source: Wu et al. 2018, equations 4 to 8; zhirongw/lemniscate.pytorch lib/NCEAverage.py and
    lib/NCECriterion.py. The ε and the positive among the candidates of Z are the code's; the
    paper's proximal term (equation 10) is not in the code.
    """
    _check_temperature(temperature)
    chex.assert_shape([index, noise], [(len(z),), (len(z), None)])
    z, bank = wide(z), lax.stop_gradient(bank)
    n, m = len(bank), noise.shape[1]
    candidates = bank[jnp.concatenate([index[:, None], noise], 1)]  # [b, 1 + m, d]
    logits = jnp.einsum("bd,bkd->bk", z, candidates, precision=PRECISION) / temperature
    estimate = n * collectives.pmean(jnp.mean(jnp.exp(lax.stop_gradient(logits))), axis)
    normaliser = jnp.where(normaliser > 0, normaliser, estimate)
    log_p = logits - jnp.log(normaliser)
    log_sum = jnp.logaddexp(log_p, math.log(m / n + EPSILON))  # log(P + c + ε)
    from_data = log_p[:, 0] - log_sum[:, 0]
    from_noise = jnp.sum(math.log(m / n) - log_sum[:, 1:], 1)
    return -jnp.mean(from_data + from_noise), normaliser


def update_bank(
    bank: jax.Array, index: jax.Array, z: jax.Array, momentum: float, axis: str | None = None
) -> Partial:
    """v_i ← unit(m v_i + (1 − m) z_i) for the rows of all devices, to be written.

    Of rows with the same index the last of the global batch counts, whatever the device count.

    Args:
      bank: float32 [N, d].
      index: int32 [b].
      z: floating [b, d], of unit length.
      momentum: m in [0, 1].
      axis: device axis or None.

    Returns:
      write() -> float32 [N, d], equal on every device, for the step to call.

    Source: zhirongw/lemniscate.pytorch lib/LinearAverage.py and lib/NCEAverage.py, backward.
    """
    chex.assert_shape(index, (len(z),))
    bank = lax.stop_gradient(jnp.asarray(bank))
    index, z = collectives.gather((index, wide(lax.stop_gradient(z))), axis)
    rows = unit(momentum * bank[index] + (1 - momentum) * z)
    # Repeated ids write one and the same row, so that the order of the scatter does not matter.
    same = index[:, None] == index[::-1]  # [B, B], columns from the last row to the first
    last = len(index) - 1 - jnp.argmax(same, 1)
    return Partial(write, bank, index, rows[last])


def write(bank: jax.Array, index: jax.Array, rows: jax.Array) -> jax.Array:
    """The bank [N, d] with rows [B, d] at `index` [B]; equal indices have equal rows."""
    return bank.at[index].set(rows)


def _check_temperature(temperature: float) -> None:
    if temperature <= 0:
        raise UserError(f"the temperature of the loss is {temperature}; it must be above 0")
