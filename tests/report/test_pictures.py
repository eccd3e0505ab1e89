import subprocess
import sys

import numpy as np
import pytest

from ssl_jax.report import pictures


def pixels(path):
    from PIL import Image

    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def has(picture, color, least=20):
    """Whether at least `least` pixels are close to a '#rrggbb' colour."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return (np.abs(picture.astype(int) - rgb).max(-1) < 40).sum() >= least


def blobs(n=60, d=6, classes=3):
    r = np.random.default_rng(0)
    labels = np.arange(n) % classes
    return 8 * np.eye(d)[labels] + r.normal(size=(n, d)), labels


RECORDS = [
    {"step": i, "loss": 5 / (1 + i), "learning_rate": 1e-3, **({"knn_top1": 0.8} if i % 5 else {})}
    for i in range(60)
]


def test_curves(tmp_path):
    pictures.curves(tmp_path / "all.png", RECORDS, title="a run")
    picture = pixels(tmp_path / "all.png")
    assert picture.shape[1] > 2.5 * picture.shape[0]  # three panels have a record: one row of three
    assert has(picture, pictures.LINES[0], 500)
    with pytest.raises(ValueError, match="none of the panels"):
        pictures.curves(tmp_path / "none.png", [{"step": 1, "other": 1.0}])
    assert not (tmp_path / "none.png").exists()


def test_curves_mark_values_that_are_not_finite(tmp_path):
    panel = pictures.PANELS[0]
    pictures.curves(tmp_path / "good.png", RECORDS, [panel])
    bad = [r | {"loss": float("nan")} if 20 < r["step"] < 30 else r for r in RECORDS]
    pictures.curves(tmp_path / "bad.png", bad, [panel])
    assert has(pixels(tmp_path / "bad.png"), "#cc1122")
    assert not has(pixels(tmp_path / "good.png"), "#cc1122")
    pictures.curves(tmp_path / "only.png", [{"step": 3, "loss": float("nan")}], [panel])


def test_curves_with_a_line_to_compare_with(tmp_path):
    panel = pictures.PANELS[1]
    pictures.curves(tmp_path / "plain.png", RECORDS, [panel])
    pictures.curves(tmp_path / "line.png", RECORDS, [panel._replace(lines=(("raw pixels", 0.9),))])
    plain, line = pixels(tmp_path / "plain.png"), pixels(tmp_path / "line.png")
    assert (plain != line).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_shown_denormalised(tmp_path, channels):
    gray = np.array([51, 102, 153, 204])
    images = np.broadcast_to(gray[:, None, None, None], (4, 5, 5, channels)).astype(np.uint8)
    mean, std = [0.4] * channels, [0.2] * channels
    # View 1 is the image itself, view 2 is far out of range and clipped to white.
    same = (images / 255 - np.array(mean)) / np.array(std)
    views = np.stack([same, np.full_like(same, 99.0)], axis=1)
    pictures.views_sheet(tmp_path / "views.png", images, views, mean, std, title="")
    picture = pixels(tmp_path / "views.png")
    left, right = np.array_split(picture[:, : picture.shape[1] * 2 // 3], 2, axis=1)
    for value in gray:  # as many pixels of each shade in the first column as in the second
        a, b = ((x == value).all(-1).sum() for x in (left, right))
        assert a > 1000 and abs(a - b) < 0.05 * a
    third = picture[:, picture.shape[1] * 2 // 3 + 8 :]
    assert not any((third == value).all(-1).sum() > 1000 for value in gray)


@pytest.mark.parametrize("labelled", [True, False])
def test_embedding(tmp_path, labelled):
    features, labels = blobs()
    places, names = pictures.project(features), ["cat", "dog", "owl"]
    pictures.embedding(tmp_path / "e.png", places, labels if labelled else None, names)
    picture = pixels(tmp_path / "e.png")
    assert [has(picture, color, 100) for color in pictures.CLASSES[:3]] == [labelled] * 3


def test_embedding_of_many_classes(tmp_path):
    places = np.random.default_rng(0).uniform(-1, 1, (200, 2))
    pictures.embedding(tmp_path / "e.png", places, np.arange(200) % 50, 50)
    assert pixels(tmp_path / "e.png").size


def test_project_keeps_classes_together():
    features, labels = blobs(90)
    xy = pictures.project(features)
    assert xy.shape == (90, 2) and np.abs(xy).max() <= 1 + 1e-6
    away = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + 9 * np.eye(90)
    assert np.mean(labels[away.argmin(1)] == labels) > 0.95
    np.testing.assert_array_equal(xy, pictures.project(features))
    # A power of two changes no bit of the unit vectors.
    np.testing.assert_array_equal(xy, pictures.project(4.0 * features))


@pytest.mark.parametrize("shape", [(30, 4), (3, 4), (1, 4), (30, 1)])
def test_project_of_degenerate_features_is_finite(shape):
    assert np.isfinite(pictures.project(np.ones(shape))).all()
    line = np.linspace(0, 1, shape[0])[:, None] * np.ones(shape)
    assert np.isfinite(pictures.project(line)).all()


def test_spectrum(tmp_path):
    flat, steep = np.ones(16), 10.0 ** -np.arange(16)
    pictures.spectrum(tmp_path / "s.png", {"flat": flat, "steep": steep, "zero": np.zeros(4)})
    picture = pixels(tmp_path / "s.png")
    assert all(has(picture, color) for color in pictures.LINES[:2])


def test_summary(tmp_path):
    features, labels = blobs()
    places = pictures.project(features)
    images = np.zeros((2, 6, 6, 1), np.uint8)
    views = np.zeros((2, 2, 4, 4, 1), np.float32)
    pictures.summary(
        tmp_path / "s.png", places[:, ::-1], places, labels, 3, RECORDS, images, views,
        [0.5], [0.5], title="a run",
    )  # fmt: skip
    picture = pixels(tmp_path / "s.png")
    assert picture.shape[1] > 2 * picture.shape[0]
    assert all(has(picture, color, 100) for color in pictures.CLASSES[:3])
    assert has(picture, pictures.LINES[0])


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, ssl_jax.report.pictures, ssl_jax.logs.metrics, ssl_jax.logs.console;"
        "print([m for m in ('matplotlib', 'sklearn', 'tensorboardX', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_neighbours_sheet(tmp_path):
    r = np.random.default_rng(0)
    for channels in (1, 3):
        images = r.integers(0, 255, (2, 8, 8, channels), np.uint8)
        found = r.integers(0, 255, (2, 3, 8, 8, channels), np.uint8)
        cosine = np.full((2, 3), 0.5)
        right = np.array([[True, True, True], [True, False, True]])
        names = ["cat", "a class with a very long name"]
        pictures.neighbours_sheet(tmp_path / "known.png", images, found, cosine, right, names)
        pictures.neighbours_sheet(tmp_path / "all.png", images, found, cosine, right | True, names)
        pictures.neighbours_sheet(tmp_path / "none.png", images, found, cosine, None, ["", ""])
        files = [["a/$1.png", *3 * ["b/" + 30 * "x" + "$.png"]]] * 2  # dollars are no formulas
        pictures.neighbours_sheet(tmp_path / "of_files.png", images, found, cosine, None, names,
                                  files)  # fmt: skip
        known, right_all, none = (
            pixels(tmp_path / f"{name}.png") for name in ("known", "all", "none")
        )
        if channels == 1:  # coloured noise has every colour
            assert has(known, pictures.RIGHT) and has(known, pictures.WRONG)
            assert has(right_all, pictures.RIGHT) and not has(right_all, pictures.WRONG)
            assert not has(none, pictures.RIGHT) and not has(none, pictures.WRONG)
