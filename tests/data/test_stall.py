import time
import types

import numpy as np
import pytest

from ssl_jax.data import stall
from ssl_jax.train import loop


def test_only_an_idle_device_is_stalled():
    assert stall.stalled(asked=10.0, arrived=12.0, finished=None) == 0  # still computing
    assert stall.stalled(asked=10.0, arrived=12.0, finished=11.5) == 0.5
    assert stall.stalled(asked=10.0, arrived=12.0, finished=9.0) == 2
    assert stall.stalled(asked=10.0, arrived=12.0, finished=12.1) == 0


def watch(shares, seconds=1.0, every=10):
    """[(interval, line)] of what is said about log intervals with these shares."""
    now, said = stall.Watch(), []
    for i, share in enumerate(shares):
        now, line = stall.observe(now, (i + 1) * every, share, seconds)
        if line:
            said.append((i, line))
    return said


def test_slow_data_is_told_once_a_spell():
    ((first, line), (second, _)) = watch([0.9, *[0.5] * 10, 0.05, *[0.4] * 9])
    # The first interval fills the loader. Three of 10 s with half of it waited: 15 s of 30 s.
    assert (first, second) == (3, 14)
    assert line.startswith("slow data at step 40: the device waited for it in 50% of the last 30 s")


def test_short_spells_small_shares_and_tiny_runs_are_noise():
    assert watch([0.9, 0.9, 0.05] * 5) == []
    assert watch([0.09] * 100) == []
    assert watch([0.9] * 11, seconds=0.1) == []  # 0.9 s of waiting an interval: 9 s
    assert len(watch([0.9] * 14, seconds=0.1)) == 1
    assert watch(np.zeros(9)) == []


class Device:
    """A device whose steps take `seconds`, one after the other."""

    def __init__(self, seconds):
        self.seconds, self.free = seconds, 0.0

    def step(self, state, batch):
        self.free = max(self.free, time.perf_counter()) + self.seconds
        end = self.free

        class Value(np.ndarray):
            def block_until_ready(self):
                time.sleep(max(0.0, end - time.perf_counter()))
                return self

            def copy_to_host_async(self):
                pass

        names = ("loss", "gradient_norm", "skipped", "skipped_in_a_row")
        return state, {name: np.zeros(()).view(Value) for name in names}


@pytest.mark.parametrize("device, data, low, high", [(0.2, 0.22, 0.02, 0.6), (0.05, 0.2, 0.5, 1)])
def test_the_share_is_of_the_idle_device_not_of_the_waiting_host(device, data, low, high):
    # The host waits for nearly all of 0.22 s a step, the device for 0.02 of them. And where data
    # takes four times as long as a step, for three quarters.
    def batches():
        while True:
            time.sleep(data)
            yield 1

    logged = []
    hooks = {name: lambda *_: False for name in loop.Hooks._fields}
    hooks["log"] = lambda step, metrics: logged.append(metrics["data_wait_share"])
    _, done = loop.train(
        Device(device).step,
        types.SimpleNamespace(skipped=np.int32(0)),
        batches(),
        start=0,
        stop=8,
        rows=4,
        every=loop.Every(4, 0, 0),
        hooks=loop.Hooks(**hooks),
    )
    assert done == 8 and low <= logged[-1] <= high


def test_training_ends_where_the_batches_do():
    hooks = {name: lambda *_: False for name in loop.Hooks._fields}
    state = types.SimpleNamespace(skipped=np.int32(0))
    every, run = loop.Every(4, 0, 0), {"start": 3, "stop": 9, "rows": 4}
    found = loop.train(
        Device(0).step, state, iter([1, 2]), **run, every=every, hooks=loop.Hooks(**hooks)
    )
    assert found == (state, 5)
