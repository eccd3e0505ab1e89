"""What the numbers of a run say about its health: losses that jump, and what went bad first."""

import math
from collections.abc import Iterable, Sequence

import numpy as np

WINDOW = 50  # logged losses that a new one is compared with
FEWEST = 10  # before there are as many, nothing is a spike
SPREADS = 10.0
FLOOR = 0.01  # smallest spread, as a share of the median: a loss that hardly moves has none


def spike(losses: Sequence[float], loss: float) -> float | None:
    """How far a loss sticks out above the newest ones, if it is a spike.

        spread = max(1.4826 · median |l − m|, 0.01 |m|),   m = median l,   l = the last 50 losses
        a spike: loss > m + 10 spread  and  loss > max l

    (1.4826 makes the median deviation the standard deviation of a normal law.) Median and median
    deviation are not moved by a spike before. The second condition is for losses that climb, as
    MoCo's does while its queue fills.

    Measured on the digits, all methods: none of 10,139 logged losses of 161 runs is one, the most
    is 3.1 spreads. Logged at every step of batches of 64, six methods for 200 steps: the most is
    6.2, of Barlow Twins.

    Args:
      losses: logged before, oldest first; those that are not finite are passed over.
      loss: the new one.

    Returns:
      (loss − m) / spread where it is a spike; None where it is none, is not finite, or where
      fewer than 10 finite losses came before.
    """
    seen = np.array([x for x in losses if math.isfinite(x)][-WINDOW:])
    if len(seen) < FEWEST or not math.isfinite(loss):
        return None
    middle = np.median(seen)
    spread = max(1.4826 * np.median(np.abs(seen - middle)), FLOOR * abs(middle), 1e-12)
    above = float((loss - middle) / spread)
    return above if above > SPREADS and loss > seen.max() else None


def bad(steps: Iterable[tuple[int, float, float]]) -> list[tuple[int, str]]:
    """The steps that were skipped, and why.

    Args:
      steps: (step, loss, gradient norm), oldest first.

    Returns:
      (step, 'loss' or 'gradient norm') of each: the gradient norm only where the loss was finite.
    """
    found = []
    for step, loss, norm in steps:
        if not math.isfinite(loss):
            found.append((step, "loss"))
        elif not math.isfinite(norm):
            found.append((step, "gradient norm"))
    return found
