"""Several runs side by side: what came out, and which fields of their configs differ."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

from ssl_jax.report.charts import seeds
from ssl_jax.report.contents import Run
from ssl_jax.runs.commands import flat

ABSENT = object()  # a field that a config does not have


class Metric(NamedTuple):
    """A row of results.

    Attributes:
      title: with the unit.
      path: keys that lead to it in result.json.
      scale: factor on the value.
      digits: decimals.
      better: 1: higher is better, -1: lower is, 0: neither.
    """

    title: str
    path: tuple[str, ...]
    scale: float = 1.0
    digits: int = 2
    better: int = 0


class Cell(NamedTuple):
    """A value of one run.

    Attributes:
      value: as text, '–' where there is none.
      difference: from the first run, with its sign; '' where there is none.
      best: no other run's is better, and one's is worse.
    """

    value: str
    difference: str
    best: bool


METRICS = (
    Metric("kNN top-1 (%)", ("knn_top1",), 100, 1, 1),
    Metric("linear top-1 (%)", ("linear_top1",), 100, 1, 1),
    Metric("linear top-5 (%)", ("linear_top5",), 100, 1, 1),
    Metric("effective rank", ("collapse", "effective_rank"), 1, 1),
    Metric("features: std of isotropic", ("collapse", "feature_std_ratio")),
    Metric("embeddings: std of isotropic", ("collapse", "embedding_std")),
    Metric("embeddings: directions", ("collapse", "embedding_rank"), 1, 1),
    Metric("speed (images/s)", ("images_per_second",), 1, 0, 1),
    Metric("time (s)", ("wall_seconds",), 1, 0, -1),
    Metric("skipped steps", ("skipped_steps",), 1, 0),
)


def results(runs: Sequence[Run]) -> list[tuple[str, list[Cell]]]:
    """Title of a metric -> its value in every run; metrics that no run has are left out."""
    rows = []
    for metric in METRICS:
        values = [value(run, metric) for run in runs]
        known = [v for v in values if v is not None]
        if known:
            rows.append((metric.title, [cell(i, values, metric) for i in range(len(runs))]))
    return rows


def cell(i: int, values: Sequence[float | None], metric: Metric) -> Cell:
    """The value of run i among those of all runs."""
    v, first = values[i], values[0]
    if v is None:
        return Cell("–", "", False)
    away = "" if i == 0 or first is None else f"{v - first:+,.{metric.digits}f}"
    if not any(digit in away for digit in "123456789"):
        away = ""  # +0.0
    ahead = [metric.better * x for x in values if x is not None]
    best = metric.better * v == max(ahead) > min(ahead)
    return Cell(f"{v:,.{metric.digits}f}", away.replace("-", "−"), best)


def over_seeds(runs: Sequence[Run]) -> dict[str, dict[str, str]]:
    """Name of a group of runs that differ in their seed alone -> title -> 'mean ± sd'."""
    found = {}
    for group, name in seeds(runs).items():
        column = {}
        for metric in METRICS:
            values = [value(runs[i], metric) for i in group]
            known = [v for v in values if v is not None]
            if len(known) == len(group):
                mean, sd = statistics.mean(known), statistics.stdev(known)
                digits = metric.digits
                column[metric.title] = f"{mean:,.{digits}f} ± {sd:,.{digits}f}"
        if column:
            found[name] = column
    return found


def fields(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Dotted names of the fields that differ -> the value of every run, ABSENT where it has none.

    A field that came after a run has its default there. The workdir always differs and is left out.
    """
    configs = [flat(dict(run.config)) for run in runs]
    names = dict.fromkeys(name for c in configs for name in c)
    full = [{**run.later, **c} for run, c in zip(runs, configs, strict=True)]
    found = {}
    for name in names:
        values = [c.get(name, ABSENT) for c in full]
        if name != "workdir" and any(v != values[0] for v in values[1:]):
            found[name] = values
    return found


def value(run: Run, metric: Metric) -> float | None:
    """Of a run, scaled; None where it has none."""
    found: Any = run.result or {}
    for key in metric.path:
        found = found.get(key) if isinstance(found, dict) else None
    if not isinstance(found, int | float) or not math.isfinite(found):
        return None
    return metric.scale * found
