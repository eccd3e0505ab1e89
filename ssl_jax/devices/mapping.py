"""The three ways to map one step, written for one device, over the mesh; and work by rows."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ssl_jax.devices.collectives import gather
from ssl_jax.devices.layout import AXIS, replicated

MODES = ("shard_map", "pmap", "jit")


def _options(mesh: Mesh) -> dict[str, str] | None:
    """Options of the compiler for a step on these devices.

    XLA's CPU compiler drops the barriers of `jax.checkpoint` before it schedules: what the backward
    pass shall compute again is computed early, and kept. Without the pass that drops them it is
    not. (`jax.pmap` takes no such options.)
    """
    if mesh.devices.flat[0].platform != "cpu":
        return None
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def compile_step(
    step: Callable[..., tuple[Any, Any]], mesh: Mesh, mode: str = "shard_map"
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Maps `step(state, batch, axis)` over the devices and compiles it; the state is donated.

    Args:
      step: written for one device. `state` is whole on every device and must leave equal on every
        device; batch leaves are [k, b, …]: k micro-batches of b local rows; axis is AXIS or None.
      mesh: from `mesh()`.
      mode: 'shard_map' or 'pmap' (axis = AXIS), or 'jit' (one global view, axis = None).

    Returns:
      f(state, batch) -> (state, metrics), the batch as `put_batch` lays it.
    """
    return _compile(step, mesh, mode, 1)


def compile_steps(
    steps: Callable[..., tuple[Any, Any]], mesh: Mesh, mode: str = "shard_map"
) -> Callable[[Any, Any, Any], tuple[Any, Any]]:
    """Maps `steps(state, whole, batch, axis)` over the devices and compiles it; donates the state.

    Args:
      steps: as `step` of `compile_step`, and `whole`, a pytree that is whole on every device.
      mesh, mode: as for `compile_step`.

    Returns:
      f(state, whole, batch) -> (state, metrics), whole as `put_whole` lays it, the batch as
      `put_batch` does.
    """
    return _compile(steps, mesh, mode, 2)


def _compile(f: Callable[..., Any], mesh: Mesh, mode: str, whole: int) -> Callable[..., Any]:
    """Maps f(…, batch, axis): `whole` arguments before the batch are whole on every device."""
    if mode == "shard_map":
        return jax.jit(
            jax.shard_map(
                functools.partial(f, axis=AXIS),
                mesh=mesh,
                in_specs=(*[P()] * whole, P(None, AXIS)),
                out_specs=(P(), P()),
                check_vma=False,
            ),
            donate_argnums=0,
            compiler_options=_options(mesh),
        )
    if mode == "pmap":
        return jax.pmap(
            functools.partial(f, axis=AXIS),
            axis_name=AXIS,
            in_axes=(*[None] * whole, 0),
            out_axes=(None, None),
            donate_argnums=0,
            devices=list(mesh.devices) if jax.process_count() == 1 else None,
        )
    if mode == "jit":
        on_all, rows = replicated(mesh), NamedSharding(mesh, P(None, AXIS))
        return jax.jit(
            functools.partial(f, axis=None),
            in_shardings=(*[on_all] * whole, rows),
            out_shardings=(on_all, on_all),
            donate_argnums=0,
            compiler_options=_options(mesh),
        )
    raise ValueError(f"mode is {mode!r}; known: {', '.join(MODES)}")


def compile_rows(f: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Compiles `f(whole, rows) -> rows`, where every row is computed on its own.

    Args:
      f: (whole pytree, leaves [b, …]) -> leaves [b, …].
      mesh: from `mesh()`.

    Returns:
      g(whole, host rows [B/P of this process, …]) -> leaves [B, …], gathered, so that every
      process can read them. B must be a multiple of the devices.
    """

    def gathered(whole, rows):
        return gather(f(whole, rows), AXIS)

    mapped = jax.jit(
        jax.shard_map(gathered, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=P(), check_vma=False)
    )
    put = functools.partial(jax.make_array_from_process_local_data, NamedSharding(mesh, P(AXIS)))
    return lambda whole, rows: mapped(whole, jax.tree.map(put, rows))


def compile_carry(f: Callable[[Any, Any, Any], Any], mesh: Mesh) -> Callable[..., Any]:
    """Compiles `f(carry, rows, whole) -> carry`, where every row is computed on its own.

    Args:
      f: (leaves [b, …], leaves [b, …], whole pytree) -> like its first argument.
      mesh: from `mesh()`.

    Returns:
      g(carry, rows, whole): carry and rows as `put_split` lays them, whole as `put_whole`. The
      carry is donated, and stays where it is: nothing crosses devices.
    """
    mapped = jax.shard_map(
        f,
        mesh=mesh,
        in_specs=(P(AXIS), P(AXIS), P()),
        out_specs=P(AXIS),
        check_vma=False,
    )
    return jax.jit(mapped, donate_argnums=0)


def map_split(f: Callable[[Any, Any], Any], mesh: Mesh) -> Callable[[Any, Any], Any]:
    """Maps `f(split, whole) -> whole` over the devices; to be called under `jax.jit`.

    Args:
      f: (leaves [n / devices, …], the rows of one device; pytree) -> pytree, the same on every
        device. Its axis is AXIS.
      mesh: from `mesh()`.

    Returns:
      g(split, whole): split as `put_own` or `put_split` lays it, whole as `put_whole` does.
    """
    return jax.shard_map(f, mesh=mesh, in_specs=(P(AXIS), P()), out_specs=P(), check_vma=False)
