"""The hot loop: batches in, states out, and nothing that makes the device wait for the host."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from ssl_jax.data import stall
from ssl_jax.train import health

# Calls of the compiled program (of a step, or of several) that may be queued on the device. The
# host waits for the oldest, so it never runs far ahead (each queued call holds a batch in device
# memory), and the device always has the next one.
# No process of several can be further ahead of another than this: stopping.py builds on it.
IN_FLIGHT = 2


class Hooks(NamedTuple):
    """What happens beside training; every function may be slow, none changes the state.

    Attributes:
      log: (step, metrics: dict of floats) -> None, one log interval later than measured, but always
        before `monitor` and `checkpoint` of that step or a later one. Beside the step's own
        metrics, of the interval: 'images_per_second'; 'data_wait_share', the part
        of the time in which the device lacked a batch; 'seconds_steps', 'seconds_monitor' and
        'seconds_checkpoint', which together are the time since the log before.
      bad: (list of (step, 'loss' or 'gradient norm')) -> None, before `log` where there are any:
        the steps skipped since the log before, and what was not finite.
      monitor: (state) -> None.
      checkpoint: (state) -> None; must copy what it needs before it returns.
      stop: (steps done) -> bool, asked after every call but the last: True leaves the loop.
    """

    log: Callable[[int, dict[str, float]], None]
    bad: Callable[[list[tuple[int, str]]], None]
    monitor: Callable[[Any], None]
    checkpoint: Callable[[Any], None]
    stop: Callable[[int], bool]


class Every(NamedTuple):
    """Steps between two calls of a hook, multiples of `at_once`; 0: never before the end."""

    log: int
    monitor: int
    checkpoint: int


def train(
    step: Callable[[Any, Any], tuple[Any, dict[str, jax.Array]]],
    state: Any,
    batches: Iterator[Any],
    *,
    start: int,
    stop: int,
    rows: int,
    every: Every,
    hooks: Hooks,
    at_once: int = 1,
) -> tuple[Any, int]:
    """Runs the steps start … stop − 1.

    Args:
      step: compiled (state, batch) -> (state, metrics), see `make_step`; donates the state. Or
        several steps, see `make_steps`: metrics have one value of each.
      state: the state before step `start`.
      batches: what `step` takes, call after call, the first for step `start`; training ends where
        they do.
      start, stop: steps done before and after.
      rows: images of a step over all devices, for images_per_second.
      every: when the hooks are called; log also after the last step.
      hooks: what is called.
      at_once: steps of a call; the last call makes those that are left.

    Returns:
      (state, steps done): fewer than `stop` where hooks.stop asked for it or the batches ended.
    """
    in_flight = collections.deque()  # when the queued steps end, in futures
    watcher = ThreadPoolExecutor(1, "ssl_jax_watcher")
    waited = 0.0  # seconds that the device lacked a batch, since the log before
    looked = saved = 0.0  # seconds in the hooks monitor and checkpoint, since the log before
    recent = []  # (last step, losses, gradient norms) of calls since the last log, on the device
    skipped = int(jax.device_get(state.skipped))  # in all, at the last log
    logged = None  # (step, metrics on their way to the host, what is measured here, recent)
    clock, clock_step = time.perf_counter(), start

    def flush():
        nonlocal skipped, logged
        if logged is not None:
            (done, metrics, measured, steps), logged = logged, None
            values = {k: float(np.ravel(v)[-1]) for k, v in jax.device_get(metrics).items()}
            if values["skipped"] > skipped:
                skipped = values["skipped"]
                hooks.bad(health.bad(_each(jax.device_get(steps))))
            hooks.log(done, {**values, **measured})

    done = start
    for first in range(start, stop, at_once):
        asked = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        waited += stall.stalled(asked, time.perf_counter(), _end(in_flight))
        state, metrics = step(state, batch)
        done = min(first + at_once, stop)
        in_flight.append(watcher.submit(_finish, metrics))
        recent.append((done, metrics["loss"], metrics["gradient_norm"]))
        if len(in_flight) > IN_FLIGHT:
            in_flight.popleft().result()
        looks = bool(every.monitor) and done % every.monitor == 0 and done < stop
        saves = bool(every.checkpoint) and done % every.checkpoint == 0 and done < stop
        if looks or saves:  # else a hook would wait for the queued calls, and be charged for them
            while in_flight:
                in_flight.popleft().result()
        if done % every.log == 0 or done == stop:
            flush()
            now = time.perf_counter()
            seconds = max(now - clock, 1e-9)
            measured = {
                "images_per_second": rows * (done - clock_step) / seconds,
                "data_wait_share": min(waited / seconds, 1.0),
                "seconds_steps": seconds,
                "seconds_monitor": looked,
                "seconds_checkpoint": saved,
            }
            logged = done, metrics, measured, recent
            clock, clock_step, recent = now, done, []
            waited = looked = saved = 0.0
            jax.tree.map(lambda m: m.copy_to_host_async(), metrics)
        if looks or saves:  # a step that a checkpoint holds is in the log: no run makes it again
            flush()
        # What the hooks take is not the steps': images_per_second is of training alone.
        begun = time.perf_counter()
        if looks:
            hooks.monitor(state)
        between = time.perf_counter()
        if saves:
            hooks.checkpoint(state)
        ended = time.perf_counter()
        looked, saved, clock = (
            looked + between - begun,
            saved + ended - between,
            clock + ended - begun,
        )
        if done < stop and hooks.stop(done):
            break
    flush()
    return state, done


def _each(calls: Iterable[tuple[int, Any, Any]]) -> Iterator[tuple[int, float, float]]:
    """(last step, losses, gradient norms) of calls -> (step, loss, norm) of each of their steps."""
    for last, losses, norms in calls:
        pairs = list(zip(np.ravel(losses), np.ravel(norms), strict=True))
        for step, (loss, norm) in enumerate(pairs, last - len(pairs) + 1):
            yield step, loss, norm


def _finish(metrics) -> float:
    """Waits for the end of a call; the clock then."""
    jax.block_until_ready(metrics)
    return time.perf_counter()


def _end(in_flight) -> float | None:
    """When the device was done with all it was given; None: it is not."""
    if not in_flight:
        return 0.0
    return in_flight[-1].result() if in_flight[-1].done() else None
