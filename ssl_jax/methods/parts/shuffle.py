"""Shuffled batch normalisation: rows change places between the BatchNorm groups, and back.

MoCo's queries and keys go through BatchNorm over the rows of one GPU. If an image met the same
neighbours on both sides, the statistics would give the match away. So the keys are computed in
another order. The official code shuffles the batch over all GPUs. Here the rows of a fixed block
of several groups change places, whatever the device count: no image crosses devices, and one
device computes what many do. A key shares its group with about 1/m of its query's group, m groups
to a block (of the official 8 GPUs: 1/8).
"""

import jax
import jax.numpy as jnp

from ssl_jax.devices import collectives


def draw(key: jax.Array, b: int, block: int, axis: str | None) -> jax.Array:
    """One permutation per block of rows, drawn from fold_in(key, global block number).

    Args:
      key: typed key [], the same on every device.
      b: rows on this device, a multiple of `block`.
      block: rows that change places among one another; 1: all stay.
      axis: device axis or None.

    Returns:
      int32 [b / block, block].

    Raises:
      ValueError: `block` does not divide b.
    """
    if b % block:
        raise ValueError(f"shuffle: {b} local rows are not whole blocks of {block}")
    blocks = b // block
    numbers = collectives.rank(axis) * blocks + jnp.arange(blocks)
    keys = jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
    return jax.vmap(lambda key: jax.random.permutation(key, block))(keys)


def shuffle(x: jax.Array, order: jax.Array) -> jax.Array:
    """Row i of a block becomes its row order[i].

    Args:
      x: [b, …].
      order: int32 [b / block, block], from `draw`.

    Returns:
      [b, …].
    """
    blocks, block = order.shape
    if block == 1:
        return x
    # Taken block by block: x[flat order] would gather the whole batch where `jit` splits it.
    rows = x.reshape(blocks, block, *x.shape[1:])
    return jax.vmap(lambda rows, order: rows[order])(rows, order).reshape(x.shape)


def unshuffle(x: jax.Array, order: jax.Array) -> jax.Array:
    """The inverse of `shuffle`, for the same order: [b, …] -> [b, …]."""
    return shuffle(x, jnp.argsort(order, axis=1))
