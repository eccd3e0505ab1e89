"""A training set that is read once and stays in device memory; the host then sends row numbers.

The batches are the loader's, row for row: batch k is the same function of (seed, k).
"""

from collections.abc import Iterator

import numpy as np

from ssl_jax.contract import batch as batches
from ssl_jax.contract.source import Source
from ssl_jax.data import loader

SHARE = 1 / 8  # of a device's memory that examples may take without being asked for
PIECE = 256  # rows read at a time


def size(source: Source) -> int:
    """Bytes of the fields of a source on every device."""
    return source.examples * batches.size(source.fields)


def fits(source: Source, memory: int, cache_bytes: int) -> bool:
    """Whether a set is small enough to be kept on the devices without being asked for.

    Args:
      source: the examples.
      memory: bytes of one device; 0 where that is a CPU, or unknown.
      cache_bytes: config.data.cache_bytes. A larger set is not kept by the host either, and every
        process would read the whole of it for its own use.

    Returns:
      size <= min(memory / 8, cache_bytes).
    """
    return size(source) <= min(SHARE * memory, cache_bytes)


def pieces(
    source: Source,
    *,
    threads: int | None,
    ahead: int,
    patience: float = loader.PATIENCE,
    here: int = 1,
) -> loader.Batches:
    """The whole set in order, in pieces of PIECE rows; the last one is what is left.

    Args and errors as for `loader.batches`: data that is out of reach is waited for.
    """
    n = source.examples

    def make(piece):
        return source.read(np.arange(piece * PIECE, min((piece + 1) * PIECE, n)))

    threads = threads or loader.readers(source, min(n, PIECE), ahead, here)
    return loader.Batches(make, range(-(-n // PIECE)), threads, ahead, patience)


def collect(source: Source, pieces: loader.Batches) -> dict[str, np.ndarray] | None:
    """Joins the pieces of a set.

    Args:
      source: of the pieces.
      pieces: from `pieces`.

    Returns:
      the set as one batch, its fields flat (`batch.flat_specs`): row r is what `source.read` gives
      for r, so an example that could not be read has the index of the one shown instead. None if
      `pieces` was asked to leave.
    """
    n = source.examples
    specs = batches.flat_specs(source.fields, n)
    whole = {name: np.empty(spec.shape, spec.dtype) for name, spec in specs.items()}
    read = 0
    for piece in pieces:
        past = read + len(piece["index"])
        for name, to in whole.items():
            to[read:past] = piece[name].reshape(past - read, *to.shape[1:])
        read = past
    return whole if read == n else None


def calls(
    n: int,
    *,
    seed: int,
    batch: int,
    start: int,
    stop: int,
    at_once: int,
    process: int = 0,
    processes: int = 1,
    accumulate: int = 1,
) -> Iterator[np.ndarray]:
    """Rows of the steps start … stop − 1, `at_once` steps together; fewer in the last call.

    Args:
      n: examples of the set.
      at_once: steps of a call.
      others: as for `loader.batches`.

    Yields:
      int32 [steps · accumulate, batch / processes / accumulate]: of every micro-batch of every
      step, in order, the rows of this process (`loader.rows`).
    """
    for first in range(start, stop, at_once):
        steps = range(first, min(first + at_once, stop))
        of = [loader.rows(seed, step, n, batch, process, processes, accumulate) for step in steps]
        yield np.stack(of).reshape(len(steps) * accumulate, -1).astype(np.int32)
