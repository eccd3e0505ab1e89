"""Exponential moving average of parameters: the target of MoCo, BYOL, DINO and their kin."""

from typing import Any

import jax
from jax import lax


def update(target: Any, online: Any, momentum: jax.Array | float) -> Any:
    """m · target + (1 − m) · online, leaf by leaf; no gradient flows through it.

    Give it parameters alone: the official codes do not average BN statistics (MoCo v1–v3, BYOL,
    DINO). When it is called is the method's affair: MoCo updates before the keys are computed,
    BYOL and DINO after the optimizer.

    Args:
      target: pytree of floating arrays; each leaf keeps its dtype (float32 in this library: in
        bfloat16 a momentum of 0.999 would round away every update).
      online: pytree of the same structure and shapes.
      momentum: m in [0, 1], [] or a Python float; usually a `schedules.cosine` up to 1.

    Returns:
      pytree like `target`.

    Source: He et al. 2020 (MoCo), equation 2; Grill et al. 2020 (BYOL), equation 1.
    """

    def average(t, o):
        o = lax.stop_gradient(o).astype(t.dtype)
        return (momentum * t + (1 - momentum) * o).astype(t.dtype)

    return jax.tree.map(average, lax.stop_gradient(target), online)
