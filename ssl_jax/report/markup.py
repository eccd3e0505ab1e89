"""Small pieces of HTML. Whatever comes from a run goes through `text`: it may hold anything."""

import html
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ssl_jax.report import data_uris

SMOOTH = 64  # pixels; smaller pictures are enlarged without smoothing
COLORS, DASHES = 6, 4  # of lines, in page.css; the first dash is none


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


def section(title: str, body: str, said: str = "") -> str:
    """A heading, a sentence or two, and what they are about."""
    words = f'<p class="said">{text(said)}</p>' if said else ""
    return f"<section><h2>{text(title)}</h2>{words}{body}</section>"


def note(words: str) -> str:
    """A remark that should not be overlooked."""
    return f'<p class="note">{text(words)}</p>'


def hint(words: str) -> str:
    """A sentence that explains a term, in small letters; '' of ''."""
    return f'<p class="hint">{text(words)}</p>' if words else ""


def state(kind: str, words: str) -> str:
    """The line that says whether there is a collapse; kind is 'alarm', 'fine' or 'unknown'."""
    icon = {"alarm": "!", "fine": "✓", "unknown": "?"}[kind]
    role = ' role="alert"' if kind == "alarm" else ""
    return f'<p class="state {kind}"{role}><b>{icon}</b><span>{text(words)}</span></p>'


def facts(pairs: Iterable[tuple[str, Any]], meanings: Mapping[str, str] = {}) -> str:
    """Names and values; `meanings` of some of the names stand below them."""
    rows = "".join(
        f"<div><dt>{text(k)}{hint(meanings.get(k, ''))}</dt><dd>{text(v)}</dd></div>"
        for k, v in pairs
    )
    return f"<dl>{rows}</dl>" if rows else ""


def table(kind: str, head: str, rows: str) -> str:
    """A table with an empty corner that scrolls within itself; head and rows are cells."""
    return f'<div class="scroll"><table class="{kind}"><tr><td></td>{head}</tr>{rows}</table></div>'


def mark(number: int) -> str:
    """A piece of a curve: its colour, and dashes once the colours are used up."""
    dash = number // COLORS % DASHES
    kind = f' class="dash{dash}"' if dash else ""
    return f'<i{kind} style="--k:var(--l{number % COLORS})"></i>'


def short(file: str, most: int = 11) -> str:
    """The end of a path, which tells it from others: 'n01440764_10026.JPEG' -> '…0764_10026'."""
    name = pathlib.PurePosixPath(file).stem
    return name if len(name) <= most else "…" + name[1 - most :]


def class_color(i: int, classes: int) -> str:
    """Of a class: of the scheme for up to ten classes, of the rainbow for more."""
    return f"var(--c{i})" if classes <= 10 else f"hsl({360 * i // classes} 60% 50%)"


def chart(drawn: Mapping[str, Any], name: str, data: dict[str, Any], kind: str = "") -> str:
    """A place for a chart.

    Args:
      drawn: of `charts`.
      name: unique on the page.
      data: for page.js; the chart is added to it.
      kind: 'double' for one of twice the width.
    """
    data["charts"][name] = {key: value for key, value in drawn.items() if key != "said"}
    legend = ""
    if drawn.get("legend") or len({s["color"] for s in drawn["series"]}) > 1:
        # Seeds that are drawn weakly have the colour of their mean, which names them.
        named = [s for s in drawn["series"] if not s.get("faint")]
        legend = "".join(f"<li>{mark(s['color'])}{text(s['name'])}</li>" for s in named)
    return (
        f'<figure class="card chart {kind}"><figcaption>{text(drawn["title"])}</figcaption>'
        f"{hint(drawn.get('said', ''))}"
        f'<div data-chart="{text(name)}"></div>'
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + "</figure>"
    )


def picture(
    image: np.ndarray | None, said: str, kind: str = "", caption: str = "", file: str = ""
) -> str:
    """A small picture, or words in its place.

    Args:
      image: uint8 [h, w, C]; None of what is no image: its `file` stands there.
      said: what it is, for screen readers and on hover.
      kind: 'query', 'same', 'other' or ''.
      caption: below it.
      file: what the example is called; on hover.
    """
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    said = ", ".join(filter(None, (said, file)))
    if image is None:
        return (
            f'<figure class="tile {kind}" title="{text(said)}"><div class="words">{text(file)}'
            f"</div>{below}</figure>"
        )
    size = "smooth" if image.shape[0] >= SMOOTH else "sharp"
    return (
        f'<figure class="tile {kind}" title="{text(said)}"><img class="{size}" alt="{text(said)}" '
        f'src="{data_uris.data_uri(image)}">{below}</figure>'
    )


def strips(rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """Pictures in rows; two rows side by side where there is room."""
    inside = "".join(f'<div class="strip">{"".join(row)}</div>' for row in rows)
    return f'<div class="card sheet {kind}">{inside}</div>'
