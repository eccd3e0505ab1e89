"""The one exception that a user is meant to read, and lines that stop nothing."""

import sys


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do.

    `ssl_jax.main` prints the message alone, without a traceback, and exits with code 2.
    """


def near_misses(name: str, known) -> str:
    """Returns ' Did you mean a, b?' for the known names close to `name`, else the list of all.

    Args:
      name: what the user wrote.
      known: iterable of the accepted names.
    """
    import difflib

    known = sorted(map(str, known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return f" Known: {', '.join(known)}."


def line(error: BaseException) -> str:
    """The message of an error on one line, at most 200 characters."""
    return " ".join(str(error).split())[:200]


def warn(text: str) -> None:
    """Writes one line to stderr, above a progress bar where there is one."""
    from tqdm import tqdm

    tqdm.write(" ".join(text.split()), file=sys.stderr)
    sys.stderr.flush()
