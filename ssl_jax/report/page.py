"""A page about one run or several: data in, one self-contained HTML text out.

Nothing is loaded from elsewhere (a Content-Security-Policy forbids it), so the file opens from
disk. page.js draws the curves and the plane from a JSON block; all the rest is there without it.
"""

import importlib.resources
import pathlib
import shlex
from collections.abc import Sequence
from typing import Any

import jax

from ssl_jax.report import charts, compare, glossary, sections, sheets, worth
from ssl_jax.report.contents import Pictures, Run
from ssl_jax.report.markup import chart, embedded, mark, note, section, state, table, text
from ssl_jax.runs import commands, workdir

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
FEW = 20  # rows of a table that is open at first


def write(file: pathlib.Path, runs: Sequence[Run]) -> None:
    """Writes the page of some runs, tried again for ten minutes as their results are.

    Every process calls it; process 0 writes, the others wait, and their `runs` are not looked at.

    Raises:
      UserError: it could not be written in all that time.
    """
    html = render(runs) if jax.process_index() == 0 else None
    names = ",".join(run.folder.replace(",", "\\,") for run in runs)
    then = f"{commands.program()} --config report --config.runs={shlex.quote(names)} writes it"
    workdir.write_file(file, html, then)


def render(runs: Sequence[Run]) -> str:
    """The page.

    Args:
      runs: one, or several to compare.

    Returns:
      an HTML document.
    """
    data: dict[str, Any] = {"charts": {}, "planes": {}}
    if len(runs) == 1:
        c = runs[0].config
        title, where = f"{c['method']['name']} on {c['data']['source']}", runs[0].folder
        body = of_run(runs[0], 0, data, alone=True)
    else:
        title, where = f"{len(runs)} runs", ", ".join(run.name for run in runs)
        body = of_runs(runs, data) + tabs(runs, data)
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
<header class="bar"><b>ssl_jax</b><span>{text(where)}</span>
<button type="button" id="theme" aria-label="Light or dark">◐</button></header>
<main>{body}</main>
<div id="tip" hidden></div>
<script type="application/json" id="data">{embedded(data)}</script>
<script>
{asset("page.js")}</script>
</body>
</html>
"""


def of_run(run: Run, number: int, data: dict[str, Any], alone: bool) -> str:
    """All about one run.

    Args:
      run: it.
      number: makes the names of its charts unique.
      data: for page.js; what is drawn is added to it.
      alone: its curves are here, not among those of other runs.
    """
    p, name = run.pictures or Pictures(), f"run{number}"
    result = run.result or {}
    notes = [*filter(None, [worth.warning(result)]), *worth.problems(result), *run.notes]
    parts = [sections.top(run), sections.alarm(run), *map(note, notes), sections.result(run)]
    drawn = charts.of_runs([run]) if alone else {}
    if p.spectra:
        beside = "collapse" if alone else "spectrum"
        drawn.setdefault(beside, []).append(charts.spectrum(p.spectra))
    parts += [curves(drawn, name, data, [run]), sheets.features(p, name, data)]
    if p.neighbours is not None:
        parts.append(sheets.neighbours(p.neighbours, p.names))
    if p.originals is not None:
        alike = sheets.alike(p.views).items()
        parts += [sheets.views(p.originals, p.views[view], title, p.files) for view, title in alike]
    parts += [sheets.shown(key, s, p.originals, p.files) for key, s in p.shown.items()]
    if p.attention is not None:
        parts.append(sheets.attention(p.attention))
    if p.prototypes:
        parts.append(sheets.usage(p.prototypes, name, data))
    return "".join([*parts, sections.commands(run), sections.config(run)])


def of_runs(runs: Sequence[Run], data: dict[str, Any]) -> str:
    """Results and differing fields of several runs side by side, and their curves overlaid."""
    head = "".join(
        f"<th scope=col>{mark(color)}{text(run.name)}</th>"
        for color, run in zip(charts.colors(runs), runs, strict=True)
    )
    spread = compare.over_seeds(runs)
    colors = {name: charts.colors(runs)[group[0]] for group, name in charts.seeds(runs).items()}
    means = "".join(
        f"<th scope=col>{mark(colors[name])}{text(name)}<small>mean ± sd</small></th>"
        for name in spread
    )
    rows = ""
    for title, cells in compare.results(runs):
        rows += f"<tr><th scope=row>{text(title)}</th>"
        rows += "".join(f"<td class=mean>{text(c.get(title, '–'))}</td>" for c in spread.values())
        rows += "".join(
            f"<td{' class=best' if c.best else ''}>{text(c.value)}"
            + (f"<small>{text(c.difference)}</small></td>" if c.difference else "</td>")
            for c in cells
        )
        rows += "</tr>"
    said = "Small numbers are differences from the first run. The best of a row is bold."
    if spread:
        said += " Standard deviations are over seeds (n − 1)."
    results = f'<div class="card">{table("compare", means + head, rows)}</div>'
    return "".join(
        [
            f'<div class="top"><h1>{len(runs)} runs <small>side by side</small></h1></div>',
            alarms(runs),
            section("Results", results, said),
            fields(runs, head),
            curves(charts.of_runs(runs), "runs", data, runs),
        ]
    )


def alarms(runs: Sequence[Run]) -> str:
    """Alarms of a collapse, runs in which none was looked for, and those that did not pay."""
    found = [(run.name, *sections.collapsed(run)) for run in runs]
    said = [state("alarm", f"{name}: {line}") for name, kind, line in found if kind == "alarm"]
    unknown = [name for name, kind, _ in found if kind == "unknown"]
    if unknown:
        said.append(state("unknown", f"Collapse is not measured yet in {', '.join(unknown)}"))
    poor = {run.name: worth.warning(run.result or {}) for run in runs}
    notes = "".join(note(f"{name}: {line}") for name, line in poor.items() if line)
    return ("".join(said) or state("fine", "No alarm of a collapse in any of them")) + notes


def fields(runs: Sequence[Run], head: str) -> str:
    """Fields of the configs that differ; those that only some runs have apart from the others."""
    found = compare.fields(runs)
    some = {k: v for k, v in found.items() if compare.ABSENT in v}
    body = ""
    for names, title in (
        ([k for k in found if k not in some], "differ"),
        (list(some), "are not in every config"),
    ):
        rows = ""
        for name in names:
            cells = "".join(f"<td>{text(_field(v))}</td>" for v in found[name])
            rows += f"<tr><th scope=row>{text(name)}</th>{cells}</tr>"
        if rows:
            count = f"{len(names)} field{'s' if len(names) > 1 else ''}"
            opened = " open" if len(names) <= FEW else ""
            body += (
                f'<details class="card"{opened}><summary>{count} <small>that {title}</small>'
                f"</summary>{table('compare', head, rows)}</details>"
            )
    return section("Configs", body) if body else ""


def tabs(runs: Sequence[Run], data: dict[str, Any]) -> str:
    """Each run by itself, one at a time where scripts run."""
    buttons = "".join(
        f'<button type="button" role="tab" data-tab="run{i}" aria-selected="false">'
        f"{mark(color)}{text(run.name)}</button>"
        for i, (color, run) in enumerate(zip(charts.colors(runs), runs, strict=True))
    )
    panels = "".join(
        f'<div class="run" id="run{i}" role="tabpanel">{of_run(run, i, data, alone=False)}</div>'
        for i, run in enumerate(runs)
    )
    return f'<div class="tabs" role="tablist" aria-label="Runs">{buttons}</div>{panels}'


def curves(
    found: dict[str, list[dict[str, Any]]], name: str, data: dict[str, Any], runs: Sequence[Run]
) -> str:
    """The charts of `charts.of_runs(runs)`, group by group."""
    parts = []
    for group, drawn in found.items():
        inside = "".join(
            chart(c, f"{name}-{group}-{i}", data, "double" if c.get("double") else "")
            for i, c in enumerate(drawn)
        )
        alone = " wide" if len(drawn) == 1 else ""
        online = any("linear_top1" in record for run in runs for record in run.records)
        said = glossary.ONLINE if online and group == "training" else ""
        inside = f'<div class="charts{alone}">{inside}</div>'
        parts.append(section(charts.GROUPS[group], inside, said))
    return "".join(parts)


def asset(name: str) -> str:
    """The text of a file beside this module."""
    return importlib.resources.files("ssl_jax.report").joinpath(name).read_text(encoding="utf-8")


def _field(value):
    return "–" if value is compare.ABSENT else sections.value_text(value)
