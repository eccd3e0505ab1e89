"""The loader holds no state: batch k is a function of (seed, k).

So a run resumes by `start=step`, and any number of processes reads the same global batches, each
its own rows of them.
"""

import collections
import functools
import logging
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np

from ssl_jax.contract.batch import pad, size
from ssl_jax.contract.source import Lost, Source
from ssl_jax.errors import UserError
from ssl_jax.processes import host

log = logging.getLogger(__name__)

PATIENCE = 600.0  # seconds to wait for data that is out of reach
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between two attempts; the last repeats
LATE = 60.0  # seconds after which a batch that is being read is said to be late
READY = 2**32  # bytes of batches in memory up to which there is a reader for every core
FEW = 8  # readers that are not too many, whatever a batch weighs
POLL = 0.5  # seconds between two looks at whether to leave


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

    A batch that could not be read because the data is out of reach, or memory short, is made again
    until it can be, for `patience` seconds; the log says so. A batch is a function of its step, so
    nothing is lost or read twice by that. The waiting is done here, in the consumer's thread, so
    that `leave` can end it.

    Attributes:
      waited: seconds that the consumer has waited for batches so far.
      leave: () -> bool or None; if set, it is asked twice a second while a batch is waited for, and
        True ends the iteration there.
    """

    def __init__(
        self,
        make: Callable,
        steps: Iterable[int],
        threads: int,
        ahead: int,
        patience: float = PATIENCE,
    ):
        self.waited = 0.0
        self._make = make  # must not refer to self: a cycle would keep the threads alive
        self.leave = None
        self._patience = patience
        self._steps = iter(steps)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="ssl_jax_loader")
        # Not __del__: what that calls is gone when the interpreter ends.
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)
        self._made = collections.deque()
        for _ in range(threads + ahead):
            self._submit()

    def _submit(self) -> None:
        step = next(self._steps, None)
        if step is not None:
            self._made.append((step, self._pool.submit(self._make, step)))

    def __iter__(self):
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if not self._made:
            self.close()
            raise StopIteration
        step, future = self._made.popleft()
        self._submit()
        start = time.perf_counter()
        try:
            return self._made_at_last(step, future, start)
        except BaseException:  # KeyboardInterrupt comes here as well
            self.close()
            raise
        finally:
            self.waited += time.perf_counter() - start

    def _made_at_last(self, step: int, future: Future, start: float) -> dict[str, np.ndarray]:
        """The batch of `step`, made again while its data is out of reach."""
        attempts = 0
        while True:
            self._until(future.done, future, start)
            try:
                batch = future.result()
            except (Lost, OSError, MemoryError) as error:
                seconds = time.perf_counter() - start
                reason = " ".join(str(error).split()) or type(error).__name__
                if seconds > self._patience:
                    raise Lost(f"{reason}; waited {seconds:.0f} s for it.") from error
            else:
                if attempts > 1:
                    log.warning("the data is back after %.0f s", time.perf_counter() - start)
                return batch
            if attempts == 1:  # what was read ahead in an outage is made again without a word
                log.warning("%s; trying again for %.0f s", reason, self._patience)
            if attempts:
                end = time.perf_counter() + PAUSES[min(attempts, len(PAUSES)) - 1]
                self._until(lambda end=end: time.perf_counter() >= end, None, start)
            attempts += 1
            future = self._pool.submit(self._make, step)

    def _until(self, condition: Callable[[], bool], future: Future | None, start: float) -> None:
        """Waits, for a future if there is one; StopIteration if asked to leave meanwhile."""
        late = LATE
        while not condition():
            if self.leave is not None and self.leave():
                raise StopIteration
            if future is None:
                time.sleep(POLL / 5)
                continue
            wait((future,), timeout=POLL)
            if time.perf_counter() - start > late:
                log.warning("no batch for %.0f s: a reader is slow, or hangs", late)
                late *= 2

    def close(self) -> None:
        """Ends the iteration. Batches that a thread is just making are finished and dropped."""
        self._steps = iter(())
        self._made.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
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
    patience: float = PATIENCE,
    here: int = 1,
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
      threads: batches made at the same time; None: see `readers`.
      ahead: finished batches that may wait. Up to threads + ahead + 1 batches are in memory.
      patience: seconds to wait for data that is out of reach, before Lost is raised.
      here: processes that share this host, its cores and its memory.

    Returns:
      Iterator of batches (`contract/batch.py`) of b = batch / processes rows.

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
    threads = threads or readers(source, batch // processes, ahead, here)
    return Batches(make, steps, threads, ahead, patience)


def in_order(
    source: Source,
    *,
    batch: int,
    process: int = 0,
    processes: int = 1,
    threads: int | None = None,
    ahead: int = 2,
    here: int = 1,
) -> Batches:
    """All n examples once, in order, for evaluation.

    Every process gets ceil(n / batch) batches of the same shape. What the last one lacks is padded:
    index −1, label −1, fields 0 or `Source.padding`; mask rows by index >= 0. (Where an example
    could not be read and another took its place, the index repeats.)

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
        return pad(found, missing, source.padding) if missing else found

    threads = threads or readers(source, b, ahead, here)
    return Batches(make, range(-(-n // batch)), threads, ahead)


def readers(source: Source, rows: int, ahead: int, here: int = 1) -> int:
    """How many threads read where nobody says it: one for every core of this process.

    Every reader has a batch in memory: above FEW on a host there are no more than keep all batches,
    those ahead among them, within READY bytes of that host.

    Args:
      source: of the examples.
      rows: of a batch of this process.
      ahead: finished batches that may wait.
      here: processes that share the host.
    """
    within = READY // here // max(1, rows * size(source.fields)) - ahead - 1
    return max(1, min(host.cores() // here, max(FEW // here, within)))


def _check(batch: int, process: int, processes: int) -> None:
    if batch < 1 or batch % processes:
        raise UserError(f"A batch of {batch} cannot be shared evenly by {processes} processes.")
    if not 0 <= process < processes:
        raise ValueError(f"process {process} of {processes}")
