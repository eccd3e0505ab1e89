"""Several training steps in one program: small steps then never wait for the host."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.train.state import TrainState

MOST = 10  # steps of a call where nobody says how many


def at_once(intervals: Iterable[int]) -> int:
    """How many steps a call makes: logs, monitors and checkpoints come at ends of calls.

    Args:
      intervals: steps between two of each; 0: never.

    Returns:
      the largest divisor of all of them that is at most MOST.
    """
    common = math.gcd(*intervals)
    return max(k for k in range(1, MOST + 1) if common % k == 0)


def make_steps(
    step: Callable[..., tuple[TrainState, dict[str, jax.Array]]],
    accumulate: int,
    fields: Mapping[str, jax.ShapeDtypeStruct],
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns steps(state, whole, rows, axis) for `mapping.compile_steps`: a `lax.scan` of steps.

    Args:
      step: from `make_step`, for the rows of one device.
      accumulate: micro-batches of a step.
      fields: of an example, see `Source.fields`.

    Returns:
      steps(state, whole, rows, axis) -> (state, metrics): whole is the set as
      `resident.collect` has it; rows int32 [steps · accumulate, b], places in it; metrics float32
      [steps], otherwise as those of `step`.
    """

    def steps(state: TrainState, whole: Any, rows: jax.Array, axis: str | None):
        def one(state, rows):  # int32 [accumulate, b]
            batch = {k: jnp.take(x, rows, axis=0, mode="clip") for k, x in whole.items()}
            for name, field in fields.items():  # [accumulate, b, prod] -> [accumulate, b, …]
                batch[name] = batch[name].reshape(*rows.shape, *field.shape)
            return step(state, batch, axis)

        return lax.scan(one, state, rows.reshape(-1, accumulate, rows.shape[1]))

    return steps
