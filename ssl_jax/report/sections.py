"""The sections of a page that need the run's folder alone: result, commands, config."""

import math
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from ssl_jax.evaluate.health import collapse
from ssl_jax.logs import console
from ssl_jax.report import glossary, worth
from ssl_jax.report.contents import Run
from ssl_jax.report.markup import facts, hint, note, section, state, text
from ssl_jax.runs.commands import flat, program

PROBES = (("knn_top1", "kNN"), ("linear_top1", "Linear probe"))
MEANINGS = {
    "effective rank": glossary.OF_METRICS["effective_rank"],
    "std of the features": glossary.OF_METRICS["feature_std_ratio"],
    "std of the embeddings": glossary.OF_METRICS["embedding_std"],
    "directions of the embeddings": glossary.OF_METRICS["embedding_rank"],
}


def top(run: Run) -> str:
    """Name of the run and what it was."""
    c, done = run.config, steps_done(run)
    said = [
        f"{done:,} of {run.total_steps:,} steps" if done < run.total_steps else f"{done:,} steps",
        f"{done / max(run.steps_per_epoch, 1):.3g} epochs",
        f"batch {c['batch']:,}",
        str(c["model"]["name"]) + (f", {run.width} features" if run.width else ""),
        f"seed {c['seed']}",
    ]
    shown = "".join(f"<li>{text(f)}</li>" for f in said)
    return (
        f'<div class="top"><h1>{text(c["method"]["name"])} <small>on {text(c["data"]["source"])}'
        f'</small></h1><ul class="facts">{shown}</ul></div>'
    )


def alarm(run: Run) -> str:
    """Whether the representation has collapsed, and alarms that have passed."""
    kind, said = collapsed(run)
    earlier = [r for r in run.records if r.get("alarm")]
    if kind == "alarm" or not earlier:
        return state(kind, said)
    first, last = earlier[0], earlier[-1]
    where = f"once on the way, at step {first['step']:,}"
    if len(earlier) > 1:
        where = f"{len(earlier)} times on the way, from step {first['step']:,} to {last['step']:,}"
    return state(kind, said) + note(f"The alarm was raised {where}: {last['alarm']}.")


def collapsed(run: Run) -> tuple[str, str]:
    """('alarm' | 'fine' | 'unknown', in words): the result's word, or that of the newest monitors.

    While a run goes on, features and embeddings are judged as its own monitor judges them.
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


def result(run: Run) -> str:
    """Accuracies against the baselines, and what else result.json says."""
    r = run.result or {}
    cards = "".join(score(r, key, title) for key, title in PROBES)
    compared = bool(cards)
    if r and not cards:
        why = "No probe could be fitted." if worth.judged(r) else "No labels, so no accuracies."
        cards = f'<div class="card"><h3>Accuracy</h3><p>{why}</p></div>'
    measured = facts(measures(run), MEANINGS)
    if measured:
        title = "Monitors and speed" if r else "So far"
        cards += f'<div class="card"><h3>{title}</h3>{measured}</div>'
    said = f"Judged on {r['judged_on']}." if r.get("judged_on") and "No labels" not in cards else ""
    if said and (sample := worth.sample(r)):
        said += f" kNN and linear probe {sample}."
    said = f"{said} {glossary.BASELINES}" if compared else said
    return section("Result", f'<div class="scores">{cards}</div>', said) if cards else ""


def score(r: dict[str, Any], key: str, title: str) -> str:
    """One accuracy, against the same of the baselines; '' without."""
    if not is_number(r.get(key)):
        return ""
    rows = [("learned, without labels", r[key], "learned")]
    base = r.get("baselines", {})
    rows += [
        (name.removeprefix("the "), base.get(part, {}).get(key), "")
        for part, name in worth.baselines(r).items()
    ]
    bars = "".join(
        f'<li class="{kind}"><span>{name}</span><i style="--s:{value:.4f}"></i>'
        f"<b>{100 * value:.1f}</b></li>"
        for name, value, kind in rows
        if is_number(value)
    )
    return (
        f'<div class="card score"><h3>{title}</h3><p class="big">{100 * r[key]:.1f}'
        f'<small> %</small></p>{hint(glossary.OF_METRICS[key])}<ul class="bars">{bars}</ul></div>'
    )


def measures(run: Run) -> list[tuple[str, str]]:
    """Names and values of what was measured besides accuracies, so far if unfinished."""
    r = run.result or {}
    newest: dict[str, Any] = {}
    for record in run.records:
        newest |= record
    c = r.get("collapse", newest)
    shown = []
    for key, name in PROBES:
        if not r and is_number(newest.get(key)):
            online = ", online" if key == "linear_top1" else ""
            shown.append((f"{name}{online}, the newest", f"{100 * newest[key]:.1f} %"))
    if is_number(c.get("effective_rank")):
        of = f" of {run.width}" if run.width else ""
        shown.append(("effective rank", f"{c['effective_rank']:.1f}{of}"))
    for key, name, form in (
        ("feature_std_ratio", "std of the features", "{:.2f} of isotropic"),
        ("embedding_std", "std of the embeddings", "{:.2f} of isotropic"),
        ("embedding_rank", "directions of the embeddings", "{:.1f}"),
    ):
        if is_number(c.get(key)):
            shown.append((name, form.format(c[key])))
    speed = r.get("images_per_second", newest.get("images_per_second"))
    if is_number(speed):
        shown.append(("speed", f"{speed:,.0f} {worth.noun(run.result or {})}/s"))
    if is_number(r.get("wall_seconds")):
        shown.append(("time", console.duration(r["wall_seconds"])))
    if spent := phases(run.records):
        shown.append(("of the time", spent))
    if is_number(r.get("peak_memory_bytes")):
        shown.append(("peak memory", f"{r['peak_memory_bytes'] / 2**30:.2f} GiB"))
    for key, name in (
        ("skipped_steps", "skipped steps"),
        ("unreadable_pictures", "unreadable pictures"),
        ("resumed_at", "continued at step"),
    ):
        if r.get(key):
            shown.append((name, f"{r[key]:,}"))
    return shown


def phases(records: Sequence[Mapping[str, Any]]) -> str:
    """'steps 93 % (waiting for data 1 %), monitors 5 %, checkpoints 2 %', '' where not logged.

    From the first log to the last: start and end of the run are not in it.

    Args:
      records: lines of metrics.jsonl.
    """
    logged = [r for r in records if is_number(r.get("seconds_steps"))]
    steps, monitors, saves = (
        sum(r[f"seconds_{name}"] for r in logged) for name in ("steps", "monitor", "checkpoint")
    )
    whole = steps + monitors + saves
    if not whole:
        return ""
    waiting = sum(r["seconds_steps"] * r["data_wait_share"] for r in logged)
    return (
        f"steps {steps / whole:.0%} (waiting for data {waiting / whole:.0%}), "
        f"monitors {monitors / whole:.0%}, checkpoints {saves / whole:.0%}"
    ).replace("%", " %")


def commands(run: Run) -> str:
    """What to type to go on."""
    folder = shlex.quote(run.folder)
    main = program()
    lines = []
    if run.command:
        done = run.result is not None and steps_done(run) >= run.total_steps
        lines.append(("This run" if done else "Continue", run.command))
    lines += [
        ("Linear probe", f"{main} --config linear --config.checkpoint={folder}"),
        ("kNN", f"{main} --config knn --config.checkpoint={folder}"),
        ("This page", f"{main} --config report --config.runs={folder}"),
    ]
    rows = "".join(
        f'<div class="command"><span>{name}</span><code>{text(line)}</code>'
        '<button type="button" data-copy>copy</button></div>'
        for name, line in lines
    )
    said = "" if run.command or run.result else "The command that began the run continues it."
    return section("Commands", f'<div class="card">{rows}</div>', said)


def config(run: Run) -> str:
    """All fields, to be searched; the fingerprint and the versions below."""
    fields = flat(dict(run.config))
    rows = "".join(
        f"<tr><th scope=row>{text(k)}</th><td>{text(value_text(v))}</td></tr>"
        for k, v in fields.items()
    )
    r = run.result or {}
    made = {**r.get("made_with", {}), "run": run.folder}
    if r.get("fingerprint"):
        made["fingerprint"] = r["fingerprint"]
    return (
        f'<section><details class="card config"><summary>Config <small>{len(fields)} fields</small>'
        '</summary><input type="search" placeholder="search fields and values" '
        f'aria-label="Search the config"><table>{rows}</table></details>'
        f'<div class="made">{facts(made.items())}</div></section>'
    )


def steps_done(run: Run) -> int:
    """Of the result, or of the newest record."""
    last = max((r["step"] for r in run.records), default=0)
    if run.result is not None and "steps" in run.result:
        done = run.result["steps"]
        return done if done >= run.total_steps else max(done, last)  # it is being extended
    return last


def value_text(value: Any) -> str:
    """A value of the config, as a flag takes it where it can."""
    return value if isinstance(value, str) else "–" if value is None else str(value)


def is_number(value: Any) -> bool:
    """Whether it is one, and finite."""
    return isinstance(value, int | float) and math.isfinite(value)
