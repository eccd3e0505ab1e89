"""The hot loop: batches in, states out, and nothing that makes the device wait for the host."""

import collections
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from ssl_jax.train import health

# Steps that may be queued on the device. The host waits for the oldest, so it never runs far
# ahead (each queued step holds a batch in device memory), and the device always has the next one.
# No process of several can be further ahead of another than this: stopping.py builds on it.
IN_FLIGHT = 2


class Hooks(NamedTuple):
    """What happens beside training; every function may be slow, none changes the state.

    Attributes:
      log: (step, metrics: dict of floats) -> None, one log interval later than measured.
      bad: (list of (step, 'loss' or 'gradient norm')) -> None, before `log` where there are any:
        the steps skipped since the log before, and what was not finite.
      monitor: (state) -> None.
      checkpoint: (state) -> None; must copy what it needs before it returns.
      stop: (steps done) -> bool, asked after every step but the last: True leaves the loop.
    """

    log: Callable[[int, dict[str, float]], None]
    bad: Callable[[list[tuple[int, str]]], None]
    monitor: Callable[[Any], None]
    checkpoint: Callable[[Any], None]
    stop: Callable[[int], bool]


class Every(NamedTuple):
    """Steps between two calls of a hook; 0: never before the end."""

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
) -> tuple[Any, int]:
    """Runs the steps start … stop − 1.

    Args:
      step: compiled (state, batch) -> (state, metrics), see `make_step`; donates the state.
      state: the state before step `start`.
      batches: device batches, the first for step `start`.
      start, stop: steps done before and after.
      rows: images of a step over all devices, for images_per_second.
      every: when the hooks are called; log also after the last step.
      hooks: what is called.

    Returns:
      (state, steps done): fewer than `stop` where hooks.stop asked for it.
    """
    in_flight = collections.deque()
    recent = []  # (step, loss, gradient norm) of the steps since the last log, on the device
    skipped = int(jax.device_get(state.skipped))  # in all, at the last log
    logged = None  # (step, metrics on their way to the host, images a second, recent)
    clock, clock_step = time.perf_counter(), start

    def flush():
        nonlocal skipped
        if logged is not None:
            done, metrics, speed, steps = logged
            values = {k: float(v) for k, v in jax.device_get(metrics).items()}
            if values["skipped"] > skipped:
                skipped = values["skipped"]
                hooks.bad(health.bad(jax.device_get(steps)))
            hooks.log(done, {**values, "images_per_second": speed})

    done = start
    for done in range(start + 1, stop + 1):
        state, metrics = step(state, next(batches))
        in_flight.append(metrics)
        recent.append((done, metrics["loss"], metrics["gradient_norm"]))
        if len(in_flight) > IN_FLIGHT:
            jax.block_until_ready(in_flight.popleft())
        if done % every.log == 0 or done == stop:
            flush()
            now = time.perf_counter()
            logged = done, metrics, rows * (done - clock_step) / max(now - clock, 1e-9), recent
            clock, clock_step, recent = now, done, []
            jax.tree.map(lambda m: m.copy_to_host_async(), metrics)
        pause = time.perf_counter()
        if every.monitor and done % every.monitor == 0 and done < stop:
            hooks.monitor(state)
        if every.checkpoint and done % every.checkpoint == 0 and done < stop:
            hooks.checkpoint(state)
        clock += time.perf_counter() - pause  # images_per_second is of training alone
        if done < stop and hooks.stop(done):
            break
    flush()
    return state, done
