"""Shuffled batch normalisation: rows change places between the BatchNorm groups, and back.

MoCo's queries and keys go through BatchNorm over the rows of one GPU. If an image met the same
neighbours on both sides, the statistics would give the match away. So the keys are computed in
another order. The official code shuffles the batch over all GPUs. Here the rows of a fixed block
of several groups change places, whatever the device count, so one device computes what many do.
Where devices hold whole blocks, no image crosses them; else all images do, as in the official
code. A key shares its group with about 1/m of its query's group, m groups to a block (of the
official 8 GPUs: 1/8).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.devices import collectives
from ssl_jax.errors import UserError


class Order(NamedTuple):
    """Where the rows go: row i becomes row `rows[i]` of its block.

    Attributes:
      rows: int32 [n, block], of the blocks of this device, or of all devices.
      everywhere: they are of all devices.
    """

    rows: jax.Array
    everywhere: bool


def check(group: int, shuffle: int, batch: int, accumulate: int) -> None:
    """Checks that a micro-batch is whole blocks.

    Args:
      group: rows that share BatchNorm statistics; 0: all.
      shuffle: groups that rows change places between.
      batch, accumulate: of the run.

    Raises:
      UserError: it is not.
    """
    if batch // accumulate % max(group * shuffle, 1):
        raise UserError(
            f"--config.batch={batch} in {accumulate} micro-batch(es) is not whole blocks of "
            f"{group * shuffle} rows, --config.method.group={group} times "
            f"--config.method.shuffle={shuffle}; change one of the three"
        )


def draw(key: jax.Array, b: int, block: int, axis: str | None) -> Order:
    """One permutation per block of rows, drawn from fold_in(key, global block number).

    Args:
      key: typed key [], the same on every device.
      b: rows on this device.
      block: rows that change places among one another, a divisor of those on all devices; 1: all
        stay.
      axis: device axis or None.

    Raises:
      ValueError: `block` does not divide the rows of all devices.
    """
    everywhere = b % block > 0
    rows = b * collectives.size(axis) if everywhere else b
    if rows % block:
        raise ValueError(f"shuffle: {rows} rows are not whole blocks of {block}")
    numbers = jnp.arange(rows // block)
    if not everywhere:
        numbers = collectives.rank(axis) * len(numbers) + numbers
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
    return Order(jax.vmap(lambda key: jax.random.permutation(key, block))(keys), everywhere)


def shuffle(x: jax.Array, order: Order, axis: str | None) -> jax.Array:
    """Row i of a block becomes its row order.rows[i].

    Args:
      x: [b, …], rows of this device.
      order: from `draw`.
      axis: device axis or None.

    Returns:
      [b, …].
    """
    blocks, block = order.rows.shape
    if block == 1:
        return x
    if order.everywhere:
        b, starts = len(x), block * jnp.arange(blocks)[:, None]
        whole = (order.rows + starts).reshape(-1)  # int32 [B], of all rows
        own = lax.dynamic_slice_in_dim(whole, collectives.rank(axis) * b, b)
        return collectives.gather(x, axis)[own]  # [B, …] -> [b, …]
    # Taken block by block: x[flat order] would gather the whole batch where `jit` splits it.
    rows = x.reshape(blocks, block, *x.shape[1:])
    return jax.vmap(lambda rows, order: rows[order])(rows, order.rows).reshape(x.shape)


def unshuffle(x: jax.Array, order: Order, axis: str | None) -> jax.Array:
    """The inverse of `shuffle`, for the same order: [b, …] -> [b, …]."""
    return shuffle(x, order._replace(rows=jnp.argsort(order.rows, axis=1)), axis)
