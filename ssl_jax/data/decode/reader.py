"""What every source of encoded pictures shares: decoding, memory, and pictures that are broken."""

import logging
import math
import threading
import time
from collections.abc import Callable

import numpy as np

from ssl_jax.contract.source import Lost
from ssl_jax.data.decode.picture import Unreadable, decode, highest
from ssl_jax.errors import UserError

log = logging.getLogger(__name__)

# So many broken pictures never stop a run: in a folder of 300, the 1 % of the default would be
# three, and a run should not die of a handful of files that it names anyway.
HANDFUL = 5

# A reader may fail for a moment: a stale handle, a busy server, no memory just now.
PAUSES = (0.1, 1.0)  # seconds before the second and the third attempt
AT_ONCE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # no pause
PASSING = (OSError, MemoryError, RuntimeError)  # array_record raises RuntimeError for I/O
WITNESSES = 8
SAMPLED = 8  # pictures that are looked at before a run for the range of 16-bit samples


def allowed(n: int, max_bad: float) -> int:
    """How many of n pictures may be unreadable: max(5, ceil(max_bad · n)), or 0 for max_bad = 0."""
    return max(HANDFUL, math.ceil(max_bad * n - 1e-9)) if max_bad > 0 else 0


def reader(
    load: Callable[[int], tuple[bytes, int]],
    path: Callable[[int], str],
    n: int,
    data,
    name: str,
) -> tuple[Callable, Callable]:
    """Makes `read` and `bad` of a Source (contract/source.py) out of encoded pictures.

    A picture that cannot be read is replaced by the next readable one, row + 1, row + 2, … mod n:
    a function of the files alone, so every process, thread and resumed run sees the same. It is
    named once in the log. So is a picture that vanishes during the run. Loading is tried three
    times; and where none of a few other pictures can be loaded either, the set as a whole is out of
    reach: that counts no picture as broken and raises Lost. A set of fewer than `data.cache_bytes`
    decoded bytes is kept in memory, each picture from the first time that it is read.

    Args:
      load: row -> (bytes, label). Unreadable: this picture is broken. OSError, MemoryError and
        RuntimeError may pass; whatever else it raises counts as broken at once.
      path: row -> what the log calls it.
      n: number of pictures.
      data: config.data; uses size, channels, fit, range, max_bad, cache_bytes.
      name: what an error calls the set.

    Returns:
      (read, bad). Both may be called from any thread.
    """
    size, channels, between = data.size, data.channels, bounds(getattr(data, "range", None))
    limit = allowed(n, data.max_bad)
    lock = threading.Lock()
    reasons: dict[int, str] = {}  # of the unreadable rows
    stand_in: dict[int, int] = {}  # unreadable row -> the row shown instead
    keep = n * size * size * channels <= data.cache_bytes
    # Pages of np.empty take memory only once they are written.
    memory = np.empty((n if keep else 0, size, size, channels), np.uint8)
    labels = np.full(n if keep else 0, -1, np.int32)
    index = np.arange(n if keep else 0, dtype=np.int32)
    ready = np.zeros(n if keep else 0, bool)

    def note(row: int, reason: str) -> None:
        with lock:
            if row not in reasons:
                reasons[row] = reason
                log.warning(
                    "cannot read %s: %s; the next picture takes its place", path(row), reason
                )
            if len(reasons) > limit:
                raise UserError(
                    f"{len(reasons)} of the {n} pictures of {name} cannot be read, more than "
                    f"data.max_bad={data.max_bad:g} allows ({limit}). The last was {path(row)}: "
                    f"{reason}. Mend or remove them (the log names each), or raise "
                    f"--config.data.max_bad."
                )

    def attempt(row: int) -> tuple[np.ndarray, int]:
        """(pixels, label) of this very picture, or what the last of three attempts raised."""
        for pause in (*PAUSES, None):
            try:
                encoded, label = load(row)
                return decode(encoded, size, channels, data.fit, between=between), label
            except PASSING as error:
                if out_of_reach(row):
                    reason = f"{path(row)}: {_reason(error)}"
                    raise Lost(f"{name} is out of reach ({reason})") from error
                if pause is None:
                    raise
                if not isinstance(error, AT_ONCE):
                    time.sleep(pause)

    def out_of_reach(row: int) -> bool:
        """Whether none of some other pictures, spread over the set, can be loaded."""
        spread = {(row + 1 + i * n // WITNESSES) % n for i in range(WITNESSES)}
        others = spread - {row} - reasons.keys()
        for other in others:
            try:
                load(other)
                return False
            except PASSING:
                pass
            except Exception:  # broken, but there
                return False
        return bool(others)

    def one(row: int) -> tuple[np.ndarray, int, int]:
        """(pixels, label, the row that they came from)."""
        if keep and ready[row]:
            return memory[row], int(labels[row]), int(index[row])
        first = stand_in.get(row, row)
        for step in range(n):
            other = (first + step) % n
            if other in reasons:
                continue
            try:
                pixels, label = attempt(other)
            except UserError:
                raise
            except Exception as error:
                note(other, _reason(error))
            else:
                if other != row:
                    stand_in[row] = other
                return pixels, label, other
        raise UserError(f"None of the {n} pictures of {name} can be read; the log says why.")

    def read(rows) -> dict[str, np.ndarray]:
        rows = np.asarray(rows)
        if not (keep and ready[rows].all()):
            images = np.empty((len(rows), size, size, channels), np.uint8)
            batch_index = np.empty(len(rows), np.int32)
            batch_labels = np.empty(len(rows), np.int32)
            for i, row in enumerate(rows.tolist()):
                images[i], batch_labels[i], batch_index[i] = one(row)
            if keep:
                # Two threads may write the same row: the same bytes. `ready` goes last.
                memory[rows], labels[rows], index[rows] = images, batch_labels, batch_index
                ready[rows] = True
            return {"image": images, "index": batch_index, "label": batch_labels}
        # take, not memory[rows]: it lets go of the interpreter lock.
        return {"image": memory.take(rows, axis=0), "index": index[rows], "label": labels[rows]}

    def bad() -> list[tuple[str, str]]:
        with lock:
            return [(path(row), reason) for row, reason in sorted(reasons.items())]

    return read, bad


def bounds(given: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """The 16-bit samples that become 0 and 255, of `data.range`.

    Args:
      given: bits n, which is (0, 2ⁿ − 1); or (low, high); or None.

    Raises:
      UserError: something else.
    """
    whole = given if isinstance(given, tuple | list) else (given,)
    if given is None:
        return None
    if all(type(x) is int for x in whole):
        if len(whole) == 1 and 1 <= whole[0] <= 16:
            return 0, 2 ** whole[0] - 1
        if len(whole) == 2 and 0 <= whole[0] < whole[1] < 2**16:
            return whole[0], whole[1]
    raise UserError(
        f"--config.data.range is {given!r}; it is the number of bits that 16-bit samples use, 1 to "
        "16, or (low, high), 0 to 65535: --config.data.range=12, '--config.data.range=(0,4095)'"
    )


def dark(load: Callable[[int], tuple[bytes, int]], n: int, name: str) -> str | None:
    """What is to be said where 16-bit pictures use few of their bits.

    Reads SAMPLED pictures, spread over the set. What cannot be read is left to the reader.

    Args:
      load, n, name: as for `reader`.

    Returns:
      one line that names `data.range`; None where there is nothing to say.
    """
    found = []
    for row in sorted({i * n // SAMPLED for i in range(SAMPLED)}):
        try:
            value = highest(load(row)[0])
        except Exception:
            continue
        if value is not None:
            found.append(value)
    if not found or max(found) >= 2**14 or max(found) == 0:
        return None
    top = max(found)
    return (
        f"{name}: 16-bit pictures whose largest value, in {len(found)} of them, is {top:,}: of "
        f"255 they show at most {top >> 8}, nearly black. --config.data.range={top.bit_length()} "
        "takes that many bits for the whole range"
    )


def _reason(error: Exception) -> str:
    """One line: what is wrong with a picture."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text if isinstance(error, Unreadable | OSError) else f"{type(error).__name__}: {text}"
