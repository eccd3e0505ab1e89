"""A method is a tuple of pure functions, as an optax optimizer is.

`make(config, run) -> Method` in `methods/<name>.py` reads the config and calls the method's own
constructor, which a Python user can call as well. The step (`train/step.py`) calls the functions in
this order, on the rows of one device:

    views → loss → gradients → optimizer → after_step
"""

import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.encoder import Encoder


class Field(NamedTuple):
    """A field of `config.method`, in the method's own file.

    Attributes:
      name: of the field.
      default: its value where a config does not name it. Of a field that is added later: what the
        method did before, so that older runs mean what they meant.
      meaning: one line.
    """

    name: str
    default: Any
    meaning: str


class Run(NamedTuple):
    """Static facts of the run, known before anything is traced.

    Attributes:
      examples: number of training examples n.
      batch: rows of one optimizer step over all devices B.
      steps_per_epoch: n // B (the incomplete batch is dropped).
      total_steps: optimizer steps of the whole run.
      fields: of an example, see `Source.fields`.
      facts: of the source, see `Source.facts`.
    """

    examples: int
    batch: int
    steps_per_epoch: int
    total_steps: int
    fields: Mapping[str, Any] = {}
    facts: Mapping[str, Any] = {}


class Context(NamedTuple):
    """What one step knows.

    Attributes:
      step: int32 [], optimizer steps done before this one.
      epoch: int32 [], step // steps_per_epoch.
      fraction: float32 [], step / total_steps in [0, 1].
      key: typed key [], the same on every device; draw per-example noise from `keys`.
      axis: name of the device axis, or None. A Python string: close over it, never trace it.
      pace: float32 [], after the end of the recipe: how fast training goes on, as a share of its
        fastest (see `schedules.pace`). None in a run that is not extended.
    """

    step: jax.Array
    epoch: jax.Array
    fraction: jax.Array
    key: jax.Array
    axis: str | None
    pace: jax.Array | None = None

    def stream(self, name: str) -> jax.Array:
        """A key for what is drawn once a step, the same on every device, apart from all others.

        Args:
          name: of the stream: 'mask', 'shuffle' … Two names share no numbers.

        Returns:
          typed key []: fold_in(fold_in(key, −1), CRC-32 of the name). No row has the number −1.
        """
        root = jax.random.fold_in(self.key, 0xFFFFFFFF)
        return jax.random.fold_in(root, zlib.crc32(name.encode()))

    def keys(self, name: str, b: int) -> jax.Array:
        """One key for each row of this device, of a named stream.

        The global row, not the device, names the noise: any device count draws the same.

        Args:
          name: as for `stream`.
          b: rows on this device.

        Returns:
          typed keys [b].
        """
        first = 0 if self.axis is None else lax.axis_index(self.axis) * b
        key = self.stream(name)
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(first + jnp.arange(b))


class Show(NamedTuple):
    """Pictures of what a method does to examples, for the report.

    Attributes:
      variables: (params, state) -> the leaves that `draw` needs.
      draw: (variables, batch, key) -> {title: uint8 [n, h, w, C], or [n, v, h, w, C] for v pictures
        of each example}, in the order in which they are shown.
      said: what the pictures are, in a sentence or two.
    """

    variables: Callable[[Any, Any], Any]
    draw: Callable[[Any, Any, Any], Mapping[str, Any]]
    said: str = ""


class Prototypes(NamedTuple):
    """How near features are to a method's prototypes: the report counts who is nearest to which.

    Attributes:
      variables: (params, state) -> the leaves that `scores` needs.
      scores: (variables, features [n, d] of the first encoder) -> {head: [n, K]}.
    """

    variables: Callable[[Any, Any], Any]
    scores: Callable[[Any, Any], Mapping[str, Any]]


def _unchanged(params, state, ctx):
    return params, state


def _all_default(params):
    return jax.tree.map(lambda _: "default", params)


class Method(NamedTuple):
    """The pure functions of one method.

    A batch is {'index': int32 [b] (stable number of the example), 'label': int32 [b] (-1: none),
    **fields of the source}, see `contract/batch.py`.

    Attributes:
      views: (key, batch, ctx) -> views. On-device augmentation; whatever `loss` wants to see.
      init: (key, views) -> (params, state). `params` are learned by gradient, `state` is
        everything else: BN statistics, EMA targets, queues, banks, centres.
      loss: (params, state, views, ctx) -> (loss float32 [], (state, metrics)). The mean over the
        local rows, or `collectives.mean_of` where the number of terms differs by row; the step
        averages loss, gradients and metrics over devices. `state` must leave equal on every device.
        In the place of an array that is written in part, or moved a little,
        `jax.tree_util.Partial(write, array, …)` may stand: the step calls it, in place, once it
        knows that loss and gradient are finite (`train/state.py`, written).
      encoders: name -> Encoder, what probing can read back. The first is probed unless
        `--config.encoder` names another.
      after_step: (params, state, ctx) -> (params, state), after the optimizer.
      labels: params -> pytree of names, the optimizer groups; 'default' takes the main rule.
      block: the local batch must be a multiple of it.
      block_is: the field that says so, for the message: '--config.method.group=32'.
      least_rows: of a (micro-)batch over all devices: 2 where rows are compared, or normalised by
        each other, and one alone would learn nothing.
      show: name -> Show, what the report may draw. One named 'views' takes the place of views by
        the policies of `config.views`.
      prototypes: what features are assigned to, or None.
      uses_labels: the loss reads `batch['label']`: said at the start of a run.
    """

    views: Callable[..., Any]
    init: Callable[..., Any]
    loss: Callable[..., Any]
    encoders: Mapping[str, Encoder]
    after_step: Callable[..., Any] = _unchanged
    labels: Callable[..., Any] = _all_default
    block: int = 1
    block_is: str = ""
    least_rows: int = 2
    show: Mapping[str, Show] = {}
    prototypes: Prototypes | None = None
    uses_labels: bool = False
