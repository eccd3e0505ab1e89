"""Spikes and steps that are not finite, on numbers by hand."""

import math

import numpy as np
import pytest

from ssl_jax.train import health

NAN = float("nan")


def test_a_spike_by_hand():
    """Median 3, median deviation 1: a spread is 1.4826, so 10 spreads above is 17.83."""
    before = [1, 2, 3, 4, 5] * 2
    assert health.spike(before, 17.82) is None
    assert health.spike(before, 18.0) == pytest.approx(15 / 1.4826)


def test_a_loss_that_hardly_moves_is_measured_in_hundredths_of_itself():
    assert health.spike([5.0] * 20, 5.49) is None
    assert health.spike([5.0] * 20, 5.75) == pytest.approx(15)
    assert health.spike([-0.9] * 20, -0.4) == pytest.approx(0.5 / 0.009)


def test_too_few_losses_none_that_is_finite_and_those_that_are_not_are_no_spike():
    assert health.spike([1.0] * 9, 100.0) is None
    assert health.spike([1.0] * 9 + [NAN, math.inf], 100.0) is None
    assert health.spike([1.0] * 10 + [NAN], 100.0) == pytest.approx(9_900)
    assert health.spike([1.0] * 50, NAN) is None and health.spike([1.0] * 50, math.inf) is None


def test_only_the_newest_losses_count():
    assert health.spike([100.0] * 60 + [1.0] * health.WINDOW, 2.0) == pytest.approx(100)


def test_losses_that_fall_climb_or_scatter_do_not_ring():
    rng = np.random.default_rng(0)
    scatter = rng.normal(0, 0.1, 2_000)
    for level in (
        8 * 0.99 ** np.arange(2_000),
        8 - 6 * 0.98 ** np.arange(2_000),
        np.full(2_000, 3),
    ):
        losses = level + scatter
        assert not [i for i in range(2_000) if health.spike(losses[:i], losses[i]) is not None]
        losses[1_500] += 2
        assert health.spike(losses[:1_500], losses[1_500]) > health.SPREADS
        assert health.spike(losses[:1_501], losses[1_501]) is None, "the next is none"


def test_the_loss_is_bad_before_the_gradient():
    steps = [(5, 1.0, 2.0), (6, 1.0, math.inf), (7, NAN, NAN), (8, math.inf, 1.0), (9, 1.0, 1.0)]
    assert health.bad(steps) == [(6, "gradient norm"), (7, "loss"), (8, "loss")]
    assert health.bad(steps[:1]) == []
