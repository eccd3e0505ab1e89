"""Processes: what they say to each other on the host, and where they wait for each other.

Every process of a run calls each of these, in the same order. What devices say to each other within
a step is in devices/collectives.py.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from ssl_jax.devices import layout
from ssl_jax.processes import host


def meet(name: str, seconds: float = 3_600) -> None:
    """Waits for the other processes; at once where there are none.

    To be called where they come from work that takes them differently long, compiling say, to
    their first collective: Gloo gives up on a peer that is 30 s late for that one.

    Args:
      name: of this meeting; all meet in the same order.
      seconds: to wait at most.

    Raises:
      jax.errors.JaxRuntimeError: a process is gone, or late.
    """
    if jax.process_count() > 1:
        from jax._src import distributed  # the barrier has no public name; Orbax uses it so too

        distributed.global_state.client.wait_at_barrier(f"ssl_jax/{name}", int(1_000 * seconds))


def connect(name: str) -> None:
    """Waits for the other processes and connects their devices; at once where there are none.

    Gloo connects devices at their first collective, and gives up on a process that is 30 s late for
    it; for any later one the others wait half an hour. To be called before work that takes the
    processes differently long: reading, compiling.

    Args:
      name: as for `meet`.
    """
    if jax.process_count() > 1:
        meet(name)
        from_first(0)  # connects each device with its like in the other processes
        x, mesh = np.zeros(jax.device_count(), np.int32), layout.mesh()
        layout.fetch(layout.put_split(x, mesh), mesh)  # all with all


def from_each(x: np.ndarray, mesh: Mesh) -> np.ndarray:
    """What every process of a mesh has, on each of them, bit for bit; all of them call it.

    Args:
      x: int32, float32 or float64 [n, …], of the same shape on every process. Small: every device
        receives that of all processes.
      mesh: of the devices of all processes, or of this one alone.

    Returns:
      [processes, n, …], in the order of the processes.
    """
    if layout.processes(mesh) == 1:
        return x[None]
    # As bits: JAX makes float32 of float64.
    bits = multihost_utils.process_allgather(np.ascontiguousarray(x).view(np.uint32))
    return np.ascontiguousarray(bits).view(x.dtype)


def from_first(number: int) -> int:
    """Process 0's number on every process; all of them call it (`broadcast_one_to_all`)."""
    if jax.process_count() == 1:
        return int(number)
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def text_from_first(name: str, text: str | None, cluster: host.Cluster) -> str:
    """Process 0's text on every process, before JAX's backend is up; all of them call it and meet.

    Args:
      name: of this text; each is said once.
      text: what process 0 says; that of other processes is not looked at.
      cluster: the processes.

    Returns:
      process 0's text.

    Raises:
      jax.errors.JaxRuntimeError: process 0 is gone, or an hour late.
    """
    if cluster.processes == 1:
        return text or ""
    from jax._src import distributed  # as for `meet`

    client, key, hour = distributed.global_state.client, f"ssl_jax/text/{name}", 3_600_000
    if cluster.process == 0:
        client.key_value_set(key, text or "", allow_overwrite=True)
    said = client.blocking_key_value_get(key, hour)
    client.wait_at_barrier(key, hour)  # process 0 may end now, and the store with it
    return said


def any_process(flag: bool) -> bool:
    """Whether `flag` holds on any process; all of them call it (`process_allgather`)."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(multihost_utils.process_allgather(np.int32(flag)).any())
