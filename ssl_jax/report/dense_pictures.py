"""The picture of the dense probes: scenes, their masks and depth, and what was predicted."""

import os
from collections.abc import Sequence

import numpy as np

from ssl_jax.report import pictures

BACKGROUND = "#e4e6ea"


def sheet(
    path: str | os.PathLike,
    images: np.ndarray,
    masks: tuple[np.ndarray, np.ndarray] | None,
    depths: tuple[np.ndarray, np.ndarray] | None,
    classes: Sequence[str],
    title: str = "",
) -> None:
    """A column for each scene: the image, true and predicted mask, true and predicted depth.

    Args:
      path: PNG to write.
      images: uint8 [n, S, S, C], C is 1 or 3.
      masks: (true, predicted) int [n, S, S], places in `classes`; None: not drawn.
      depths: (true, predicted) float [n, S, S], metres; None: not drawn. Both share a logarithmic
        scale from the nearest true depth to the farthest.
      classes: names, the background first; up to eleven have colours of their own.
      title: above all.
    """
    from matplotlib.colors import ListedColormap, LogNorm
    from matplotlib.patches import Patch

    colours = [BACKGROUND, *pictures.CLASSES][: len(classes)]
    grey = images.shape[-1] == 1
    rows = [("image", images[..., 0] if grey else images, {"cmap": "gray", "vmin": 0, "vmax": 255})]
    if masks is not None:
        style = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(colours) - 0.5}
        rows += [("true mask", masks[0], style), ("predicted mask", masks[1], style)]
    if depths is not None:
        style = {"cmap": "viridis_r", "norm": LogNorm(depths[0].min(), depths[0].max(), clip=True)}
        rows += [("true depth", depths[0], style), ("predicted depth", depths[1], style)]
    n, side = len(images), 1.45
    height = side * len(rows) + 0.35 * bool(title) + 0.35 * (masks is not None)
    with pictures.canvas(path, side * n + 0.95, height, title, pad=0.03) as figure:
        axes = figure.subplots(len(rows), n, squeeze=False)
        for line, (name, panels, style) in zip(axes, rows, strict=True):
            for ax, panel in zip(line, panels, strict=True):
                drawn = ax.imshow(panel, interpolation="nearest", **style)
                ax.set(xticks=[], yticks=[])
                ax.grid(False)
                ax.spines[:].set_visible(False)
            line[0].set_ylabel(name, color=pictures.INK, fontsize=9)
        if depths is not None:
            bar = figure.colorbar(drawn, ax=axes[-2:, -1:], shrink=0.9, aspect=24, pad=0.06)
            ticks = [t for t in (1, 2, 3, 4, 5, 7, 10) if depths[0].min() <= t <= depths[0].max()]
            bar.set_ticks(ticks, labels=[f"{t} m" for t in ticks])
            bar.ax.minorticks_off()
            bar.ax.invert_yaxis()
            bar.outline.set_visible(False)
        if masks is not None:
            handles = [
                Patch(color=colour, label=name)
                for colour, name in zip(colours, classes, strict=True)
            ]
            figure.legend(
                handles=handles, loc="outside lower left", ncols=len(handles), handlelength=1,
                handleheight=1, columnspacing=1.4,
            )  # fmt: skip
