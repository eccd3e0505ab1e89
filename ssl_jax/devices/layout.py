"""The mesh of all devices, and where arrays lie on it: whole on every device, or split by rows."""

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "batch"


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
