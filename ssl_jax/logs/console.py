"""What a person sees while a run goes on, and at its end."""

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

SHOWN = (
    ("loss", "loss", "{:.3f}"),
    ("knn_top1", "kNN", "{:.1%}"),
)


class Progress:
    """Progress of a run; a context manager.

    On a terminal it is a tqdm bar. Elsewhere (a file, a job's log) it is a plain line: the first
    update, the last step, and between them not more often than every `every` seconds nor than
    every 0.5% of the run, but at least every five minutes. A run thus leaves a few hundred lines,
    and a log that is being watched moves.

    Args:
      total: steps of the whole run.
      start: steps done before, on a resume.
      shown: (key in the metrics, name on screen, format) of what is shown, where present. A
        value stays on screen until the next one comes: kNN is measured seldom.
      noun: what the rows of a step are: 'images'.
      stream: where to write; stderr when None.
      terminal: whether `stream` is a terminal; asked of it when None.
      every: seconds between plain lines.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        total: int,
        start: int = 0,
        shown: Sequence[tuple[str, str, str]] = SHOWN,
        noun: str = "images",
        stream: TextIO | None = None,
        terminal: bool | None = None,
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._total, self._shown, self._noun = total, tuple(shown), noun
        self._stream = sys.stderr if stream is None else stream
        self._every, self._clock = every, clock
        self._values: dict[str, str] = {}
        self._speed: float | None = None
        # Time left counts from the first update, so that compiling does not spoil it.
        self._first: tuple[int, float] | None = None
        self._said: tuple[int, float] | None = None  # step and time of the last plain line
        self._bar = None
        if self._stream.isatty() if terminal is None else terminal:
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=start,
                file=self._stream,
                dynamic_ncols=True,
                mininterval=0.2,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}",
            )

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows that `step` steps are done.

        Args:
          step: steps done, not falling.
          metrics: what is known by now, any keys; 'images_per_second' is shown as the rate. Values
            are Python or NumPy numbers: reading a JAX array here would make the host wait for the
            device.
        """
        now = self._clock()
        for key, name, form in self._shown:
            if metrics.get(key) is not None:
                self._values[name] = form.format(float(metrics[key]))
        self._speed = metrics.get("images_per_second", self._speed)
        if self._first is None:
            self._first = (step, now)
        text = self._text(step, now)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif self._due(step, now):
            self._said = (step, now)
            width = len(str(self._total))
            share = f"{step / max(self._total, 1):4.0%}"
            self._print(f"step {step:{width}d}/{self._total} {share}  {text.replace(', ', '  ')}")

    def note(self, text: str) -> None:
        """Writes a line of its own, above the bar where there is one."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _due(self, step, now):
        if self._said is None or (step >= self._total and step != self._said[0]):
            return True
        steps, seconds = step - self._said[0], now - self._said[1]
        return seconds >= self._every and (steps >= self._total / 200 or seconds >= 300)

    def _text(self, step, now):
        parts = [f"{name} {value}" for name, value in self._values.items()]
        if self._speed is not None:
            parts.append(f"{_thousands(self._speed)} {self._noun}/s")
        done, seconds = step - self._first[0], now - self._first[1]
        if done > 0 and seconds > 0 and step < self._total:
            parts.append(f"{duration((self._total - step) * seconds / done)} left")
        return ", ".join(parts)

    def _print(self, text):
        self._stream.write(text.rstrip() + "\n")
        self._stream.flush()


def duration(seconds: float) -> str:
    """Seconds as people say them: '0.4 s', '42 s', '3 min 05 s', '2 h 10 min', '4 d 03 h'."""
    if not math.isfinite(seconds):
        return "?"
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes = round(seconds / 60)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def table(
    rows: Mapping[str, Mapping[str, float | str | None]],
    columns: Sequence[str],
    form: str = "{:.1%}",
    corner: str = "",
) -> str:
    """A small table of results, columns aligned.

                   kNN  linear
        pixels   92.7%   90.0%
        learned  96.2%   97.3%

    Args:
      rows: name of the row -> name of the column -> value. A missing value or None is a dash; a
        string stands as it is.
      columns: in order.
      form: format of numbers; the default prints fractions as percent.
      corner: heading of the first column.

    Returns:
      lines joined by newlines, none at the end.
    """

    def cell(value):
        if value is None:
            return "–"
        return value if isinstance(value, str) else form.format(value)

    grid = [[corner, *columns]]
    grid += [[name, *(cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(len(line[i]) for line in grid) for i in range(len(columns) + 1)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0])]
            + [text.rjust(width) for text, width in zip(line[1:], widths[1:], strict=True)]
        ).rstrip()
        for line in grid
    )


def _thousands(rate):
    """Three digits are enough: 7.4, 412, 12,300."""
    if rate < 10:
        return f"{rate:.1f}"
    size = 10 ** max(0, math.floor(math.log10(rate)) - 2)
    return f"{round(rate / size) * size:,.0f}"
