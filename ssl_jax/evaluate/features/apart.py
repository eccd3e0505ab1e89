"""Features that no process keeps whole: each has those of its own rows, and all know the labels.

For training sets beyond the memory of one host. Rows are dealt to the devices in blocks, in order;
a process reads and encodes the rows of its devices by itself, so that none waits for another.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ssl_jax.devices import layout
from ssl_jax.processes import talk

BLOCK = 1_024  # rows that the host handles at once
CHUNK = 16_000  # rows that are computed at once: a result is held twice for a moment
GATHERED = 2**26  # bytes that a device receives at once
DAY = 86_400  # seconds that processes wait for the slowest reader


class Apart(NamedTuple):
    """Features of n rows, of which this process has its own.

    Attributes:
      own: float [r, d], of the rows first … first + r − 1; r may be 0.
      first: see there.
      labels: int32 [n] of all rows (-1: none), on every process.
      mesh: the devices that the rows are dealt to, see `layout.own_rows`.
    """

    own: np.ndarray
    first: int
    labels: np.ndarray
    mesh: Any


def alone(x: np.ndarray, labels: np.ndarray) -> Apart:
    """All rows with this process, on one of its devices, whatever others do.

    Args:
      x: float [n, d].
      labels: int [n].

    Raises:
      ValueError: not as many labels as rows.
    """
    if len(x) != len(labels):
        raise ValueError(f"{len(x)} rows of features but {len(labels)} labels")
    mesh = layout.mesh(jax.local_devices()[:1])
    return Apart(np.asarray(x), 0, np.asarray(labels, np.int32), mesh)


def extract(
    compute: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]], rows: np.ndarray, mesh: Any
) -> Apart:
    """Features of some rows of a source, each process computing its own.

    Args:
      compute: int [r] -> features float32 [r, d], labels int32 [r]. Without any collective.
      rows: int [n], in the order in which the features are wanted.
      mesh: all devices.

    Returns:
      Apart, its labels joined.
    """
    n = len(rows)
    first, past = layout.own_rows(n, mesh)
    own, labels = np.zeros((0, 0), np.float32), np.zeros(past - first, np.int32)
    for start in range(0, past - first, CHUNK):
        now = rows[first:past][start : start + CHUNK]
        x, labels[start : start + len(now)] = compute(now)
        if not start:
            own = _aligned((past - first, x.shape[1]))
        own[start : start + len(now)] = x
    talk.meet("features", DAY)
    told = np.full(1 + _share(n, mesh), -1, np.int32)
    told[0] = own.shape[1]
    told[1 : 1 + len(labels)] = labels
    told = talk.from_each(told, mesh)  # [P, 1 + share]
    if not len(own):
        own = np.zeros((0, told[:, 0].max()), np.float32)
    return Apart(own, first, told[:, 1:].reshape(-1)[:n], mesh)


def gather(a: Apart) -> np.ndarray:
    """The features of all rows on every process, float32 [n, d]: for few rows."""
    n, d = len(a.labels), a.own.shape[1]
    share, processes = _share(n, a.mesh), layout.processes(a.mesh)
    if processes == 1:
        return a.own
    found = np.empty((processes, share, d), np.float32)
    step = max(1, min(share, GATHERED // (4 * d * processes)))
    for start in range(0, share, step):
        block = np.zeros((step, d), np.float32)
        own = a.own[start : start + step]
        block[: len(own)] = own
        past = min(share, start + step)
        found[:, start:past] = talk.from_each(block, a.mesh)[:, : past - start]
    return found.reshape(-1, d)[:n]


def place(a: Apart, mesh: Any) -> jax.Array:
    """The features on devices, split by rows: float32 [N, d], zeros behind the n rows.

    Args:
      a: the features.
      mesh: `a.mesh`, or one of as many devices of every process.

    Returns:
      N = n rounded up to a multiple of the devices of `a.mesh`.
    """
    return layout.put_own(a.own, _padded(a) // mesh.devices.size, mesh)


def split(x: np.ndarray, a: Apart, mesh: Any, fill: Any = 0) -> jax.Array:
    """What every process knows of all rows, [n], on the devices that `place` has put them on.

    Args:
      x: [n].
      a, mesh: as for `place`.
      fill: what stands behind the n rows.

    Returns:
      [N].
    """
    return layout.put_split(np.pad(x, (0, _padded(a) - len(x)), constant_values=fill), mesh)


def means(a: Apart, known: np.ndarray, f: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Mean of f(row) over the rows of all processes that are `known`, float64 [d].

    Args:
      a: the features.
      known: bool [n], True somewhere.
      f: [b, d] -> [b, d].
    """
    own = known[a.first : a.first + len(a.own)]
    total = np.zeros(a.own.shape[1])
    for start in range(0, len(a.own), BLOCK):
        block = a.own[start : start + BLOCK][own[start : start + BLOCK]]
        total += np.sum(f(block), axis=0, dtype=np.float64)
    return talk.from_each(total, a.mesh).sum(0) / np.count_nonzero(known)


def all_finite(a: Apart) -> bool:
    """Whether the features of all processes are finite; the same answer on each of them."""
    return not talk.from_each(np.int32([not finite(a.own)]), a.mesh).any()


def finite(x: np.ndarray) -> bool:
    """Whether all numbers of an array [n, d] are finite, without another array of its size."""
    for start in range(0, len(x), BLOCK):
        block = x[start : start + BLOCK]
        # The sum of finite numbers is finite, unless it overflows: then every one is asked.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = not np.isfinite(np.sum(block))
        if suspicious and not np.isfinite(block).all():
            return False
    return True


def _aligned(shape):
    """float32, not set, where XLA's CPU devices read what the host has instead of copying it."""
    room = np.empty(math.prod(shape) + 16, np.float32)
    first = -room.ctypes.data % 64 // room.itemsize
    return room[first : first + math.prod(shape)].reshape(shape)


def _share(n, mesh):
    """Rows that a process has at most."""
    return -(-n // mesh.devices.size) * mesh.local_mesh.devices.size


def _padded(a):
    devices = a.mesh.devices.size
    return -(-len(a.labels) // devices) * devices
