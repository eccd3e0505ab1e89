"""What has no later chance is tried again: the last checkpoint of a run, a result."""

import time
from collections.abc import Callable

import jax

from ssl_jax.errors import UserError, warn
from ssl_jax.processes import talk

# Seconds between the attempts: ten minutes in all.
WAITS = (1, 2, 5, 10, 20, 22, *(30,) * 18)


def insist(attempt: Callable[[], str | None], what: str, then: str) -> None:
    """Lets process 0 try until it succeeds, for ten minutes; every process calls it and waits.

    Args:
      attempt: returns what went wrong, on one line, or None. Called on process 0 alone.
      what: is written, with its path.
      then: what the user can do once it can be written.

    Raises:
      UserError: it could not be written in all that time.
    """
    for wait in (*WAITS, None):
        problem = attempt() if jax.process_index() == 0 else None
        if not talk.from_first(problem is not None):
            return
        if wait is None:
            why = f" ({problem})" if problem else ""
            minutes = f"{sum(WAITS) / 60:.0f} minutes"
            raise UserError(f"{what} could not be saved for {minutes}{why}; {then}")
        if problem:
            warn(f"{what} is not saved ({problem}); trying again in {wait} s")
        time.sleep(wait)
