"""A ring queue of unit rows, the negatives of MoCo: the newest batch replaces the oldest.

The queue is two arrays of a method's state: rows float32 [K, d], and a pointer int32 [] to the row
that is written next. Nothing is hidden: a checkpoint of the state is a checkpoint of the queue.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.models.heads import unit


def check(size: int, rows: int) -> None:
    """Checks that whole batches fill the ring.

    Args:
      size: rows of the queue K.
      rows: rows that enter at once, over all devices.

    Raises:
      UserError: K is not a positive multiple of them.
    """
    if size < 1 or size % rows:
        fits = max(round(size / rows), 1) * rows
        raise UserError(
            f"--config.method.queue={size} is not a multiple of the {rows} rows that enter it at "
            f"once; choose {fits}"
        )


def create(key: jax.Array, size: int, width: int) -> jax.Array:
    """A queue of random directions (MoCo, builder.py: normalised Gaussian noise).

    Args:
      key: typed key [], the same on every device.
      size: rows K.
      width: d.

    Returns:
      float32 [K, d], rows of unit length. Its pointer starts at 0.
    """
    return unit(jax.random.normal(key, (size, width)))


def enqueue(
    queue: jax.Array, pointer: jax.Array, rows: jax.Array, axis: str | None
) -> tuple[Partial, jax.Array]:
    """The rows of all devices, in device order, to be written over the oldest.

    Args:
      queue: float32 [K, d].
      pointer: int32 [], the row to be written next.
      rows: floating [b, d], of this device; stored at unit length, without gradient.
      axis: device axis or None.

    Returns:
      (write() -> queue float32 [K, d], for the step to call; pointer int32 [] after it), equal on
      every device.

    Raises:
      UserError: K is not a multiple of the rows of all devices.

    Source: He et al. 2020 (MoCo), section 3.2; facebookresearch/moco moco/builder.py,
    _dequeue_and_enqueue (which stores the transpose, [d, K]).
    """
    rows = collectives.gather(unit(lax.stop_gradient(rows)), axis)  # [b, d] -> [B, d]
    check(len(queue), len(rows))
    after = ((pointer + len(rows)) % len(queue)).astype(jnp.int32)
    return Partial(write, queue, pointer, rows), after


def write(queue: jax.Array, pointer: jax.Array, rows: jax.Array) -> jax.Array:
    """The queue [K, d] with rows [B, d] from `pointer` on."""
    return lax.dynamic_update_slice_in_dim(queue, rows, pointer, 0)
