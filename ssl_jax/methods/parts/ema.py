"""Exponential moving average of parameters: the target of MoCo, BYOL, DINO and their kin.

Everything here is told by the rate 1 − m, not by the momentum m: in float32 1 − 0.99999 is 1.4e-3
off, and so would be the speed of the target.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.method import Context
from ssl_jax.optim import schedules


def rate(start: float, end: float, total_steps: int) -> Callable[[Context], jax.Array]:
    """1 − m of a momentum m that goes from `start` to `end` along half a cosine.

    A momentum that ends at 1 leaves a target that no longer moves. Where a run is extended, 1 − m
    goes on as its learning rate does: `Context.pace` times that of the start.

    Args:
      start, end: m at step 0 and at `total_steps`, in [0, 1]; Python floats, so that 1 − m is
        formed in double precision.
      total_steps: optimizer steps of the run.

    Returns:
      context of a step -> float32 [].
    """
    recipe = schedules.cosine(1.0 - start, 1.0 - end, total_steps)

    def of(ctx):
        if ctx.pace is None or end < 1:
            return recipe(ctx.step)
        return jnp.where(ctx.step < total_steps, recipe(ctx.step), (1.0 - start) * ctx.pace)

    return of


def of_micro_batch(rate: jax.Array, accumulate: int) -> jax.Array:
    """The rate that, taken `accumulate` times, moves as far as `rate` does once.

    1 − (1 − rate)^(1/accumulate), without the difference of two numbers near 1.
    """
    return rate if accumulate == 1 else -jnp.expm1(jnp.log1p(-rate) / accumulate)


def update(target: Any, online: Any, rate: jax.Array | float) -> Any:
    """m · target + (1 − m) · online, leaf by leaf; no gradient flows through it.

    Give it parameters alone: the official codes do not average BN statistics (MoCo v1–v3, BYOL,
    DINO). When it is called is the method's affair: MoCo updates before the keys are computed,
    BYOL and DINO after the optimizer.

    Args:
      target: pytree of floating arrays; each leaf keeps its dtype (float32 in this library: in
        bfloat16 a momentum of 0.999 would round away every update).
      online: pytree of the same structure and shapes.
      rate: 1 − m in [0, 1], [] or a Python float; usually `rate`'s.

    Returns:
      pytree like `target`; exactly `target` at rate 0 and `online` at rate 1.

    Source: He et al. 2020 (MoCo), equation 2; Grill et al. 2020 (BYOL), equation 1.
    """

    def average(t, o):
        o = lax.stop_gradient(o).astype(t.dtype)
        # From the nearer end: m + (1 − m) is not 1 once both are rounded, and the target would
        # drift by it at every step.
        return jnp.where(rate < 0.5, t + rate * (o - t), o - (1 - rate) * (o - t)).astype(t.dtype)

    return jax.tree.map(average, lax.stop_gradient(target), online)
