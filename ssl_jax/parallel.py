"""Devices: the mesh, the three ways to map one step over it, and the few collectives.

The only room that knows about devices. A step is written once, for the rows of one device, with
the name of the device axis, or None. `compile_step` maps it. Every collective here is the identity
when the axis is None: the single device and the global view of `jit` need none.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import flatten_util, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "batch"
MODES = ("shard_map", "pmap", "jit")


def pmean(x: Any, axis: str | None) -> Any:
    """Mean of a pytree over the devices; `x` itself when axis is None."""
    if axis is None:
        return x
    if _through_gloo() and {leaf.dtype for leaf in jax.tree.leaves(x)} == {jnp.dtype("float32")}:
        # A message for every array, two milliseconds each: one array, one message.
        flat, tree_of = flatten_util.ravel_pytree(x)
        return tree_of(lax.pmean(flat, axis))
    return lax.pmean(x, axis)


def psum(x: Any, axis: str | None) -> Any:
    """Sum of a pytree over the devices; `x` itself when axis is None."""
    return x if axis is None else lax.psum(x, axis)


def gather(x: Any, axis: str | None) -> Any:
    """Rows of all devices in device order: each leaf [b, …] -> [B, …].

    Differentiable: the transpose of a tiled all_gather is a psum_scatter, so the gradient of a
    global loss flows back to the rows of every device.
    """
    if axis is None:
        return x
    one = _gather_through_gloo if _through_gloo() else functools.partial(lax.all_gather, tiled=True)
    return jax.tree.map(lambda leaf: one(leaf, axis), x)


def _through_gloo() -> bool:
    """Whether collectives run between processes on CPU; docs/scaling.md has the measurements."""
    return jax.process_count() > 1 and jax.default_backend() == "cpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_through_gloo(x: jax.Array, axis: str) -> jax.Array:
    """all_gather whose transpose is an all-reduce.

    Gloo's reduce-scatter keeps a limit of 30 s of its own (jax-ml/jax#40831), and after the first
    one every all-reduce of more than some 10 kB takes 70 to 100 ms instead of 2.
    """
    return lax.all_gather(x, axis, tiled=True)


def _gather_through_gloo_bwd(axis, b, dy):
    return (lax.dynamic_slice_in_dim(lax.psum(dy, axis), rank(axis) * b, b),)  # [B, …] -> [b, …]


_gather_through_gloo.defvjp(
    lambda x, axis: (_gather_through_gloo(x, axis), len(x)), _gather_through_gloo_bwd
)


def rank(axis: str | None) -> jax.Array | int:
    """Index of this device along the axis, int32 []; 0 when axis is None."""
    return 0 if axis is None else lax.axis_index(axis)


def size(axis: str | None) -> int:
    """Number of devices along the axis; 1 when axis is None."""
    return 1 if axis is None else lax.axis_size(axis)


def take(x: jax.Array, rows: jax.Array, axis: str | None) -> jax.Array:
    """Some rows of an array that is split over the devices, on all of them.

    What travels is the rows taken, never the array: each device gives those it has, and zeros.

    Args:
      x: [n / devices, …], the rows of this device, in device order.
      rows: int32 [b], of all n, the same on every device.
      axis: device axis, or None: x is whole.

    Returns:
      [b, …], the same on every device.
    """
    if axis is None:
        return x[rows]
    place = rows - rank(axis) * len(x)
    mine = (place >= 0) & (place < len(x))
    found = x[jnp.clip(place, 0, len(x) - 1)]  # [b, …]
    return psum(jnp.where(mine.reshape(-1, *[1] * (x.ndim - 1)), found, 0), axis)


def example_keys(key: jax.Array, b: int, axis: str | None) -> jax.Array:
    """One random key per example: fold_in(key, global row).

    The global row, not the device, names the noise: any device count draws the same.

    Args:
      key: typed key [].
      b: rows on this device.
      axis: device axis or None.

    Returns:
      typed keys [b].
    """
    rows = rank(axis) * b + jnp.arange(b)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)


def mesh(devices=None) -> Mesh:
    """All devices on one axis, ordered by process, so that process p holds rows p·B/P … of a batch.

    (`Mesh`, not `jax.make_mesh`: the latter's Explicit axes do not go through vmap.)
    """
    devices = jax.devices() if devices is None else devices
    ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
    return Mesh(np.array(ordered), (AXIS,))


def repeating(mesh: Mesh) -> Mesh:
    """The devices for work that does not gain by more devices on the same cores, of one axis.

    All of them; but the CPU devices of a process share its cores and memory, and there it is one a
    process.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return mesh
    first = {d.process_index: d for d in mesh.devices.flat[::-1]}
    return Mesh(np.array([first[p] for p in sorted(first)]), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding of everything that every device holds whole: state, metrics."""
    return NamedSharding(mesh, P())


def device_memory() -> int:
    """Bytes of memory of a device of this process; 0 where that is the host's, or unknown."""
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        return 0
    return int((device.memory_stats() or {}).get("bytes_limit", 0))


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


def put_batch(batch: Any, mesh: Mesh, mode: str = "shard_map") -> Any:
    """Lays the rows of this process on its devices.

    Args:
      batch: host pytree, leaves [k, B/P, …]: k micro-batches, the rows of this process of each.
      mesh: from `mesh()`.
      mode: as for `compile_step`.

    Returns:
      device arrays: [k, B, …] split over AXIS, or [D, k, B/D, …] for pmap.
    """
    if mode == "pmap":
        here = mesh.local_mesh.devices.size

        def split(x):  # [k, B/P, …] -> [devices here, k, rows of a device, …]
            return np.moveaxis(x.reshape(x.shape[0], here, -1, *x.shape[2:]), 1, 0)

        sharding = NamedSharding(mesh, P(AXIS))
        return jax.tree.map(
            lambda x: jax.make_array_from_process_local_data(sharding, split(x)), batch
        )
    sharding = NamedSharding(mesh, P(None, AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)


def like_batch(batch: Any, mesh: Mesh, mode: str = "shard_map") -> Any:
    """Shapes of what `put_batch` returns, to compile a step ahead of its first batch.

    Args:
      batch: pytree of shapes [k, B, …], the global batch.
      mesh, mode: as for `put_batch`.
    """

    def like(x):
        k, rows, *rest = x.shape
        if mode == "pmap":
            devices = mesh.devices.size
            shape, spec = (devices, k, rows // devices, *rest), P(AXIS)
        else:
            shape, spec = x.shape, P(None, AXIS)
        return jax.ShapeDtypeStruct(shape, x.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree.map(like, batch)


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


def put_split(x: Any, mesh: Mesh) -> Any:
    """Lays host arrays [B, …], equal on every process, split over the devices by rows.

    B is a multiple of the devices of the mesh.
    """
    sharding = NamedSharding(mesh, P(AXIS))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), x
    )


def put_whole(x: Any, mesh: Mesh) -> Any:
    """Lays host arrays, equal on every process, whole on every device."""
    sharding = replicated(mesh)
    return jax.tree.map(
        lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, leaf.__getitem__), x
    )


def put_here(x: Any) -> Any:
    """Arrays that are whole on every device, laid on a mesh of this process's devices alone."""
    return put_whole(
        jax.tree.map(lambda leaf: np.asarray(leaf.addressable_data(0)), x),
        mesh(jax.local_devices()),
    )


def processes(mesh: Mesh) -> int:
    """How many processes the devices of a mesh belong to."""
    return len({d.process_index for d in mesh.devices.flat})


def own_rows(n: int, mesh: Mesh) -> tuple[int, int]:
    """Which of n rows are this process's where they are dealt in blocks to the devices of a mesh.

    A block has ceil(n / devices) rows; the last ones may have fewer, or none.

    Returns:
      (first, past): the rows first … past − 1.
    """
    block = -(-n // mesh.devices.size)
    here = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    return min(n, here[0] * block), min(n, (here[-1] + 1) * block)


def put_own(x: np.ndarray, block: int, mesh: Mesh) -> jax.Array:
    """Lays the rows that this process alone has on its devices: one array, split over all.

    Args:
      x: [r, …], the rows of this process, `block` for each of its devices, r of them or fewer. Not
        to be changed afterwards: a CPU device may read them where they are.
      block: rows of a device; those that are missing at the end are zeros.
      mesh: from `mesh()`.

    Returns:
      float32 [devices · block, …].
    """

    def of(i):
        rows = np.asarray(x[i * block : (i + 1) * block], np.float32)
        if len(rows) == block:
            return rows
        return np.concatenate([rows, np.zeros((block - len(rows), *x.shape[1:]), np.float32)])

    here = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    return jax.make_array_from_single_device_arrays(
        (mesh.devices.size * block, *x.shape[1:]),
        NamedSharding(mesh, P(AXIS)),
        [jax.device_put(of(i), device, may_alias=True) for i, device in enumerate(here)],
    )


def fetch(x: Any, mesh: Mesh) -> Any:
    """Arrays split over the devices as numpy arrays [B, …], the same on every process."""
    if jax.process_count() > 1:
        x = jax.jit(lambda leaf: leaf, out_shardings=replicated(mesh))(x)
    return jax.tree.map(np.asarray, x)
