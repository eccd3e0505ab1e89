"""The end of a pretraining run: its pictures, its result.json, and what is said of them."""

import math
import pathlib
import shlex
import sys
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ssl_jax.checkpoints import tree
from ssl_jax.evaluate.features import representation
from ssl_jax.evaluate.features.representation import MONITORS, Judged
from ssl_jax.evaluate.health import collapse
from ssl_jax.logs import console, metrics
from ssl_jax.report import collect, page, pictures, worth
from ssl_jax.runs import commands, workdir
from ssl_jax.train.experiment import Experiment
from ssl_jax.train.state import TrainState

COLUMNS = {"knn_top1": "kNN", "linear_top1": "linear"}
EMBEDDED = ("embedding_std", "embedding_rank")  # of `losses.spread`


def write(
    e: Experiment, state: TrainState, judged: Mapping[str, Judged], folder: pathlib.Path
) -> None:
    """Writes report/: the pictures as PNG files, and the page. Every process calls it.

    What the disk does not take is tried again for ten minutes, as the result is.

    Args:
      e: the run.
      state: its last.
      judged: 'pixels', 'untrained' and 'learned', of the rows that `representation.split` gives.
      folder: the workdir; its metrics.jsonl and result.json are read.

    Raises:
      UserError: it could not be written in all that time.
    """
    into = folder / "report"
    files: dict[str, bytes] = {}
    runs = []
    if jax.process_index() == 0:
        weights = jax.tree.map(np.asarray, collect.weights(e.method, state))
        drawn = collect.draw_sample(e.config, e.method, weights, e.train)
        if all(np.isfinite(judged[name].shown).all() for name in ("untrained", "learned")):
            drawn = drawn._replace(places=places(judged))
        files = draw(e, judged, drawn, metrics.read(folder / "metrics.jsonl"))
        shown = collect.draw(e.config, e.method, weights, seen(e, judged), drawn)
        runs.append(collect.run_of(folder, shown, width=judged["learned"].features.shape[1]))
    page_again = f"{commands.program()} --config report --config.runs={shlex.quote(str(folder))}"
    workdir.write_files(
        into, {into / name: png for name, png in files.items()}, f"{page_again} writes the page"
    )
    page.write(into / "index.html", runs)


def draw(
    e: Experiment,
    judged: Mapping[str, Judged],
    drawn: collect.Drawn,
    records: list[dict[str, Any]],
) -> dict[str, bytes]:
    """Curves, views, embedding, spectrum, and one summary of them: name of the file -> PNG.

    Args:
      e: the run.
      judged: 'pixels', 'untrained' and 'learned'.
      drawn: of `e.train`.
      records: lines of metrics.jsonl.
    """
    title = f"{e.config.method.name} on {e.train.name}"
    pixels = judged["pixels"].knn_top1
    accuracy = pictures.PANELS[1]
    if pixels is not None:
        raw = "raw pixels" if "image" in e.train.fields else "raw data"
        accuracy = accuracy._replace(lines=((raw, pixels),))
    panels = (pictures.PANELS[0], accuracy, *pictures.PANELS[2:])
    found = {"curves.png": pictures.png(lambda f: pictures.curves(f, records, panels, title))}

    own = drawn.shown.get(collect.OWN)
    views = {} if drawn.originals is None else (own.pictures if own else drawn.views)
    plain = {"mean": (0.0,), "std": (1.0,)}  # normalisation is undone already
    for name, several in views.items():
        file = "views.png" if len(views) == 1 else f"views_{name}.png"
        found[file] = pictures.png(
            lambda f, x=several: pictures.views_sheet(f, drawn.originals, x / 255, **plain)
        )
    found["spectrum.png"] = pictures.png(lambda f: pictures.spectrum(f, spectra(judged)))
    if drawn.places is None:
        return found

    names = e.train.class_names or e.train.classes
    learned = judged["learned"]
    labels = learned.shown_labels[collect.rows_shown(len(learned.shown))]
    places = drawn.places
    found["embedding.png"] = pictures.png(
        lambda f: pictures.embedding(f, places["learned"], labels, names)
    )
    found["summary.png"] = pictures.png(
        lambda f: pictures.summary(
            f,
            places["untrained"],
            places["learned"],
            labels,
            names,
            records,
            drawn.originals,
            next(iter(views.values())) / 255 if views else None,
            **plain,
            title=title,
            panels=panels[:2],
        )
    )
    return found


def places(judged: Mapping[str, Judged]) -> dict[str, np.ndarray]:
    """t-SNE of the features before and after training, of `collect.rows_shown`."""
    rows = collect.rows_shown(len(judged["learned"].shown))
    return collect.planes(*(judged[name].shown[rows] for name in ("learned", "untrained")))


def seen(e: Experiment, judged: Mapping[str, Judged]) -> collect.Seen:
    """What was judged, as the page wants it."""
    c, learned = e.config.evaluate, judged["learned"]
    learn, query = representation.split(e.train, e.test, c.train_examples, c.test_examples)
    return collect.Seen(
        learn=learn,
        shown=query or learn,
        bank=learned.features,
        features=learned.shown,
        untrained=judged["untrained"].shown,
        labels=learned.shown_labels,
        predicted=learned.predicted,
        names=collect.names_of(e.train.class_names, e.train.classes),
        spectra=spectra(judged),
    )


def spectra(judged: Mapping[str, Judged]) -> dict[str, np.ndarray]:
    """Singular values of the features before and after training."""
    return {name: judged[name].collapse["singular_values"] for name in ("untrained", "learned")}


def result(
    e: Experiment,
    state: TrainState,
    judged: Mapping[str, Judged],
    folder: pathlib.Path,
    wall_seconds: float,
    resumed_at: int,
) -> dict[str, Any]:
    """The content of result.json; every accuracy in [0, 1], None without labels."""
    learned, c = judged["learned"], e.config.evaluate
    learn, judge = representation.split(e.train, e.test, c.train_examples, c.test_examples)
    steps = [r for r in metrics.read(folder / "metrics.jsonl") if "images_per_second" in r]
    speeds = [r["images_per_second"] for r in steps]
    measured = {k: float(learned.collapse[k]) for k in MONITORS}
    alarm = collapse.alarm(
        measured["feature_std_ratio"], measured["effective_rank"], learned.features.shape[1]
    )
    # Of the newest step that was not skipped, if any was not.
    embedded = [{k: r[k] for k in EMBEDDED} for r in steps if EMBEDDED[0] in r]
    embedded = [r for r in embedded if all(map(math.isfinite, r.values()))] or embedded
    if embedded:
        measured |= embedded[-1]
        alarm = alarm or collapse.embedding_alarm(**embedded[-1])
    # JSON has no NaN; the alarm says it.
    measured = {k: v if math.isfinite(v) else None for k, v in measured.items()}
    return {
        "job": "pretrain",
        "method": e.config.method.name,
        "dataset": e.config.data.source,
        "seed": e.config.seed,
        "steps": int(state.step),
        "batch": e.config.batch,
        "images_per_second": float(np.median(speeds)) if speeds else None,
        "wall_seconds": wall_seconds,  # of the process that finished the run
        "peak_memory_bytes": peak_memory(),  # of one device, or of the process where that is a CPU
        "resumed_at": resumed_at,
        "skipped_steps": int(state.skipped),
        "unreadable_pictures": len(e.train.bad()),
        "knn_top1": learned.knn_top1,
        "linear_top1": learned.linear_top1,
        "linear_top5": learned.linear_top5,
        "baselines": {
            name: {key: getattr(judged[name], key) for key in COLUMNS}
            for name in ("pixels", "untrained")
        },
        "problems": {name: "; ".join(j.problems) for name, j in judged.items() if j.problems},
        "fields": sorted(e.train.fields),
        "width": learned.features.shape[1],
        "judged_on": "test" if e.test is not None else "a fifth of train, held out of the probes",
        # Images that the probes learned from and were judged on, and how many there are.
        "train_examples": len(learn.rows),
        "test_examples": 0 if judge is None else len(judge.rows),
        "train_set": e.train.examples,
        "test_set": 0 if judge is None else judge.source.examples,
        "collapse": {**measured, "alarm": alarm},
        "fingerprint": tree.fingerprint(state),
        "made_with": {
            "devices": jax.device_count(),
            "platform": jax.devices()[0].platform,
            "processes": e.cluster.processes,
            "parallel": e.config.parallel,
            **versions(),
        },
    }


def text(result: Mapping[str, Any], folder: pathlib.Path) -> str:
    """What the console says at the end: the table, where things are, how to probe again."""
    rows = {**result["baselines"], "learned": result}
    named = {**worth.baselines(result), "learned": "learned features"}
    table = {
        shown.removeprefix("the "): {title: rows[name][key] for key, title in COLUMNS.items()}
        for name, shown in named.items()
    }
    lines = []
    if not worth.judged(result):
        lines.append("no labels, so no accuracies; the collapse monitors need none:")
    else:
        lines.append(console.table(table, list(COLUMNS.values())))
        if sample := worth.sample(result):
            lines.append(f"kNN and linear: {sample}")
    c = result["collapse"]
    if None not in (c["feature_std_ratio"], c["effective_rank"]):
        lines.append(
            f"features: std {c['feature_std_ratio']:.2f} of an isotropic one, "
            f"effective rank {c['effective_rank']:.1f}"
        )
    if None not in (c.get("embedding_std"), c.get("embedding_rank")):
        lines.append(
            f"embeddings: std {c['embedding_std']:.2f} of an isotropic one, "
            f"along {c['embedding_rank']:.1f} directions"
        )
    lines += worth.problems(result)
    if c["alarm"]:
        lines.append(f"ALARM: {c['alarm']}")
    if warning := worth.warning(result):
        lines.append(warning)
    speed = result["images_per_second"]
    lines += [
        "",
        f"{result['steps']:,} steps in {console.duration(result['wall_seconds'])}"
        + (f", {speed:,.0f} {worth.noun(result)}/s" if speed else ""),
        f"checkpoint  {folder / 'checkpoints' / str(result['steps'])}",
    ]
    for name, file in (("pictures", "summary.png"), ("report", "index.html")):
        if (folder / "report" / file).exists():
            lines.append(f"{name:<12}{folder / 'report' / file}")
    lines.append(
        f"probe       {commands.program()} --config linear "
        f"--config.checkpoint={shlex.quote(str(folder))}"
    )
    return "\n".join(lines)


def peak_memory() -> int | None:
    """The most that was held, bytes: on the first device; for CPU devices by the process."""
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("peak_bytes_in_use")
    if sys.platform != "linux":  # elsewhere ru_maxrss has another unit
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    import importlib.metadata

    from ssl_jax import __version__

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    return {"ssl_jax": __version__, **{p: importlib.metadata.version(p) for p in packages}}
