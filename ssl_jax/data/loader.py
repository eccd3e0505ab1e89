"""The loader holds no state: batch k is a function of (seed, k).

So a run resumes by `start=step`, and any number of processes reads the same global batches, each
its own rows of them.
"""

import collections
import functools
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from ssl_jax.data.protocol import Source
from ssl_jax.errors import UserError


@functools.lru_cache(maxsize=4)
def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of one epoch: a permutation of range(n) by Philox([seed, epoch]), int64 [n]."""
    permutation = np.random.Generator(np.random.Philox([seed, epoch])).permutation(n)
    permutation.setflags(write=False)  # it is shared by all callers
    return permutation


def rows(
    seed: int,
    step: int,
    n: int,
    batch: int,
    process: int = 0,
    processes: int = 1,
    accumulate: int = 1,
) -> np.ndarray:
    """Rows of one step for one process.

    epoch, k = divmod(step, n // batch); the global batch is order(seed, epoch, n)[k·batch:][:batch]
    and process p holds its rows p·b … (p + 1)·b − 1, b = batch / processes: in the order of the
    devices, so a batch does not depend on the number of processes. With `accumulate` the same is
    done in each of its micro-batches, batch / accumulate consecutive rows of the global batch. The
    n mod batch examples at the end of an epoch's order are left out; each epoch leaves out others.

    Returns:
      int64 [batch // processes], micro-batch after micro-batch.
    """
    epoch, k = divmod(step, n // batch)
    whole = order(seed, epoch, n)[k * batch :][:batch]
    # [batch] -> [accumulate, processes, rows] -> [accumulate · rows]
    return whole.reshape(accumulate, processes, -1)[:, process].reshape(-1)


class Batches:
    """Iterator over host batches that threads make ahead of time.

    A thread makes a whole batch (handing out single pictures is 1.7 times slower). An error in a
    batch is raised when its turn comes. Ends its threads when closed, exhausted, after an error,
    and when it is no longer referenced; a context manager.

    Attributes:
      waited: seconds that the consumer has waited for batches so far.
    """

    def __init__(self, make: Callable, steps: Iterable[int], threads: int | None, ahead: int):
        threads = threads or min(8, len(os.sched_getaffinity(0)))
        self.waited = 0.0
        self._make = make  # must not refer to self: a cycle would keep the threads alive
        self._steps = iter(steps)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ssl_jax_loader")
        self._made = collections.deque()
        for _ in range(threads + ahead):
            self._submit()

    def _submit(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._made.append(self._pool.submit(self._make, step))

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._made:
            self.close()
            raise StopIteration
        future = self._made.popleft()
        self._submit()
        start = time.perf_counter()
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt comes here as well
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - start

    def close(self) -> None:
        """Ends the iteration. Batches that a thread is just making are finished and dropped."""
        self._steps = iter(())
        self._made.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if hasattr(self, "_made"):  # not if __init__ failed
            self.close()


def batches(
    source: Source,
    *,
    seed: int,
    batch: int,
    start: int = 0,
    stop: int | None = None,
    process: int = 0,
    processes: int = 1,
    accumulate: int = 1,
    threads: int | None = None,
    ahead: int = 2,
) -> Batches:
    """Training batches of the steps start … stop − 1.

    Args:
      source: the examples.
      seed: of the order, at least 0.
      batch: rows of the global batch B, a multiple of `processes`.
      start: first step; the same batches follow as if the steps before had been read.
      stop: step to end before; None goes on for ever.
      process, processes: which rows of the global batch are read here.
      accumulate: micro-batches of a step; the rows of a process are in their order.
      threads: batches made at the same time; None for min(8, cores of this process).
      ahead: finished batches that may wait. Up to threads + ahead + 1 batches are in memory.

    Returns:
      Iterator of {'image': uint8 [b, H, W, C], 'index': int32 [b], 'label': int32 [b]} with
      b = batch / processes.

    Raises:
      UserError: fewer examples than a batch; a batch that the processes cannot share evenly.
    """
    n = source.examples
    _check(batch // accumulate, process, processes)
    if n < batch:
        raise UserError(f"{source.name} has {n} examples, fewer than the batch of {batch}.")
    if seed < 0:
        raise UserError(f"seed={seed} must be at least 0.")

    def make(step):
        return source.read(rows(seed, step, n, batch, process, processes, accumulate))

    steps = range(start, 2**62 if stop is None else stop)
    return Batches(make, steps, threads, ahead)


def in_order(
    source: Source,
    *,
    batch: int,
    process: int = 0,
    processes: int = 1,
    threads: int | None = None,
    ahead: int = 2,
) -> Batches:
    """All n examples once, in order, for evaluation.

    Every process gets ceil(n / batch) batches of the same shape. What the last one lacks is padded:
    image 0, index −1, label −1; mask rows by index >= 0. (Where a picture could not be read and
    another took its place, the index repeats.)

    Args and errors as for `batches`.
    """
    n = source.examples
    _check(batch, process, processes)
    b = batch // processes

    def make(step):
        first = step * batch + process * b
        real = np.arange(min(first, n), min(first + b, n))
        found = source.read(real)
        missing = b - len(real)
        if not missing:
            return found
        return {
            key: np.concatenate(
                [x, np.full((missing, *x.shape[1:]), 0 if key == "image" else -1, x.dtype)]
            )
            for key, x in found.items()
        }

    return Batches(make, range(-(-n // batch)), threads, ahead)


def _check(batch: int, process: int, processes: int) -> None:
    if batch < 1 or batch % processes:
        raise UserError(f"A batch of {batch} cannot be shared evenly by {processes} processes.")
    if not 0 <= process < processes:
        raise ValueError(f"process {process} of {processes}")
