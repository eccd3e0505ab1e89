"""A method's step, built and compiled as a run does it: the one place where tests do so.

Within `float64` and with `exact` the whole step computes in float64. What one device and
four devices make of some steps then differs by 1e-13 of what they changed, on any processor; in
float32 a ReLU that rounding puts on the other side of zero makes a hundred million times that.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from kit import tiny
from ssl_jax.contract.method import Method, Run
from ssl_jax.devices import layout, mapping
from ssl_jax.methods import METHODS
from ssl_jax.optim import optimizers, schedules
from ssl_jax.train.state import TrainState, make_create
from ssl_jax.train.step import make_step

BATCH, SIDE = 16, 28
# Epochs of two steps: in six steps a queue is filled, and the turn of an epoch comes twice.
STEPS = 6
RUN = Run(examples=2 * BATCH, batch=BATCH, steps_per_epoch=2, total_steps=12)
# Without LLVM's passes a program compiles in a third of the time; in float64 their rounding does
# not matter, and what crosses devices or is copied has been decided before them.
QUICK = {"xla_backend_optimization_level": 0}


@contextlib.contextmanager
def float64(on: bool = True) -> Iterator[None]:
    """JAX's 64-bit types, in every thread: XLA asks for what it partitions in one of its own.

    (`jax.enable_x64` is for the thread that calls it.)
    """
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", on)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


class Built(NamedTuple):
    """A method with all that a step of it needs.

    Attributes:
      config, method: what it is.
      create: key -> TrainState.
      like: shapes of that state.
      step: (state, batch, axis) -> (state, metrics), for the rows of one device.
    """

    config: ConfigDict
    method: Method
    create: Callable[[jax.Array], TrainState]
    like: TrainState
    step: Callable[..., Any]


class Program(NamedTuple):
    """A compiled step. It takes one shape and type of state and batch, and would trace no other.

    Attributes:
      mesh, mode: the devices and how the step is mapped over them.
      call: (state, batch) -> (state, metrics); the state is donated.
      text: the optimised HLO.
    """

    mesh: Mesh
    mode: str
    call: Callable[[Any, Any], tuple[Any, Any]]
    text: str


def config(name: str, **changes: Any) -> ConfigDict:
    """`tiny.config` for BATCH images. Changes are paths with their values, `model__dtype=…`."""
    c = tiny.config(name)
    with c.unlocked():
        c.batch, c.data.size = BATCH, SIDE
        for view in c.views.values():  # float64 has no fast convolution
            if name not in ("mae", "rotation", "jigsaw"):
                view.size = 16 if view.size == SIDE else 12
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    return c


def exact(name: str, **changes: Any) -> ConfigDict:
    """The same in float64."""
    return config(name, model__dtype="float64", **changes)


def build(config: ConfigDict, run: Run = RUN, change: Callable = lambda method: method) -> Built:
    """The method of a config, and its step with the optimizer of `config.optimizer`.

    Args:
      config: of a run.
      run: its facts.
      change: method -> method, what a test wants to be different.
    """
    method = change(METHODS[config.method.name](config, run))
    counts = {
        "batch": run.batch,
        "steps_per_epoch": run.steps_per_epoch,
        "total_steps": run.total_steps,
    }

    def optimizer_of(params):
        return optimizers.make(config.optimizer, params, method.labels(params), **counts)

    create = make_create(method, optimizer_of, rows(run.batch))
    like = jax.eval_shape(create, jax.random.key(0))
    rate = schedules.make(config.optimizer, **counts)
    step = make_step(method, optimizer_of(like.params), run, rate)
    return Built(config, method, create, like, step)


def rows(*shape: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch."""
    return {
        "image": jax.ShapeDtypeStruct((*shape, SIDE, SIDE, 1), "uint8"),
        "index": jax.ShapeDtypeStruct(shape, "int32"),
        "label": jax.ShapeDtypeStruct(shape, "int32"),
    }


def compile(
    built: Built,
    devices: int = 1,
    mode: str = "shard_map",
    options: dict | None = None,
    accumulate: int = 1,
) -> Program:
    """Its step for some devices; `options` are the compiler's, QUICK where None."""
    mesh = layout.mesh(jax.devices()[:devices])
    whole = layout.replicated(mesh)
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), built.like
    )
    batch = layout.like_batch(rows(accumulate, built.config.batch // accumulate), mesh, mode)
    lowered = mapping.compile_step(built.step, mesh, mode).lower(state, batch)
    call = lowered.compile(compiler_options=QUICK if options is None else options)
    return Program(mesh, mode, call, call.as_text())


def start(built: Built, seed: int = 5) -> TrainState:
    """The state before the first step, on the host."""
    key = jax.random.key(seed)
    return on_host(jax.jit(built.create).lower(key).compile(compiler_options=QUICK)(key))


def on_host(state: TrainState) -> TrainState:
    """A copy that no step can take, its key as numbers."""
    return jax.tree.map(np.array, state._replace(key=jax.random.key_data(state.key)))


def on_devices(state: TrainState, mesh: Mesh) -> TrainState:
    """What `on_host` copied, whole on every device."""
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    return jax.device_put(state, layout.replicated(mesh))


def batches(program: Program, steps: int = STEPS, run: Run = RUN) -> Iterator[Any]:
    """The batches of the first steps, on the devices: an order of its own in every epoch."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (run.examples, SIDE, SIDE, 1), dtype=np.uint8)
    for step in range(steps):
        place = step % run.steps_per_epoch
        if place == 0:
            order = rng.permutation(run.examples).astype(np.int32)
        index = order[place * run.batch :][: run.batch]
        rows = {"image": image[index], "index": index, "label": np.full_like(index, -1)}
        batch = {k: v[None] for k, v in rows.items()}
        yield layout.put_batch(batch, program.mesh, program.mode)


def train(
    program: Program, state: TrainState, steps: int = STEPS
) -> tuple[list[dict[str, float]], TrainState]:
    """Some steps from a state on the host.

    Returns:
      (metrics of every step, the state after the last, on the devices).
    """
    state, metrics = on_devices(state, program.mesh), []
    for batch in batches(program, steps):
        state, found = program.call(state, batch)
        metrics.append(found)
    return jax.tree.map(float, jax.device_get(metrics)), state


def named(tree: Any) -> list[tuple[str, Any]]:
    """Every leaf with its path."""
    return [(jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)]
