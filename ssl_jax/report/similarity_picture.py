"""The picture of the job `analyze`: similarities, spectrum, hardness by temperature."""

import os
from collections.abc import Mapping, Sequence

import numpy as np

from ssl_jax.evaluate.health.similarity import BINS, HARD, Histograms
from ssl_jax.report.pictures import LINES, canvas


def draw(
    path: str | os.PathLike,
    histograms: Histograms,
    singular_values: np.ndarray,
    hardness: Sequence[Mapping[str, float]],
    title: str,
) -> None:
    """Three panels, as one PNG.

    Args:
      path: PNG to write.
      histograms: of `similarity.measure`.
      singular_values: float [s], descending.
      hardness: of `similarity.hardness`.
      title: above all.
    """
    with canvas(path, 13.5, 3.9, title) as drawing:
        left, middle, right = drawing.subplots(1, 3)
        edges = np.linspace(-1, 1, BINS + 1)
        named = {
            "two images": histograms.negative,
            "two images of a class": histograms.same_class,
            "two views of an image": histograms.positive,
        }
        for color, (name, values) in zip(
            (LINES[0], LINES[2], LINES[1]), named.items(), strict=True
        ):
            if values is not None:
                left.stairs(100 * values, edges, color=color, label=name, fill=True, alpha=0.25)
                left.stairs(100 * values, edges, color=color, lw=1.5)
        seen = np.flatnonzero(sum(v for v in named.values() if v is not None) > 1e-4)
        left.set(xlim=(edges[seen[0]], 1), ylim=(0, None), xlabel="cosine")
        left.set(title="Similarity of features (% of pairs)")
        left.legend(loc="upper left", fontsize=8)

        share = np.maximum(singular_values / max(float(singular_values[0]), 1e-30), 1e-7)
        middle.loglog(np.arange(1, len(share) + 1), share, color=LINES[0], lw=2)
        middle.set(xlabel="dimension", title="Singular values / largest", xlim=(1, len(share)))
        middle.xaxis.set_major_formatter("{x:g}")

        temperature = [row["temperature"] for row in hardness]
        lines = {
            "negatives": "negatives that count (share of all)",
            "hardest": f"repulsion on the nearest {100 * HARD:g} %",
        }
        for color, (key, name) in zip(LINES, lines.items(), strict=False):
            values = [100 * row[key] for row in hardness]
            right.semilogx(temperature, values, "o-", color=color, label=name, ms=4)
        right.set(xlabel="temperature", ylim=(0, 105), title="What a temperature attends to (%)")
        right.set_xticks(temperature, [f"{t:g}" for t in temperature])
        right.minorticks_off()
        right.legend(loc="best", fontsize=8)
