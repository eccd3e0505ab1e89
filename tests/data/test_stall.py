import numpy as np

from ssl_jax.data import stall


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
