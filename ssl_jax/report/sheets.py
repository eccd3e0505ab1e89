"""The sections of a page that show pictures: features, neighbours, views and what a method adds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ssl_jax.report import charts, data_uris, glossary, prototypes
from ssl_jax.report.contents import Attention, Neighbours, Pictures, Points, Shown
from ssl_jax.report.markup import (
    chart,
    class_color,
    hint,
    picture,
    section,
    short,
    strips,
    table,
    text,
)

MANY = 20  # classes; the confusions of more take the whole width
MOST = 200  # classes; more are not named beside the plane, and their confusions are a picture


def features(pictures: Pictures, name: str, data: dict[str, Any]) -> str:
    """The plane, and the confusions beside it where there are labels.

    Args:
      pictures: of a run.
      name: makes the plane's name unique on the page.
      data: for page.js; the plane is added to it.
    """
    said, cards = [], ""
    if pictures.points is not None:
        count = len(pictures.points.labels)
        kind = "examples" if pictures.points.images is None else "images"
        said.append(f"{count:,} {kind}; point at one to see it.")
        if (pictures.points.labels >= 0).any():
            said.append("Colours are labels, which training never saw.")
        cards += plane(pictures.points, pictures.names, name, data)
    if pictures.confusion is not None and pictures.confusion.sum():
        counts = pictures.confusion
        right = 100 * counts.trace() / counts.sum()
        words = hint(
            f"A row is a true class, a column what kNN takes it for; {right:.1f} % of "
            f"{int(counts.sum()):,} are right."
        )
        inside = words + confusion(counts, pictures.names)
        cards += f'<div class="card"><h3>Confusions of kNN</h3>{inside}</div>'
    if not cards:
        return ""
    both = pictures.points is not None and pictures.confusion is not None
    beside = "side" if both and len(pictures.names) <= MANY else "below"
    return section("Features", f'<div class="{beside}">{cards}</div>', " ".join(said))


def plane(points: Points, names: Sequence[str], name: str, data: dict[str, Any]) -> str:
    """The features on a plane, with thumbnails in one picture."""
    count, sheet, sprite = len(points.labels), "", {}
    if points.images is not None:
        uri, columns = data_uris.sprite(points.images)
        sheet = f'<img hidden alt="" src="{uri}">'
        sprite = {"columns": columns, "rows": -(-count // columns)}
    data["planes"][name] = {
        "places": {k: np.round(v, 3).T.tolist() for k, v in points.places.items()},
        "labels": points.labels.tolist(),
        "names": list(names),
        "files": list(points.files),
        **sprite,
    }
    choices = "".join(
        f'<button type="button" data-place="{text(k)}" aria-pressed="false">{text(k)}</button>'
        for k in points.places
    )
    legend = ""
    if (points.labels >= 0).any() and len(names) <= MOST:
        legend = "".join(
            f'<button type="button" data-class="{i}" aria-pressed="false">'
            f'<i style="--k:{class_color(i, len(names))}"></i>{text(label)}</button>'
            for i, label in enumerate(names)
        )
        legend = f'<div class="choice classes">{legend}</div>'
    return (
        f'<div class="card plane" data-plane="{text(name)}"><div class="choice">{choices}</div>'
        f"{hint(glossary.EMBEDDING)}"
        f'<div class="canvas"></div>{legend}{sheet}</div>'
    )


def confusion(counts: np.ndarray, names: Sequence[str]) -> str:
    """True against predicted classes, and the most frequent mistakes.

    Args:
      counts: int [c, c], images of class i taken for class j.
      names: of the classes.
    """
    if len(names) <= MOST:
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        head = "".join(f'<th scope=col title="{text(n)}"><b>{text(n)}</b></th>' for n in names)
        rows = ""
        for i, name in enumerate(names):
            cells = "".join(
                f'<td class="{"hit" if i == j else "miss"}" style="--s:{_shade(share[i, j])}">'
                f"{counts[i, j]}</td>"
                if counts[i, j] or i == j
                else "<td></td>"
                for j in range(len(names))
            )
            rows += f'<tr><th scope=row title="{text(name)}"><b>{text(name)}</b></th>{cells}</tr>'
        # Names that are longer than a cell is wide stand upright.
        kind = "confusion turned" if max(map(len, names)) > 3 else "confusion"
        matrix = table(kind, head, rows)
    else:
        uri = data_uris.data_uri(data_uris.heat(np.sqrt(counts)), most=1024)
        matrix = f'<img class="matrix" alt="Confusion matrix" src="{uri}">'
    wrong = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:6]
    listed = "".join(
        f"<li><b>{text(names[i])}</b> taken for <b>{text(names[j])}</b>"
        f"<span>{wrong[i, j]}</span></li>"
        for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True)
        if wrong[i, j]
    )
    if listed:
        matrix += f'<h3>Most frequent mistakes</h3><ol class="worst">{listed}</ol>'
    return matrix


def neighbours(n: Neighbours, names: Sequence[str]) -> str:
    """A row for each query: the image, then those most like it."""
    rows = []
    for q, label in enumerate(n.query_labels):
        asked = name_of(label, names)
        file = n.query_files[q] if n.query_files else ""
        query = None if n.queries is None else n.queries[q]
        row = [picture(query, f"query {asked}".strip(), "query", asked or short(file), file)]
        for i, (other, cosine) in enumerate(zip(n.labels[q], n.cosines[q], strict=True)):
            found = name_of(other, names)
            frame = "" if label < 0 or other < 0 else "same" if label == other else "other"
            file = n.files[q][i] if n.files else ""
            image = None if n.images is None else n.images[q][i]
            shown = f"{found} cosine {cosine:.3f}".strip()
            row.append(picture(image, shown, frame, found or short(file), file))
        rows.append(row)
    said = (
        "The first of each row asks; its nearest by the cosine of the features answer. "
        + glossary.COSINE
    )
    if (n.query_labels >= 0).any():
        said += " Framed green: of the same class; dashed red: of another."
    return section("Nearest neighbours", strips(rows), said)


def alike(drawn: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Views whose policies are the same, and so their pictures, need one sheet.

    Returns:
      name of the first of them -> names of them all.
    """
    found: dict[str, str] = {}
    for name, pictures in drawn.items():
        same = [other for other in found if np.array_equal(drawn[other], pictures)]
        if same:
            found[same[0]] += f", {name}"
        else:
            found[name] = name
    return found


def views(originals: np.ndarray, drawn: np.ndarray, name: str, files: Sequence[str] = ()) -> str:
    """A row for each image: the original, then its augmented views.

    Args:
      originals: uint8 [n, H, W, C].
      drawn: uint8 [n, v, h, w, C].
      name: of the view, or views, in the config.
      files: n names of the originals; empty: unknown.
    """
    rows = _rows(originals, drawn, f"view by {name}", files)
    said = (
        f"The first of each row is the original, the others its views of {drawn.shape[2]} pixels."
    )
    return section(f"Augmented views: {name}", strips(rows), said)


def _rows(originals, drawn, said, files):
    """[[original, picture, picture …]] of each example."""
    rows = []
    for i, several in enumerate(drawn):
        file = files[i] if files else ""
        image = None if originals is None else originals[i]
        first = picture(image, "original", "query", short(file), file)
        rows.append([first, *(picture(v, said, file=file) for v in several)])
    return rows


def shown(name: str, s: Shown, originals: np.ndarray | None, files: Sequence[str] = ()) -> str:
    """What a method shows: a column for each example, or a row where it has several pictures of it.

    Args:
      name: of the `Show`.
      s: its pictures.
      originals: as for `views`; None of what is no images: the rows begin without one.
      files: n names of the examples; empty: unknown.
    """
    columns = {title: x for title, x in s.pictures.items() if x.ndim == 4}
    rows = {title: x for title, x in s.pictures.items() if x.ndim > 4}
    parts = []
    if columns:
        lines = [
            [f"<span>{text(title)}</span>", *(picture(x, title) for x in images)]
            for title, images in columns.items()
        ]
        parts.append(section(charts.readable(name), strips(lines, "named"), s.said))
    for title, drawn in rows.items():
        heading = f"{charts.readable(name)}: {title}"
        parts.append(section(heading, strips(_rows(originals, drawn, title, files)), s.said))
    return "".join(parts)


def attention(a: Attention) -> str:
    """A row for each image: the image, then a map for each head."""
    rows = []
    for image, maps in zip(a.images, a.maps, strict=True):
        heads = [picture(data_uris.heat(m), f"head {h + 1}") for h, m in enumerate(maps)]
        rows.append([picture(image, "image", "query"), *heads])
    said = (
        "What the class token attends to in the last block, one map for each head; the "
        "brightest patch of a map is the one with the largest weight."
    )
    return section("Attention", strips(rows), said)


def usage(counts: Mapping[str, np.ndarray], name: str, data: dict[str, Any]) -> str:
    """How many images each prototype is given.

    Args:
      counts: name of the head -> int [K].
      name: makes the charts' names unique on the page.
      data: for page.js; the charts are added to it.
    """
    cards = ""
    for i, (head, c) in enumerate(counts.items()):
        title = (
            f"Images of each of {head}: {np.count_nonzero(c):,} of {len(c):,} used by {c.sum():,} "
            f"images; perplexity {prototypes.perplexity(c):,.1f}"
        )
        drawn = charts.usage(c) | {"title": title}
        cards += chart(drawn, f"{name}-prototypes-{i}", data)
    said = (
        "Each image is given to the prototype of its highest score: how many each has, the most "
        "used first. One that takes all would be a collapse. The perplexity exp(−Σ p log p) counts "
        "those that are used, effectively."
    )
    alone = " wide" if len(counts) == 1 else ""
    return section("Prototypes", f'<div class="charts{alone}">{cards}</div>', said)


def name_of(label: int, names: Sequence[str]) -> str:
    """Of a class; '' where there is none."""
    return names[label] if 0 <= label < len(names) else ""


def _shade(share):
    """Strength of a cell's colour; a single mistake must still be seen."""
    return f"{0 if share == 0 else 0.12 + 0.88 * share:.2f}"
