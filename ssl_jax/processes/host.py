"""What the process arranges before JAX starts: memory pages, CPU devices, compilation cache.

XLA on CPU spreads one program poorly over the cores, so the library's own data parallelism, one
device a core, is the fast way; and glibc, by default, gives every large buffer back to the kernel
and faults its pages in again at the next step, for which see malloc.py as well.
`python -m benchmarks.cpu_step` measures both.
"""

import ctypes
import os
import pathlib
from typing import NamedTuple

import jax

_M_MMAP_MAX, _M_TRIM_THRESHOLD, _M_ARENA_MAX = -4, -1, -8


class Cluster(NamedTuple):
    """The processes of the run, known before JAX's backend is up.

    Attributes:
      processes: how many there are.
      process: which this is.
      here: how many share this host and its cores.
    """

    processes: int
    process: int
    here: int


def keep_memory_pages() -> bool:
    """Makes glibc's malloc keep its pages: no mmap, no trim at any size, one arena.

    The second best way, where malloc is not in huge pages. Call it before anything allocates.
    Returns False, and does nothing, without glibc, and where GLIBC_TUNABLES sets malloc up, which
    malloc.py or the user has done.
    """
    if "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        libc = ctypes.CDLL("libc.so.6")
        # −1 is never. (2³¹ − 1 trims what is above 2 GiB: a large step faulted it in every time.)
        settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
        return all([libc.mallopt(*s) for s in settings])
    except (OSError, AttributeError):
        return False


def cores() -> int:
    """Cores that this process may use; all of the machine where the system does not say (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_devices(rows: int, block: int, cluster: Cluster) -> int:
    """The number of CPU devices a process should make: one a core, as far as the batch divides.

    Args:
      rows: rows of one micro-batch over all processes.
      block: the rows of one device must be a multiple of it.
      cluster: the processes of the run.

    Returns:
      the largest n <= min(cores // cluster.here, 8) for which rows splits into whole blocks
      on n devices of every process; 1 if there is none.
    """
    most = max(1, min(cores() // cluster.here, 8))
    fits = (n for n in range(most, 0, -1) if rows % (n * cluster.processes * block) == 0)
    return next(fits, 1)


def set_cpu_devices(n: int) -> None:
    """Makes n CPU devices; without effect on accelerators. Call it before any use of JAX."""
    jax.config.update("jax_num_cpu_devices", n)


def set_compile_cache(folder: str) -> pathlib.Path | None:
    """Keeps compiled programs in `folder`: 'auto' is ~/.cache/ssl_jax, '' keeps none.

    Returns:
      the folder, or None where there is none (also if it cannot be written: a cache is no reason
      to stop).
    """
    if not folder:
        return None
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = pathlib.Path(home) / "ssl_jax" if folder == "auto" else pathlib.Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / ".writable").touch()
    except OSError:
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    # The many small programs as well: together they compile for longer than they are read.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return path
