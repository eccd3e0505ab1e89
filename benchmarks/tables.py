"""How figures are said: medians with their range, ratios, means over seeds, tables in Markdown."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def middle(values: Sequence[float], digits: int = 1, scale: float = 1.0) -> str:
    """'2.65 (2.54 … 2.67)': the median, the least and the most."""
    values = [scale * v for v in values]
    least, most = (f"{f(values):,.{digits}f}" for f in (min, max))
    return f"{statistics.median(values):,.{digits}f} ({least} … {most})"


def ratio(values: Sequence[float], base: Sequence[float], sign: str = "× ") -> str:
    """'× 1.36 (1.25 … 1.36)': of the medians, and the range of the ratios within a round."""
    ratios = [v / b for v, b in zip(values, base, strict=False)]
    of = statistics.median(values) / statistics.median(base)
    return f"{sign}{of:.2f} ({min(ratios):.2f} … {max(ratios):.2f})"


def mean_sd(values: Sequence[float], digits: int = 1, scale: float = 1.0, sign: str = ",") -> str:
    """'97.2 ± 0.4': mean and standard deviation over seeds; of one seed its value, of none '–'."""
    values = [scale * v for v in values]
    if not values:
        return "–"
    mean = f"{statistics.mean(values):{sign}.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def row(cells: Iterable[Any]) -> str:
    """A line of a table in Markdown."""
    return f"| {' | '.join(map(str, cells))} |"


def head(columns: Sequence[str]) -> str:
    """The first two lines of one."""
    return f"{row(columns)}\n{'|---' * len(columns)}|"


def table(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """The whole of one."""
    return "\n".join([head(columns), *map(row, rows)])


def short(count: float) -> str:
    """Bytes in three digits: '94.1 MB' (10⁶ bytes)."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.{max(0, 3 - len(str(int(count / scale))))}f} {unit}"
    return f"{count:.0f} B"
