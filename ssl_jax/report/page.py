"""A page about one run or several: data in, one self-contained HTML text out.

Nothing is loaded from elsewhere (a Content-Security-Policy forbids it), so the file opens from
disk. page.js draws the charts and the map from a JSON block; all the rest is there without it.
Whatever comes from a run is escaped: it may hold any characters.
"""

import html
import importlib.resources
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.evaluate import collapse
from ssl_jax.report import charts, compare, console, data_uris, prototypes
from ssl_jax.report.commands import flat
from ssl_jax.report.contents import Attention, Neighbours, Pictures, Points, Run

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
SMOOTH = 64  # pixels; smaller pictures are enlarged without smoothing
MANY = 20  # classes; more are not named on the map, and their confusions are a picture


def render(runs: Sequence[Run]) -> str:
    """The page.

    Args:
      runs: one, or several to compare.

    Returns:
      an HTML document.
    """
    several = len(runs) > 1
    data: dict[str, Any] = {"charts": {}, "maps": {}}
    title = f"{len(runs)} runs" if several else heading(runs[0])
    if several:
        body = comparison(runs, data)
        tabs = "".join(
            f'<button type="button" role="tab" data-tab="run{i}" aria-selected="false">'
            f'<i style="--k:var(--l{i % 6})"></i>{text(run.name)}</button>'
            for i, run in enumerate(runs)
        )
        body += f'<div class="tabs" role="tablist" aria-label="Runs">{tabs}</div>'
        body += "".join(
            f'<div class="run" id="run{i}" role="tabpanel">{one(run, i, data, alone=False)}</div>'
            for i, run in enumerate(runs)
        )
    else:
        body = f'<div class="run" id="run0">{one(runs[0], 0, data, alone=True)}</div>'
    names = [run.name for run in runs] if several else [runs[0].folder]
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="color-scheme" content="light dark">
<title>{text(title)} · ssl_jax</title>
<link rel="icon" href="data:,">
<style>
{asset("page.css")}</style>
</head>
<body>
<header class="bar"><b>ssl_jax</b><span>{text(", ".join(names))}</span>
<button type="button" id="theme" aria-label="Light or dark">◐</button></header>
<main>{body}</main>
<div id="tip" hidden></div>
<script type="application/json" id="data">{embedded(data)}</script>
<script>
{asset("page.js")}</script>
</body>
</html>
"""


def write(file: pathlib.Path, runs: Sequence[Run]) -> pathlib.Path:
    """Writes the page of some runs; returns its path.

    Raises:
      UserError: it cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(render(runs), encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror}; choose another --workdir"
        ) from error
    return file


def text(value: Any) -> str:
    """Anything as HTML text, also within quoted attributes."""
    return html.escape(str(value), quote=True)


def embedded(data: Any) -> str:
    """JSON that nothing in it can break out of its <script>.

    Raises:
      ValueError: a number is not finite.
    """
    found = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII
    return found.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def asset(name: str) -> str:
    """A file beside this module."""
    return importlib.resources.files("ssl_jax.report").joinpath(name).read_text(encoding="utf-8")


def heading(run: Run) -> str:
    """'simclr on digits'."""
    return f"{run.config['method']['name']} on {run.config['data']['source']}"


def one(run: Run, number: int, data: dict[str, Any], alone: bool) -> str:
    """All about one run.

    Args:
      run: it.
      number: makes the names of its charts unique.
      data: for page.js; what is drawn is added to it.
      alone: its curves are here, not among those of other runs.
    """
    pictures = run.pictures or Pictures()
    parts = [top(run), alarm(run), *(note(n) for n in run.notes), result(run)]
    if alone:
        parts += curves(charts.of_runs([run]), number, data, pictures.spectra)
    elif pictures.spectra:
        drawn = chart(charts.spectrum(pictures.spectra), f"{number}-spectrum", data)
        parts.append(section("Spectrum", f'<div class="charts">{drawn}</div>'))
    if pictures.points is not None:
        parts.append(plane(pictures.points, pictures.names, number, data))
    if pictures.neighbours is not None:
        parts.append(neighbours(pictures.neighbours, pictures.names))
    if pictures.confusion is not None:
        parts.append(confusion(pictures.confusion, pictures.names))
    if pictures.views and pictures.originals is not None:
        parts += [views(pictures.originals, v, name) for name, v in pictures.views.items()]
    if pictures.reconstructions:
        normalised = run.config["method"].get("normalise_pixels", False)
        parts.append(reconstructions(pictures.reconstructions, normalised))
    if pictures.attention is not None:
        parts.append(attention(pictures.attention))
    if pictures.prototypes:
        parts.append(usage(pictures.prototypes, number, data))
    return "".join([*parts, commands(run), config(run), made_with(run)])


def top(run: Run) -> str:
    """Name of the run and what it was."""
    c, done = run.config, steps_done(run)
    epochs = done / max(run.steps_per_epoch, 1)
    facts = [
        f"{done:,} of {run.total_steps:,} steps" if done < run.total_steps else f"{done:,} steps",
        f"{epochs:.3g} epochs",
        f"batch {c['batch']:,}",
        str(c["model"]["name"]) + (f", {run.width} features" if run.width else ""),
        f"seed {c['seed']}",
    ]
    shown = "".join(f"<li>{text(f)}</li>" for f in facts)
    return (
        f'<div class="top"><h1>{text(c["method"]["name"])} <small>on {text(c["data"]["source"])}'
        f'</small></h1><ul class="facts">{shown}</ul></div>'
    )


def alarm(run: Run) -> str:
    """The line that says whether the representation has collapsed."""
    state, words = collapsed(run)
    icon = {"alarm": "!", "fine": "✓", "unknown": "?"}[state]
    role = ' role="alert"' if state == "alarm" else ""
    body = f'<p class="state {state}"{role}><b>{icon}</b><span>{text(words)}</span></p>'
    earlier = [r for r in run.records if r.get("alarm")]
    if earlier and state != "alarm":
        first, last = earlier[0], earlier[-1]
        body += note(
            f"The alarm was raised {len(earlier)} times on the way, at step {first['step']:,}"
            + (f" to {last['step']:,}" if last is not first else "")
            + f"; the last one said: {last['alarm']}."
        )
    return body


def collapsed(run: Run) -> tuple[str, str]:
    """('alarm' | 'fine' | 'unknown', in words): the result's word, or that of the newest monitors.

    While a run goes on, features and embeddings are judged as its own monitor does.
    """
    if run.result is not None and "collapse" in run.result:
        said = run.result["collapse"].get("alarm")
    else:
        monitors = [r for r in run.records if "feature_std_ratio" in r]
        embedded = [r for r in run.records if "embedding_std" in r and "embedding_rank" in r]
        if not monitors and not embedded:
            return "unknown", "Not measured yet: the collapse monitors have not run."
        said = None
        if monitors and run.width:
            newest = monitors[-1]
            said = collapse.alarm(newest["feature_std_ratio"], newest["effective_rank"], run.width)
        if embedded and not said:
            newest = embedded[-1]
            said = collapse.embedding_alarm(newest["embedding_std"], newest["embedding_rank"])
    return ("alarm", f"ALARM: {said}") if said else ("fine", "No collapse")


def note(words: str) -> str:
    return f'<p class="note">{text(words)}</p>'


def result(run: Run) -> str:
    """Accuracies against the baselines, and what else result.json says."""
    r = run.result or {}
    base = r.get("baselines", {})
    blocks = ""
    for key, title in (("knn_top1", "kNN"), ("linear_top1", "Linear probe")):
        if r.get(key) is None:
            continue
        rows = [("learned, without labels", r[key], "learned")]
        rows += [
            (name, base.get(part, {}).get(key), "")
            for part, name in (("pixels", "raw pixels"), ("untrained", "untrained encoder"))
        ]
        bars = "".join(
            f'<li class="{kind}"><span>{name}</span><i style="--s:{value:.4f}"></i>'
            f"<b>{percent(value)}</b></li>"
            for name, value, kind in rows
            if value is not None
        )
        blocks += (
            f'<div class="card score"><h3>{title}</h3><p class="big">{percent(r[key])}'
            f'<small> %</small></p><ul class="bars">{bars}</ul></div>'
        )
    if r and not blocks:
        blocks = (
            '<div class="card score"><h3>Accuracy</h3><p>No labels, so no accuracies.</p></div>'
        )
    facts = result_facts(run)
    rows = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in facts)
    listed = f'<div class="card"><h3>{"Result" if r else "So far"}</h3><dl>{rows}</dl></div>'
    judged = f"Judged on {r['judged_on']}; accuracies in percent." if r.get("knn_top1") else ""
    return section("Result", f'<div class="scores">{blocks}{listed if rows else ""}</div>', judged)


def result_facts(run: Run) -> list[tuple[str, str]]:
    """Names and values of the small table."""
    r = run.result or {}
    newest: dict[str, Any] = {}
    for record in run.records:
        newest |= record
    measured = r.get("collapse", newest)
    facts = []
    if run.result is None and is_number(newest.get("knn_top1")):
        facts.append(("newest kNN", f"{percent(newest['knn_top1'])} %"))
    if is_number(measured.get("effective_rank")):
        of = f" of {run.width}" if run.width else ""
        facts.append(("effective rank", f"{measured['effective_rank']:.1f}{of}"))
    if is_number(measured.get("feature_std_ratio")):
        facts.append(("std of the features", f"{measured['feature_std_ratio']:.2f} of isotropic"))
    if is_number(measured.get("embedding_std")):
        facts.append(("std of the embeddings", f"{measured['embedding_std']:.2f} of isotropic"))
    if is_number(measured.get("embedding_rank")):
        facts.append(("directions of the embeddings", f"{measured['embedding_rank']:.1f}"))
    speed = r.get("images_per_second", newest.get("images_per_second"))
    if is_number(speed):
        facts.append(("speed", f"{speed:,.0f} images/s"))
    if is_number(r.get("wall_seconds")):
        facts.append(("time", console.duration(r["wall_seconds"])))
    if is_number(r.get("peak_memory_bytes")):
        facts.append(("peak memory", f"{r['peak_memory_bytes'] / 2**30:.2f} GiB"))
    for key, name in (
        ("skipped_steps", "skipped steps"),
        ("unreadable_pictures", "unreadable pictures"),
        ("resumed_at", "continued at step"),
    ):
        if r.get(key):
            facts.append((name, f"{r[key]:,}"))
    return facts


def curves(
    found: Mapping[str, list[dict[str, Any]]],
    number: int | str,
    data: dict[str, Any],
    spectra: Mapping[str, np.ndarray],
) -> list[str]:
    """The charts of `charts.of_runs`, group by group; the spectrum beside the collapse monitors."""
    groups = {group: list(drawn) for group, drawn in found.items()}
    if spectra:
        groups.setdefault("collapse", []).append(charts.spectrum(spectra))
    parts = []
    for group, drawn in groups.items():
        inside = "".join(chart(c, f"{number}-{group}-{i}", data) for i, c in enumerate(drawn))
        alone = " wide" if len(drawn) == 1 else ""
        parts.append(section(charts.GROUPS[group], f'<div class="charts{alone}">{inside}</div>'))
    return parts


def chart(drawn: Mapping[str, Any], name: str, data: dict[str, Any]) -> str:
    """A place for a chart, which goes into `data`."""
    data["charts"][name] = drawn
    several = len(drawn["series"]) > 1
    legend = "".join(
        f"<li{' class=faint' if s.get('faint') else ''}>"
        f'<i style="--k:var(--l{s["color"] % 6})"></i>{text(s["name"])}</li>'
        for s in drawn["series"]
        if several
    )
    return (
        f'<figure class="card chart"><figcaption>{text(drawn["title"])}</figcaption>'
        f'<div data-chart="{text(name)}"></div>'
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + "</figure>"
    )


def plane(points: Points, names: Sequence[str], number: int, data: dict[str, Any]) -> str:
    """The features on a plane, with thumbnails."""
    sheet, columns = data_uris.sprite(points.images)
    labelled = (points.labels >= 0).any()
    data["maps"][f"{number}"] = {
        "places": {k: np.round(v, 3).T.tolist() for k, v in points.places.items()},
        "labels": points.labels.tolist(),
        "names": list(names),
        "columns": columns,
        "rows": -(-len(points.labels) // columns),
    }
    buttons = "".join(
        f'<button type="button" data-place="{text(k)}" aria-pressed="false">{text(k)}</button>'
        for k in points.places
    )
    legend = ""
    if labelled and len(names) <= MANY:
        legend = "".join(
            f'<button type="button" data-class="{i}" aria-pressed="false">'
            f'<i style="--k:{class_color(i, len(names))}"></i>{text(name)}</button>'
            for i, name in enumerate(names)
        )
    size = "smooth" if points.images.shape[1] >= SMOOTH else "sharp"
    said = f"{len(points.labels):,} images; point at one to see it."
    if labelled:
        said += " Colours are labels, which training never saw."
    return section(
        "Features on a plane",
        f'<div class="card plane {size}" data-map="{number}">'
        f'<div class="row"><div class="choice">{buttons}</div>'
        f'<div class="choice classes">{legend}</div></div>'
        f'<div class="canvas"></div><img hidden alt="" src="{sheet}"></div>',
        said,
    )


def class_color(i: int, classes: int) -> str:
    """A CSS colour: of the scheme for up to ten classes, of the rainbow for more."""
    return f"var(--c{i})" if classes <= 10 else f"hsl({360 * i // classes} 60% 50%)"


def neighbours(n: Neighbours, names: Sequence[str]) -> str:
    """A row for each query: the image, then those most like it."""
    rows = ""
    for q in range(len(n.queries)):
        label = n.query_labels[q]
        cells = picture(n.queries[q], name_of(label, names), "query")
        for i in range(n.images.shape[1]):
            other = n.labels[q, i]
            frame = "" if label < 0 or other < 0 else "same" if label == other else "other"
            caption = name_of(other, names) or f"{n.cosines[q, i]:.2f}"
            cells += picture(n.images[q, i], caption, frame, f"cosine {n.cosines[q, i]:.3f}")
        rows += f'<div class="strip">{cells}</div>'
    said = "The first column asks, the others answer: cosine of the features, the nearest first."
    if (n.query_labels >= 0).any():
        said += " Green frames are of the same class, red ones of another."
    return section("Nearest neighbours", f'<div class="card sheet">{rows}</div>', said)


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
    """Table of true against predicted classes, and the most frequent mistakes."""
    right = counts.trace() / max(counts.sum(), 1)
    if len(names) <= MANY:
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        head = "".join(f"<th scope=col>{text(n)}</th>" for n in names)
        rows = "".join(
            f"<tr><th scope=row>{text(names[i])}</th>"
            + "".join(
                f'<td class="{"hit" if i == j else "miss"}" style="--s:{_shade(share[i, j])}">'
                f"{counts[i, j] or ''}</td>"
                for j in range(len(names))
            )
            + "</tr>"
            for i in range(len(names))
        )
        table = grid("confusion", head, rows)
    else:
        matrix = data_uris.heat(np.sqrt(counts))
        uri = data_uris.data_uri(matrix, most=1024)
        table = f'<img class="matrix" alt="Confusion matrix" src="{uri}">'
    off = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-off, axis=None, kind="stable")[:8]
    worst = [(i, j, off[i, j]) for i, j in zip(*np.unravel_index(order, off.shape), strict=True)]
    listed = "".join(
        f"<li><b>{text(names[i])}</b> taken for <b>{text(names[j])}</b><span>{n}</span></li>"
        for i, j, n in worst
        if n > 0
    )
    mistakes = (
        f'<div class="card"><h3>Most frequent mistakes</h3><ol class="worst">{listed}</ol></div>'
    )
    return section(
        "Confusions of kNN",
        f'<div class="side"><div class="card">{table}</div>{mistakes if listed else ""}</div>',
        f"Rows are true classes, columns predicted ones; {100 * right:.1f} % are right.",
    )


def views(originals: np.ndarray, drawn: np.ndarray, name: str) -> str:
    """A row for each image: the original, then its augmented views."""
    rows = "".join(
        f'<div class="strip">{picture(originals[i], "original", "query")}'
        + "".join(picture(v) for v in drawn[i])
        + "</div>"
        for i in range(len(originals))
    )
    title = "What the network sees" + ("" if name in ("both", "image") else f": {name}")
    size = drawn.shape[2]
    return section(
        title, f'<div class="card sheet">{rows}</div>', f"Views of {size} × {size} pixels."
    )


def reconstructions(columns: Mapping[str, np.ndarray], normalised: bool) -> str:
    """A column for each image, a row for each kind."""
    rows = "".join(
        f'<div class="strip named"><span>{text(title)}</span>'
        f"{''.join(picture(x) for x in images)}</div>"
        for title, images in columns.items()
    )
    said = "Hidden patches are grey; the decoder tells them from the visible ones."
    if normalised:
        said += (
            " It predicts patches of mean 0 and variance 1: each is shown with the mean and the "
            "deviation of the true one."
        )
    return section("Reconstructions", f'<div class="card sheet">{rows}</div>', said)


def attention(a: Attention) -> str:
    """A row for each image: the image, then a map for each head."""
    rows = ""
    for image, maps in zip(a.images, a.maps, strict=True):
        cells = picture(image, "image", "query")
        for h, weights in enumerate(maps):
            cells += picture(data_uris.heat(weights), f"head {h + 1}")
        rows += f'<div class="strip">{cells}</div>'
    said = "What the class token attends to in the last block; the brightest patch of each is 1."
    return section("Attention", f'<div class="card sheet">{rows}</div>', said)


def usage(counts: Mapping[str, np.ndarray], number: int, data: dict[str, Any]) -> str:
    """How many images each prototype is given."""
    cards = ""
    for i, (name, c) in enumerate(counts.items()):
        drawn = charts.usage(c)
        drawn["title"] = (
            f"{name}: {np.count_nonzero(c):,} of {len(c):,} used by {c.sum():,} images, "
            f"as {prototypes.perplexity(c):,.1f} alike would be"
        )
        cards += chart(drawn, f"{number}-prototypes-{i}", data)
    said = (
        "Each image is given to the prototype of its highest score. One that takes all is a "
        "collapse; the perplexity exp(−Σ p log p) counts those that are used, effectively."
    )
    alone = " wide" if len(counts) == 1 else ""
    return section("Prototypes", f'<div class="charts{alone}">{cards}</div>', said)


def commands(run: Run) -> str:
    """What to type to go on."""
    import shlex

    folder = shlex.quote(run.folder)
    main = "python -m ssl_jax.main --config configs"
    lines = []
    if run.command:
        finished = run.result is not None
        lines.append(("The run itself" if finished else "Continue", run.command))
    lines += [
        ("Linear probe", f"{main}/linear.py --config.checkpoint={folder}"),
        ("kNN", f"{main}/knn.py --config.checkpoint={folder}"),
        ("This page again", f"{main}/report.py --config.runs={folder}"),
    ]
    rows = "".join(
        f'<div class="command"><span>{name}</span><code>{text(line)}</code>'
        '<button type="button" data-copy>copy</button></div>'
        for name, line in lines
    )
    unknown = "" if run.command else "The command that began the run continues it."
    return section("Commands", f'<div class="card">{rows}</div>', unknown)


def config(run: Run) -> str:
    """All fields, to be searched."""
    fields = flat(dict(run.config))
    rows = "".join(
        f"<tr><th scope=row>{text(k)}</th><td>{text(value_text(v))}</td></tr>"
        for k, v in fields.items()
    )
    return (
        f'<section><details class="card config"><summary>Config <small>{len(fields)} fields</small>'
        '</summary><input type="search" placeholder="search fields and values" '
        f'aria-label="Search the config"><table>{rows}</table></details></section>'
    )


def made_with(run: Run) -> str:
    """Versions, devices and the fingerprint."""
    r = run.result or {}
    made = dict(r.get("made_with", {}))
    if r.get("fingerprint"):
        made["fingerprint"] = r["fingerprint"]
    made["run"] = run.folder
    shown = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in made.items())
    return f'<section class="made"><dl>{shown}</dl></section>'


def comparison(runs: Sequence[Run], data: dict[str, Any]) -> str:
    """Results and differing fields of several runs side by side, and their curves overlaid."""
    alarms = (
        "".join(
            f'<p class="state alarm" role="alert"><b>!</b><span>{text(run.name)}: '
            f"{text(collapsed(run)[1])}</span></p>"
            for run in runs
            if collapsed(run)[0] == "alarm"
        )
        or '<p class="state fine"><b>✓</b><span>No alarm of a collapse in any of them</span></p>'
    )
    head = "".join(
        f'<th scope=col><i style="--k:var(--l{i % 6})"></i>{text(run.name)}</th>'
        for i, run in enumerate(runs)
    )
    rows = f'<tr class="part"><th colspan="{len(runs) + 1}">Results</th></tr>'
    for title, cells in compare.results(runs):
        shown = "".join(
            f"<td{' class=best' if c.best else ''}>{text(c.value)}"
            + (f"<small>{text(c.difference)}</small>" if c.difference else "")
            + "</td>"
            for c in cells
        )
        rows += f"<tr><th scope=row>{text(title)}</th>{shown}</tr>"
    differing = compare.fields(runs)
    if differing:
        rows += f'<tr class="part"><th colspan="{len(runs) + 1}">Fields that differ</th></tr>'
    for name, values in differing.items():
        cells = "".join(
            f"<td>{text('–' if v is compare.ABSENT else value_text(v))}</td>" for v in values
        )
        rows += f"<tr><th scope=row>{text(name)}</th>{cells}</tr>"
    table = f'<div class="card">{grid("compare", head, rows)}</div>'
    said = "Small numbers are differences from the first run. The best of a row is bold."
    body = (
        f'<div class="top"><h1>{len(runs)} runs <small>compared</small></h1></div>{alarms}'
        + section("Side by side", table, said)
    )
    spread = compare.over_seeds(runs)
    if spread:
        names = list(spread)
        head = "".join(f"<th scope=col>{text(n)}</th>" for n in names)
        titles = list(dict.fromkeys(t for columns in spread.values() for t in columns))
        rows = "".join(
            f"<tr><th scope=row>{text(t)}</th>"
            + "".join(f"<td>{text(spread[n].get(t, '–'))}</td>" for n in names)
            + "</tr>"
            for t in titles
        )
        table = f'<div class="card">{grid("compare", head, rows)}</div>'
        body += section("Over seeds", table, "Mean ± standard deviation (n − 1).")
    return body + "".join(curves(charts.of_runs(runs), "all", data, {}))


def section(title: str, body: str, said: str = "") -> str:
    words = f'<p class="said">{text(said)}</p>' if said else ""
    return f"<section><h2>{text(title)}</h2>{words}{body}</section>"


def grid(kind: str, head: str, rows: str) -> str:
    """A table with an empty corner that scrolls within itself."""
    return f'<div class="scroll"><table class="{kind}"><tr><td></td>{head}</tr>{rows}</table></div>'


def picture(image: np.ndarray, caption: str = "", kind: str = "", title: str = "") -> str:
    """A small picture with a caption below.

    Args:
      image: uint8 [h, w, C].
      caption: text, also what a screen reader says.
      kind: 'query', 'same', 'other' or ''.
      title: shown on hover.
    """
    size = "smooth" if image.shape[0] >= SMOOTH else "sharp"
    said = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    hover = f' title="{text(title)}"' if title else ""
    return (
        f'<figure class="tile {kind}"{hover}><img class="{size}" alt="{text(caption)}" '
        f'src="{data_uris.data_uri(image)}">{said}</figure>'
    )


def steps_done(run: Run) -> int:
    """Of the result, or of the newest record."""
    if run.result is not None and "steps" in run.result:
        return run.result["steps"]
    return max((r["step"] for r in run.records), default=0)


def name_of(label: int, names: Sequence[str]) -> str:
    """Of a class; '' where there is none."""
    return names[label] if 0 <= label < len(names) else ""


def value_text(value: Any) -> str:
    """A value of the config, as a flag takes it where it can."""
    return value if isinstance(value, str) else "–" if value is None else str(value)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def is_number(value: Any) -> bool:
    """Whether it is one, and finite."""
    return isinstance(value, int | float) and math.isfinite(value)


def _shade(share):
    """Strength of a cell's colour; a single mistake must still be seen."""
    return f"{0 if share == 0 else 0.12 + 0.88 * share:.2f}"
