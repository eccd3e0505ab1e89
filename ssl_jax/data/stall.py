"""How long the device waits for data, and when that is worth a word.

The host waits for a batch while the device still computes: that costs nothing. What costs is the
time from when the device has finished all it was given to when the next batch is there.
"""

from typing import NamedTuple

SHARE = 0.1  # of the time of the steps; below it, a faster disk would hardly be felt
INTERVALS = 3  # log intervals in a row
SECONDS = 10.0  # lost in them: on tiny runs the share is noise


class Watch(NamedTuple):
    """What is remembered between two log intervals.

    Attributes:
      step: of the newest log; None before the first, which fills the loader and says nothing.
      intervals: intervals in a row with a share of at least SHARE.
      waited, seconds: time waited and time in all, in these intervals.
      said: whether this spell has been told.
    """

    step: int | None = None
    intervals: int = 0
    waited: float = 0.0
    seconds: float = 0.0
    said: bool = False


def stalled(asked: float, arrived: float, finished: float | None) -> float:
    """Seconds that the device had nothing to do for want of a batch.

    max(0, arrived − max(asked, finished)).

    Args:
      asked: clock when the loop asked for the batch, in seconds.
      arrived: clock when it was there.
      finished: clock when the device had finished the last step; None: it had not by `arrived`.
    """
    return 0.0 if finished is None else max(0.0, arrived - max(asked, finished))


def observe(watch: Watch, step: int, share: float, seconds: float) -> tuple[Watch, str | None]:
    """Takes in one log interval; says something when data has been slow for a while.

    Args:
      watch: from before; Watch() at the start.
      step: steps done.
      share: of the interval in which the device waited for data, 0 to 1.
      seconds: a step took on average.

    Returns:
      (watch, a line for the console, or None): once a spell of at least INTERVALS intervals and
      SECONDS seconds of waiting; again after the share has been below SHARE.
    """
    if watch.step is None or share < SHARE:
        return Watch(step), None
    length = (step - watch.step) * seconds
    waited, total = watch.waited + share * length, watch.seconds + length
    now = Watch(step, watch.intervals + 1, waited, total, watch.said)
    if now.said or now.intervals < INTERVALS or waited < SECONDS:
        return now, None
    text = (
        f"slow data at step {step:,}: the device waited for it in {waited / total:.0%} of the last "
        f"{total:.0f} s; more --config.data.threads, a faster disk, smaller files or "
        "--config.data.cache_bytes that hold the set may help"
    )
    return now._replace(said=True), text
