"""A method is a tuple of pure functions, as an optax optimizer is.

`make(config, run) -> Method` in `methods/<name>.py` is all there is to a method. The step
(`train/step.py`) calls the functions in this order, on the rows of one device:

    views → loss → gradients → optimizer → after_step
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax


class Run(NamedTuple):
    """Static facts of the run, known before anything is traced.

    Attributes:
      examples: number of training examples n.
      batch: rows of one optimizer step over all devices B.
      steps_per_epoch: n // B (the incomplete batch is dropped).
      total_steps: optimizer steps of the whole run.
    """

    examples: int
    batch: int
    steps_per_epoch: int
    total_steps: int


class Context(NamedTuple):
    """What one step knows.

    Attributes:
      step: int32 [], optimizer steps done before this one.
      epoch: int32 [], step // steps_per_epoch.
      fraction: float32 [], step / total_steps in [0, 1].
      key: typed key [], the same on every device; draw per-example noise from
        `collectives.example_keys`.
      axis: name of the device axis, or None. A Python string: close over it, never trace it.
    """

    step: jax.Array
    epoch: jax.Array
    fraction: jax.Array
    key: jax.Array
    axis: str | None


class Method(NamedTuple):
    """The pure functions of one method.

    A batch is {'image': uint8 [b,H,W,C], 'index': int32 [b] (stable id of the example),
    'label': int32 [b] (-1: none; for monitoring alone)}.

    Attributes:
      views: (key, batch, ctx) -> views. On-device augmentation; whatever `loss` wants to see.
      init: (key, views) -> (params, state). `params` are learned by gradient, `state` is
        everything else: BN statistics, EMA targets, queues, banks, centres.
      loss: (params, state, views, ctx) -> (loss float32 [], (state, metrics)). The mean over the
        local rows; the step averages loss, gradients and metrics over devices. `state` must leave
        equal on every device. In the place of an array that is written in part, or moved a little,
        `jax.tree_util.Partial(write, array, …)` may stand: the step calls it, in place, once it
        knows that loss and gradient are finite (`train/state.py`, written).
      after_step: (params, state, ctx) -> (params, state), after the optimizer.
      labels: params -> pytree of names, the optimizer groups; 'default' takes the main rule.
      encoder: (params, state) -> variables of the encoder, what probing reads back.
      block: the local batch must be a multiple of it.
    """

    views: Callable[..., Any]
    init: Callable[..., Any]
    loss: Callable[..., Any]
    after_step: Callable[..., Any]
    labels: Callable[..., Any]
    encoder: Callable[..., Any]
    block: int = 1
