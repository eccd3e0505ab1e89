"""From metrics to charts: dictionaries that page.js draws.

A chart is {'title', 'unit', 'series', 'lines'} and, where true, 'zero', 'log', 'area', 'double',
'legend':

    series  [{'name', 'color': number of a colour and its dashes, 'x': [..],
              'y': [.., null where not finite], 'faint': drawn weakly, 'low', 'high': [..], a band}]
    lines   [{'name', 'value', 'alarm': True: values below it raise an alarm,
              'color': of the curve that it belongs to, if any}], horizontal
    zero    the y axis starts at 0
    log     both axes are logarithmic
    area    what is below the curve is filled
    double  it is twice as wide as others
    legend  it has one even if all its curves have one colour
    said    what it shows, in a sentence
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.evaluate.health import collapse
from ssl_jax.report import glossary, worth
from ssl_jax.report.contents import Run
from ssl_jax.runs import config as configs
from ssl_jax.runs.commands import flat

MOST = 1_000  # points of a curve


class Panel(NamedTuple):
    """A chart of one metric.

    Attributes:
      title: with the unit, if it has any.
      scale: factor on the values, 100 for percent of a fraction.
      zero: the y axis starts at 0.
      smooth: a running mean is drawn on top.
      group: heading that the chart stands under.
    """

    title: str
    scale: float = 1.0
    zero: bool = False
    smooth: bool = False
    group: str = "training"


PANELS = {
    "loss": Panel("Loss", smooth=True),
    "learning_rate": Panel("Learning rate", zero=True),
    "momentum": Panel("Momentum of the target"),
    "gradient_norm": Panel("Gradient norm", zero=True, smooth=True),
    "images_per_second": Panel("Speed (images/s)", zero=True),
    "feature_std_ratio": Panel("Features: std (1 = isotropic)", zero=True, group="collapse"),
    "effective_rank": Panel("Features: effective rank (RankMe)", zero=True, group="collapse"),
    "embedding_std": Panel("Embeddings: std (1 = isotropic)", zero=True, group="collapse"),
    "embedding_rank": Panel("Embeddings: directions", zero=True, group="collapse"),
}
# Said elsewhere, or of no interest on their own.
LEFT_OUT = (
    "step", "epoch", "skipped", "skipped_in_a_row", "data_wait_seconds", "data_wait_share",
    "seconds_steps", "seconds_monitor", "seconds_checkpoint", "feature_std",
)  # fmt: skip
GROUPS = {
    "training": "Training",
    "collapse": "Collapse monitors",
    "spectrum": "Spectrum",
    "method": "What the method measures",
}


def of_runs(runs: Sequence[Run]) -> dict[str, list[dict[str, Any]]]:
    """All charts of some runs, the same metric of all of them in one.

    Of a single run all accuracies share a chart.

    Args:
      runs: one or several.

    Returns:
      group, a key of GROUPS -> its charts; groups without one are left out.
    """
    found: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    keys = _keys(runs)
    accuracies = [k for k in keys if is_accuracy(k)]
    together = [accuracies] if len(runs) == 1 and accuracies else [[k] for k in accuracies]
    for names in together:
        found["training"].append(_accuracy(runs, names) | {"double": len(runs) == 1})
    for key in [k for k in PANELS if k in keys]:
        found[PANELS[key].group].append(_metric(runs, key, PANELS[key]))
    for key in keys:
        if key not in PANELS and key not in accuracies:
            found["method"].append(_metric(runs, key, _panel_of_method(key)))
    several = {"legend": True} if len(runs) > 1 else {}
    return {group: [c | several for c in charts] for group, charts in found.items() if charts}


def spectrum(spectra: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Singular values, each set divided by its largest, on logarithmic axes.

    Args:
      spectra: name of the features -> float [s], descending.
    """
    series = []
    for color, (name, sigma) in enumerate(spectra.items()):
        rank = float(collapse.effective_rank(np.asarray(sigma, np.float32)))
        share = np.maximum(sigma / max(float(np.max(sigma)), 1e-30), 1e-7)
        x = np.arange(1, len(share) + 1)
        label = f"{name}: effective rank {rank:.3g}"
        series.append({"name": label, "color": color, **_points(x, share)})
    title = "Singular values of the features / largest"
    return chart(title, series, unit="dimension", log=True, said=glossary.SPECTRUM)


def usage(counts: np.ndarray) -> dict[str, Any]:
    """Images of each prototype that is used, the most used first.

    Args:
      counts: int [K].
    """
    ordered = np.sort(counts[counts > 0])[::-1]
    series = [{"name": "images", "color": 0, **_points(np.arange(1, len(ordered) + 1), ordered)}]
    lines = [{"name": "all alike", "value": float(counts.sum() / len(counts)), "alarm": False}]
    title = "Images of each prototype, most used first"
    return chart(title, series, lines, unit="prototype", zero=True, area=True)


def chart(
    title: str,
    series: Iterable[Mapping[str, Any]],
    lines: Iterable[Mapping[str, Any]] = (),
    unit: str = "step",
    **more: Any,
) -> dict[str, Any]:
    """A chart; `unit` is what x counts, `more` are the fields that not every chart has."""
    return {"title": title, "unit": unit, "series": list(series), "lines": list(lines), **more}


def is_accuracy(key: str) -> bool:
    """Whether a metric is a share of images that a probe gets right."""
    return "top1" in key or "top5" in key


def readable(key: str) -> str:
    """'positive_similarity' -> 'Positive similarity'; 'knn_top1' -> 'kNN top-1'.

    The linear probe of the monitors is called online: it is not the one of the result.
    """
    special = {"top1": "top-1", "top5": "top-5", "knn": "kNN", "kl": "KL"}
    text = " ".join(special.get(word, word) for word in key.split("_"))
    text = text if text.startswith("kNN") else text[:1].upper() + text[1:]
    return f"{text}, online" if key.startswith("linear_top") else text


def seeds(runs: Sequence[Run]) -> dict[tuple[int, ...], str]:
    """Runs that differ in their seed alone.

    A field that came after a run has its default there. Fields that change nothing of what is
    computed (`config.FREE_ON_RESUME`) may differ.

    Returns:
      numbers of at least two runs -> a name for all of them; runs without a fellow are left out.
    """
    several = [g for g in _alike(runs) if len(g) > 1]
    methods = [runs[g[0]].config["method"]["name"] for g in several]
    return {
        tuple(g): f"{len(g)} seeds of {method}"
        + (f" ({runs[g[0]].name}, …)" if methods.count(method) > 1 else "")
        for g, method in zip(several, methods, strict=True)
    }


def colors(runs: Sequence[Run]) -> list[int]:
    """The number of each run's colour: seeds of the same run have one colour, as has their mean."""
    of = {i: number for number, group in enumerate(_alike(runs)) for i in group}
    return [of[i] for i in range(len(runs))]


def _alike(runs):
    """[[0, 2], [1]]: numbers of the runs that differ in their seed alone, in order."""
    free = ("seed", *(f for f in configs.FREE_ON_RESUME if f not in configs.COUNTED))
    within = tuple(f"{name}." for name in free)
    groups: list[tuple[dict[str, Any], list[int]]] = []
    for i, run in enumerate(runs):
        fields = {**run.later, **flat(dict(run.config))}
        fields = {k: v for k, v in fields.items() if k not in free and not k.startswith(within)}
        # The same seed twice is no second one.
        seeds = {
            runs[j].config.get("seed") for other, group in groups if other == fields for j in group
        }
        same = [group for other, group in groups if other == fields]
        if same and run.config.get("seed") not in seeds:
            same[0].append(i)
        else:
            groups.append((fields, [i]))
    return [group for _, group in groups]


def _panel_of_method(key):
    """What a method counts right is a share of images, in percent as the probes' accuracies are."""
    if key.endswith("accuracy") or key == "agreement":
        return Panel(f"{readable(key)} (%)", 100, group="method")
    return Panel(readable(key), group="method")


def _keys(runs):
    """Numeric metrics of any run, in order of appearance; a counter of skips if there are any."""
    keys: dict[str, None] = {}
    for run in runs:
        for record in run.records:
            for key, value in record.items():
                number = isinstance(value, int | float) and not isinstance(value, bool)
                if number and (key not in LEFT_OUT or (key == "skipped" and value > 0)):
                    keys[key] = None
    return list(keys)


def _accuracy(runs, keys):
    """Top-1 and the like, in percent, with the baselines of a single run."""
    series, lines = [], []
    for j, key in enumerate(keys):
        series += _curves(runs, key, Panel(key, 100), readable(key), j)
    if len(runs) == 1:
        result = runs[0].result or {}
        baselines, named = result.get("baselines", {}), worth.baselines(result)
        for key, probe in (("knn_top1", "kNN"), ("linear_top1", "linear")):
            for name, shown in (("pixels", named["pixels"]), ("untrained", "untrained")):
                value = baselines.get(name, {}).get(key)
                if value is not None and key in keys:
                    line = {"name": f"{shown}, {probe}", "value": 100 * value, "alarm": False}
                    lines.append(line | {"color": keys.index(key)})
    title = "Accuracy (%)" if len(runs) == 1 else f"{readable(keys[0])} (%)"
    known = [key for key in keys if key in glossary.OF_METRICS]
    said = " ".join(f"{readable(key)}: {glossary.OF_METRICS[key]}" for key in known)
    return chart(title, series, lines, said=said)


def _metric(runs, key, panel):
    series = _curves(runs, key, panel, readable(key), 0)
    said = glossary.OF_METRICS.get(key, "")
    return chart(panel.title, series, _thresholds(runs, key), zero=panel.zero, said=said)


def _curves(runs, key, panel, name, color):
    """A curve for every run, named `name` if it is one; means on top of what is drawn weakly."""
    series, bands = [], _bands(runs, key, panel.scale)
    drawn = colors(runs) if len(runs) > 1 else [color]
    means = {band["color"] for band in bands}
    for i, run in enumerate(runs):
        points = _series(run.records, key, panel.scale)
        if not points["x"]:
            continue
        smooth = panel.smooth and len(runs) == 1 and len(points["x"]) >= 40
        named = {"name": name if len(runs) == 1 else run.name, "color": drawn[i]}
        series.append({**named, "faint": smooth or drawn[i] in means, **points})
        if smooth:
            series.append({**named, "name": "running mean", **_running_mean(points)})
    return series + bands


def _thresholds(runs, key):
    """Where the alarm speaks, if it is the same for all runs."""
    value = {
        "feature_std_ratio": collapse.STD_RATIO,
        "embedding_std": collapse.EMBEDDING_STD,
        "embedding_rank": collapse.EMBEDDING_RANK,
    }.get(key)
    widths = {run.width for run in runs}
    if key == "effective_rank" and len(widths) == 1 and None not in widths:
        value = collapse.rank_threshold(widths.pop())
    return [] if value is None else [{"name": "alarm below", "value": value, "alarm": True}]


def _bands(runs, key, scale):
    """Mean and standard deviation of runs that differ in their seed alone, at common steps."""
    series, drawn = [], colors(runs)
    for group, name in seeds(runs).items():
        values = [
            {r["step"]: scale * r[key] for r in runs[i].records if _finite(r.get(key))}
            for i in group
        ]
        steps = sorted(set.intersection(*(set(v) for v in values)))
        if not steps:
            continue
        table = np.array([[v[s] for s in steps] for v in values])  # [runs, steps]
        kept = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), MOST)).astype(int))
        table, x = table[:, kept], np.array(steps)[kept]
        mean, sd = table.mean(0), table.std(0, ddof=1)
        band = {"low": numbers(mean - sd), "high": numbers(mean + sd)}
        named = {"name": f"{name}, mean ± sd", "color": drawn[group[0]]}
        series.append({**named, **_points(x, mean), **band})
    return series


def _series(records, key, scale):
    """{'x', 'y'} of a metric: at most MOST evenly spread points, and all that are not finite."""
    pairs = [(r["step"], r[key]) for r in records if isinstance(r.get(key), int | float)]
    kept = set(np.linspace(0, len(pairs) - 1, min(len(pairs), MOST)).astype(int).tolist())
    pairs = [p for i, p in enumerate(pairs) if i in kept or not math.isfinite(p[1])]
    return _points([x for x, _ in pairs], [scale * y for _, y in pairs])


def _running_mean(points):
    """Centred mean of the finite values, over a 25th of them, fewer at the ends."""
    pairs = [(x, y) for x, y in zip(points["x"], points["y"], strict=True) if y is not None]
    width = max(3, len(pairs) // 25)
    y = np.array([y for _, y in pairs])
    mean = [y[max(i - width // 2, 0) : i + width // 2 + 1].mean() for i in range(len(y))]
    return _points([x for x, _ in pairs], mean)


def _points(x, y):
    return {"x": numbers(x), "y": numbers(y)}


def numbers(values: Iterable[float]) -> list[float | int | None]:
    """Eight significant digits, as float32 has them; None where a value is not finite.

    With fewer, a momentum that goes from 0.9999 to 1 would be drawn as stairs.
    """
    return [
        int(v)
        if float(v).is_integer() and abs(v) < 1e15
        else float(f"{v:.8g}")
        if math.isfinite(v)
        else None
        for v in values
    ]


def _finite(value):
    return isinstance(value, int | float) and math.isfinite(value)
