"""Pictures of a run, as PNG files.

Pure functions from arrays to a file. Figures are made without pyplot, so that nothing is global,
no display is needed and threads may draw. matplotlib and scikit-learn are imported when drawing.
Colours are Paul Tol's "muted" and "bright" schemes, which colour-blind readers can tell apart; in
embeddings the name of a class also stands in its middle.
"""

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np

AGAIN = "the same command draws it when it can be written"
INK, FAINT, GRID = "#22252b", "#7a808a", "#e4e6ea"
RIGHT, WRONG = "#228833", "#CC3311"
LINES = ("#4477AA", "#EE6677", "#228833", "#AA3377", "#66CCEE", "#CCBB44")
CLASSES = (
    "#332288", "#88CCEE", "#117733", "#DDCC77", "#CC6677",
    "#AA4499", "#44AA99", "#882255", "#999933", "#6F7378",
)  # fmt: skip


class Panel(NamedTuple):
    """One set of axes in `curves`.

    Attributes:
      title: above it, with the unit.
      keys: key in the records -> name in the legend (shown where there are several).
      scale: factor on the values, 100 for percent of a fraction.
      smooth: draw the raw values faintly and their running mean on top.
      lines: (name, value) of dotted lines to compare with, such as the accuracy on raw pixels.
    """

    title: str
    keys: Mapping[str, str]
    scale: float = 1.0
    smooth: bool = False
    lines: Sequence[tuple[str, float]] = ()


PANELS = (
    Panel("Loss", {"loss": "loss"}, smooth=True),
    Panel("Accuracy (%)", {"knn_top1": "kNN", "linear_top1": "linear probe"}, scale=100),
    Panel("Learning rate", {"learning_rate": "learning rate"}),
    Panel(
        "Spread (1 = isotropic)",
        {"feature_std_ratio": "features", "embedding_std": "embeddings"},
    ),
    Panel(
        "Rank (directions)",
        {"effective_rank": "features, RankMe", "embedding_rank": "embeddings, participation"},
    ),
    Panel("Speed (images/s)", {"images_per_second": "images/s"}),
)


def curves(
    path: str | os.PathLike,
    records: Sequence[Mapping[str, Any]],
    panels: Sequence[Panel] = PANELS,
    title: str = "",
) -> None:
    """Metrics against steps, one panel for each kind.

    Args:
      path: PNG to write.
      records: as `metrics.read` gives them: 'step' and any other keys, each present in some.
      panels: what to draw; a panel without a record is left out, and so are values that are not
        finite (a red tick on the axis marks their step).
      title: above all.

    Raises:
      ValueError: no panel has a record.
    """
    panels = [p for p in panels if any(key in record for record in records for key in p.keys)]
    if not panels:
        raise ValueError("curves: none of the panels' keys is in the records")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    with canvas(path, 4.0 * columns, 2.7 * rows + 0.35 * bool(title), title) as figure:
        for index, panel in enumerate(panels):
            _curve(figure.add_subplot(rows, columns, index + 1), records, panel)


def views_sheet(
    path: str | os.PathLike,
    images: np.ndarray,
    views: np.ndarray,
    mean: Sequence[float],
    std: Sequence[float],
    title: str = "What the network sees",
) -> None:
    """Originals on the left, and next to each the augmented views of it.

    Args:
      path: PNG to write.
      images: uint8 [n, H, W, C], C is 1 or 3.
      views: float [n, v, h, w, C], normalised as the network gets them.
      mean, std: [C], of that normalisation; undone here, then clipped to [0, 1].
      title: above all.
    """
    n, v = views.shape[:2]
    with canvas(path, 1.05 * (v + 1), 0.55 + 1.05 * n, title, pad=0.02) as figure:
        _sheet(figure, images, views, mean, std)


def neighbours_sheet(
    path: str | os.PathLike,
    images: np.ndarray,
    found: np.ndarray,
    similarity: np.ndarray,
    right: np.ndarray | None,
    names: Sequence[str],
    files: Sequence[Sequence[str]] | None = None,
    title: str = "Nearest images",
) -> None:
    """Queries on the left, and next to each its nearest images, the nearest first.

    Where classes are known, a green frame marks an image of the query's class, and a red frame with
    a cross in its corner any other.

    Args:
      path: PNG to write.
      images: uint8 [n, H, W, C], C is 1 or 3: the queries.
      found: uint8 [n, k, H, W, C].
      similarity: float [n, k], cosine; stands below each.
      right: bool [n, k], whether it is of the query's class; None without labels.
      names: n class names of the queries, '' for none.
      files: n rows of 1 + k names, of the query's file and of its neighbours'; stand below each,
        shortened from the left. None: there are none.
      title: above all.
    """
    n, k = found.shape[:2]
    side, below = 0.92, 0.18 + 0.1 * (files is not None)
    with canvas(path, side * (k + 1) + 0.5, 0.75 + (side + below) * n, title, pad=0.04) as figure:
        # A narrow empty column sets the query apart.
        grid = figure.add_gridspec(n, k + 2, width_ratios=[1, 0.12] + [1] * k)
        for row in range(n):
            ax = figure.add_subplot(grid[row, 0])
            _picture(ax, images[row])
            name = names[row] if len(names[row]) <= 15 else names[row][:14] + "…"
            ax.set_xlabel(name, fontsize=8, color=INK, labelpad=2, parse_math=False)
            if files is not None:
                _file(ax, files[row][0])
            if row == 0:
                ax.set_title("query", loc="center", fontsize=9, color=FAINT, pad=4)
            for column in range(k):
                ax = figure.add_subplot(grid[row, column + 2])
                _picture(ax, found[row, column])
                ax.set_xlabel(f"{similarity[row, column]:.3f}", fontsize=7, color=FAINT, labelpad=2)
                if files is not None:
                    _file(ax, files[row][column + 1])
                if right is not None:
                    _mark(ax, right[row, column])
                if row == 0:
                    ax.set_title(str(column + 1), loc="center", fontsize=9, color=FAINT, pad=4)
        if right is not None:
            figure.supxlabel(
                "green: the query's class; red, crossed: another; numbers: cosine",
                fontsize=8, color=FAINT, x=0.01, ha="left",
            )  # fmt: skip


def embedding(
    path: str | os.PathLike,
    places: np.ndarray,
    labels: np.ndarray | None,
    classes: int | Sequence[str],
    title: str = "Features of the test images",
) -> None:
    """A two-dimensional picture of features, coloured by label where there is one.

    Args:
      path: PNG to write.
      places: float [n, 2], from `project`.
      labels: int [n] (-1: none, drawn in grey), or None.
      classes: their number or names.
      title: above it.
    """
    with canvas(path, 5.6, 5.6) as figure:
        _scatter(figure.add_subplot(), places, labels, classes, title)


def spectrum(
    path: str | os.PathLike,
    values: Mapping[str, np.ndarray],
    title: str = "Singular values of the features",
) -> None:
    """Singular values, each set divided by its largest, on logarithmic axes.

    A set whose curve falls off a cliff has collapsed to the dimensions before it.

    Args:
      path: PNG to write.
      values: name of the feature set -> float [s], descending.
      title: above it.
    """
    from ssl_jax.evaluate.health.collapse import effective_rank

    with canvas(path, 5.6, 3.8) as figure:
        ax = figure.add_subplot()
        longest = 1
        for color, (name, sigma) in zip(LINES * len(values), values.items(), strict=False):
            sigma = np.asarray(sigma, np.float32)
            rank = float(effective_rank(sigma))
            share = np.maximum(sigma / max(sigma.max(), 1e-30), 1e-7)
            longest = max(longest, len(sigma))
            ax.loglog(
                np.arange(1, len(sigma) + 1), share, color=color, lw=2,
                label=f"{name}: effective rank {rank:.0f}" if rank >= 10
                else f"{name}: effective rank {rank:.1f}",
            )  # fmt: skip
        ax.set(xlim=(1, longest), ylim=(None, 1.5), xlabel="dimension", title=title)
        ax.set_ylabel("singular value / largest")
        ax.xaxis.set_major_formatter("{x:g}")
        ax.legend(loc="lower left")


def summary(
    path: str | os.PathLike,
    untrained: np.ndarray,
    learned: np.ndarray,
    labels: np.ndarray | None,
    classes: int | Sequence[str],
    records: Sequence[Mapping[str, Any]],
    images: np.ndarray | None,
    views: np.ndarray | None,
    mean: Sequence[float],
    std: Sequence[float],
    title: str = "",
    captions: tuple[str, str] = ("before training", "after training, without labels"),
    panels: Sequence[Panel] = PANELS[:2],
) -> None:
    """The whole run in one picture: views, curves, and the features before and after.

    Args:
      path: PNG to write.
      untrained, learned: float [n, 2], features of the same images, from `project`.
      labels, classes: as for `embedding`.
      records: as for `curves`.
      images, views, mean, std: as for `views_sheet`; as many rows as fit (six) are drawn.
        None of examples that are no images: there are none to draw.
      title: above all.
      captions: of the two embeddings.
      panels: two (or one) of `curves`; those without a record are left out.
    """
    panels = [p for p in panels if any(key in record for record in records for key in p.keys)]
    widths = [7.65, 2.7] if views is None else [2.85, 7.65, 2.7]
    with canvas(path, sum(widths), 4.35 + 0.35 * bool(title), title) as figure:
        *left, middle, right = figure.subfigures(1, len(widths), width_ratios=widths)
        if views is not None:
            rows, columns = min(len(views), 6), min(views.shape[1], 3)
            _sheet(left[0], images[:rows], views[:rows, :columns], mean, std)
        for index, (places, caption) in enumerate(zip((untrained, learned), captions, strict=True)):
            ax = middle.add_subplot(1, 2, index + 1)
            _scatter(ax, places, labels, classes, caption)
        for index, panel in enumerate(panels):
            _curve(right.add_subplot(len(panels), 1, index + 1), records, panel)


def project(features: np.ndarray, seed: int = 0) -> np.ndarray:
    """Two-dimensional t-SNE of the first 50 principal components of unit-length features.

    Length is divided out because kNN compares by cosine: the picture shows what it sees.

    Args:
      features: float [n, d].
      seed: of the solvers.

    Returns:
      float32 [n, 2]; each axis fills [-1, 1].
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    x = np.asarray(features, np.float32)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    with np.errstate(invalid="ignore"):  # 0 / 0: the explained share of features all equal
        x = PCA(min(50, *x.shape), random_state=seed).fit_transform(x)
    if x.shape[1] == 1:
        x = np.hstack([x, np.zeros_like(x)])
    # A few points, or points on a line, are shown as they are: t-SNE has nothing to spread.
    if len(x) >= 10 and x[:, 1].std() > 1e-6:
        perplexity = min(30.0, (len(x) - 1) / 3)
        tsne = TSNE(2, perplexity=perplexity, init="pca", max_iter=500, random_state=seed)
        # At this size threads wait for each other: six times slower on a busy machine.
        with threadpool_limits(1):
            x = tsne.fit_transform(x)
    x = x[:, :2] - (x[:, :2].max(0) + x[:, :2].min(0)) / 2
    return (x / np.maximum(np.abs(x).max(0), 1e-12)).astype(np.float32)


def png(draw: Callable[[BinaryIO], None]) -> bytes:
    """A picture in memory, to be written when the disk takes it (`workdir.write_file`).

    Args:
      draw: one of the functions of this module, given all but its `path`.
    """
    file = io.BytesIO()
    draw(file)
    return file.getvalue()


@contextlib.contextmanager
def canvas(path, width, height, title="", pad=0.06):
    """A figure of the house style, saved to `path` at the end; a context manager.

    Args:
      path: PNG to write, or a file open for it.
      width, height: inches.
      title: above all.
      pad: inches around each panel.

    Yields:
      a matplotlib Figure.
    """
    import matplotlib

    style = {
        "font.family": "DejaVu Sans", "font.size": 9.5, "text.color": INK,
        "axes.edgecolor": FAINT, "axes.labelcolor": FAINT, "axes.titlesize": 10.5,
        "axes.titlelocation": "left", "axes.titlepad": 8, "axes.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8, "axes.axisbelow": True,
        "xtick.color": FAINT, "ytick.color": FAINT, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
        "xtick.major.size": 0, "ytick.major.size": 0, "xtick.minor.size": 0, "ytick.minor.size": 0,
        "legend.frameon": False, "legend.fontsize": 8.5, "figure.facecolor": "white",
    }  # fmt: skip
    with matplotlib.rc_context(style):
        from matplotlib.figure import Figure

        figure = Figure((width, height), layout="constrained")
        figure.get_layout_engine().set(w_pad=pad, h_pad=pad)
        if title:
            figure.suptitle(
                title, fontsize=12.5, fontweight="bold", x=0.01, ha="left", parse_math=False
            )
        yield figure
        figure.savefig(path, dpi=160, format="png")


def _curve(ax, records, panel):
    last = max(record["step"] for record in records)
    for color, (key, name) in zip(LINES, panel.keys.items(), strict=False):
        pairs = [(r["step"], r[key]) for r in records if r.get(key) is not None]
        if not pairs:
            continue
        steps, values = np.array(pairs, np.float64).T
        finite = np.isfinite(values)
        if not finite.all():
            ax.plot(
                steps[~finite], np.zeros((~finite).sum()), "|", color="#cc1122", ms=9, mew=1.5,
                transform=ax.get_xaxis_transform(), clip_on=False,
            )  # fmt: skip
        steps, values = steps[finite], panel.scale * values[finite]
        if panel.smooth and len(values) >= 40:
            ax.plot(steps, values, color=color, lw=0.8, alpha=0.3)
            values = _running_mean(values, max(3, len(values) // 25))
        marker = "o" if len(values) <= 30 else None
        ax.plot(steps, values, color=color, lw=1.8, marker=marker, ms=3.5, label=name)
    if len(ax.get_legend_handles_labels()[1]) > 1:
        ax.legend()
    for name, value in panel.lines:
        ax.axhline(panel.scale * value, color=FAINT, lw=1.2, ls=(0, (1.5, 1.5)))
        ax.annotate(
            name, (0.99, panel.scale * value), xycoords=ax.get_yaxis_transform(),
            xytext=(0, 2), textcoords="offset points", ha="right", fontsize=8, color=FAINT,
        )  # fmt: skip
    ax.set(title=panel.title, xlabel="step", xlim=(0, max(last, 1)))
    ax.xaxis.get_major_locator().set_params(nbins=5, integer=True)
    ax.yaxis.get_major_locator().set_params(nbins=5)
    ax.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")


def _scatter(ax, xy, labels, classes, title):
    names = [str(i) for i in range(classes)] if isinstance(classes, int) else list(classes)
    label = np.full(len(xy), -1) if labels is None else np.asarray(labels)
    if len(names) <= len(CLASSES):
        colors = CLASSES
    else:  # more than can be told apart: neighbours in the list get neighbouring colours
        import matplotlib

        colors = matplotlib.colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
    color = [colors[i] if i >= 0 else "#9aa0a8" for i in label]
    size = float(np.clip(16000 / len(xy), 6, 40))
    ax.scatter(*xy.T, c=color, s=size, alpha=0.8, linewidths=0)
    if len(names) <= 20:
        _name_classes(ax, xy, label, names, colors)
    ax.set(title=title, xlim=(-1.06, 1.06), ylim=(-1.06, 1.06), xticks=[], yticks=[])
    ax.set_aspect("equal")
    ax.spines[:].set_visible(False)
    ax.set_facecolor("#f7f8fa")


def _name_classes(ax, xy, label, names, colors):
    """The name of each class, on its member that has the most fellows and no name around it."""
    taken = np.zeros((0, 2))
    for i, name in enumerate(names):
        members = xy[label == i]
        if len(members):
            fellows = np.linalg.norm(members[:, None] - members, axis=-1) < 0.2
            covered = (np.linalg.norm(members[:, None] - taken, axis=-1) < 0.15).any(1)
            place = members[np.argmax(fellows.sum(1) - len(members) * covered)]
            taken = np.vstack([taken, place])
            ax.annotate(
                name, place, ha="center", va="center", fontsize=9, fontweight="bold",
                parse_math=False,
                bbox={
                    "boxstyle": "round,pad=0.25,rounding_size=0.5",
                    "fc": "white", "ec": colors[i], "lw": 1.6, "alpha": 0.92,
                },
            )  # fmt: skip


def _sheet(figure, images, views, mean, std):
    """A row for each image: the original, then its views, de-normalised."""
    views = np.asarray(views, np.float32) * np.asarray(std) + np.asarray(mean)
    n, v = views.shape[:2]
    grid = figure.add_gridspec(n, v + 1)
    for row in range(n):
        pictures = [np.asarray(images[row], np.float32) / 255, *np.clip(views[row], 0, 1)]
        for column, picture in enumerate(pictures):
            ax = figure.add_subplot(grid[row, column])
            picture = picture[..., 0] if picture.shape[-1] == 1 else picture
            ax.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            ax.set_axis_off()
            if row == 0:
                name = f"view {column}" if column else "original"
                ax.set_title(name, loc="center", fontsize=9, color=FAINT, pad=4)


def _picture(ax, image):
    """An image without ticks, in a frame that has no colour yet."""
    image = np.asarray(image, np.float32) / 255
    image = image[..., 0] if image.shape[-1] == 1 else image
    ax.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(True)
    ax.spines[:].set_color(GRID)


def _file(ax, name, most=18):
    """The name of a file below an image, under what stands there; its end tells it from others."""
    shown = name if len(name) <= most else "…" + name[1 - most :]
    ax.annotate(
        shown, (0.5, 0), xycoords="axes fraction", ha="center", va="top", fontsize=5, color=FAINT,
        xytext=(0, -13), textcoords="offset points", parse_math=False,
    )  # fmt: skip


def _mark(ax, right):
    """Frames an image: right or wrong. The cross tells them apart without colours."""
    ax.spines[:].set_color(RIGHT if right else WRONG)
    ax.spines[:].set_linewidth(2.4)
    if not right:
        ax.annotate(
            "×", (1, 1), xycoords="axes fraction", ha="right", va="top", fontsize=9,
            fontweight="bold", color="white", xytext=(0, 0), textcoords="offset points",
            bbox={"boxstyle": "square,pad=0.08", "fc": WRONG, "ec": WRONG},
        )  # fmt: skip


def _running_mean(values, width):
    """Centred mean over `width` values, fewer at the ends: the curve does not lag."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    low = np.maximum(index - width // 2, 0)
    high = np.minimum(index + width // 2 + 1, len(values))
    return (total[high] - total[low]) / (high - low)
