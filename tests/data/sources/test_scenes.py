"""Drawn scenes: masks and depth are exact, and the class is in the outline alone."""

import math

import numpy as np
import pytest

from ssl_jax.data.sources import open_source, scenes
from ssl_jax.errors import UserError


def polygon(shape):
    """The corners of a shape of area 1, from its definition; None for disc and ring."""
    if shape == "square":
        return np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    if shape == "triangle":  # upright, equilateral: side² √3 / 4 = 1
        side = math.sqrt(4 / math.sqrt(3))
        angles = np.deg2rad([-90, 30, 150])
        return side / math.sqrt(3) * np.stack([np.cos(angles), np.sin(angles)], 1)
    if shape == "star":  # five tips, the first upwards; the notches at 0.45 of their radius
        angles = np.deg2rad(-90 + 36 * np.arange(10))
        corners = np.where(np.arange(10) % 2, 0.45, 1)[:, None]
        corners = corners * np.stack([np.cos(angles), np.sin(angles)], 1)
        x, y = corners.T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2  # shoelace
        return corners / math.sqrt(area)
    if shape == "cross":  # five squares
        a = math.sqrt(1 / 5)
        points = [(1, 3), (1, 1), (3, 1), (3, -1), (1, -1), (1, -3)]
        points += [(-x, -y) for x, y in points]
        return np.array(points) * a / 2
    return None


@pytest.mark.parametrize("shape", scenes.SHAPES)
def test_outlines_are_the_shapes_and_enclose_an_area_of_one(shape):
    from matplotlib.path import Path

    side = np.linspace(-1, 1, 801, dtype=np.float32)
    x, y = (v.ravel() for v in np.meshgrid(side, side))
    outside = scenes.distance(np.full(x.shape, scenes.SHAPES.index(shape)), x, y)
    assert np.mean(outside < 0) * 4 == pytest.approx(1, abs=0.01)
    assert np.hypot(x, y)[outside < 0].max() < scenes.REACH
    corners = polygon(shape)
    clear = np.abs(outside) > 0.005
    if corners is not None:
        inside = Path(corners).contains_points(np.stack([x, y], 1))
        np.testing.assert_array_equal(inside[clear], (outside < 0)[clear])
    else:
        radius = np.hypot(x, y)
        inner = radius[(outside < 0)].min()
        assert (inner < 0.01) if shape == "disc" else (0.2 < inner < 0.3)


def test_mask_and_depth_are_those_of_the_nearest_surface():
    """Every pixel alone, by tracing its ray."""
    size, rows = 16, np.arange(6)
    found = scenes.dense_labels("test", rows, size)
    s = scenes.scenes("test", rows)
    for i in range(len(rows)):
        for row in range(size):
            for column in range(size):
                x, y = (column + 0.5) / size - 0.5, (row + 0.5) / size - 0.5
                inverse = max((y - s.horizon[i]) / s.height[i], (1 + s.slant[i] * x) / s.wall[i])
                best = (1 / inverse, 0)
                for k in range(scenes.MOST):
                    z = s.depth[i, k]
                    if not np.isfinite(z):
                        continue
                    right, down = (x - s.x[i, k]) * z, (y - s.y[i, k]) * z
                    turned = complex(right, down) * np.exp(-1j * s.turn[i, k]) / s.size[i, k]
                    inside = scenes.distance(
                        s.shape[i, k][None], np.float32([turned.real]), np.float32([turned.imag])
                    )
                    if inside[0] < 0 and z < best[0]:
                        best = (z, s.shape[i, k] + 1)
                assert found["mask"][i, row, column] == best[1]
                assert found["depth"][i, row, column] == pytest.approx(best[0], rel=1e-5)
    assert set(np.unique(found["mask"])) > {0}


def test_a_scene_depends_on_split_and_row_alone():
    together = scenes.draw("train", [7, 3, 900], 16, 3)
    alone = scenes.draw("train", [3], 16, 3)
    for key, values in together.items():
        np.testing.assert_array_equal(values[1:2], alone[key])
    other = scenes.draw("test", [3], 16, 3)
    assert (other["image"] != alone["image"]).mean() > 0.5
    # The size only says how finely it is sampled: every third centre of 48 is one of 16.
    fine = scenes.dense_labels("train", [7, 3, 900], 48)
    np.testing.assert_array_equal(fine["mask"][:, 1::3, 1::3], together["mask"])
    np.testing.assert_allclose(fine["depth"][:, 1::3, 1::3], together["depth"], rtol=1e-5)


def test_scenes_do_not_change_between_versions():
    """Results are compared on them."""
    counts = np.bincount(scenes.dense_labels("test", range(20), 32)["mask"].ravel(), minlength=7)
    assert counts.tolist() == [15691, 1402, 426, 631, 468, 1136, 726]


def test_many_at_once_equal_few(monkeypatch):
    whole = scenes.draw("train", np.arange(5), 16, 1)
    monkeypatch.setattr(scenes, "PIXELS", 2 * 16 * 16)
    for key, values in scenes.draw("train", np.arange(5), 16, 1).items():
        np.testing.assert_array_equal(values, whole[key])


@pytest.fixture(scope="module")
def drawn():
    return scenes.draw("train", np.arange(1500), 32, 3)


def test_values(drawn):
    image, mask, depth = drawn["image"], drawn["mask"], drawn["depth"]
    assert image.dtype == np.uint8 and mask.dtype == np.int32 and depth.dtype == np.float32
    assert image.shape == (1500, 32, 32, 3) and mask.shape == depth.shape == (1500, 32, 32)
    assert 0.5 < depth.min() and depth.max() < 13
    shares = np.bincount(mask.ravel(), minlength=7) / mask.size
    assert 0.5 < shares[0] < 0.85 and shares[1:].min() > 0.8 * shares[1:].max()
    assert 50 < image.mean() < 130 and image.std((1, 2)).mean() > 15
    # The label is the class of the nearest object, which nothing hides.
    labels = drawn["label"]
    assert np.bincount(labels, minlength=6).min() > 200
    nearest = np.where(mask > 0, depth, np.inf).reshape(1500, -1).argmin(1)
    assert np.mean(mask.reshape(1500, -1)[np.arange(1500), nearest] == labels + 1) > 0.99
    # The background lies behind what stands before it, and has a slope of its own.
    assert depth[mask == 0].mean() > depth[mask > 0].mean() + 1
    floor = depth[:, -1][mask[:, -1] == 0].mean()
    assert depth[:, 0][mask[:, 0] == 0].mean() > floor + 2


def test_neither_colour_nor_depth_nor_place_of_a_pixel_tells_its_class(drawn):
    from sklearn.tree import DecisionTreeClassifier

    mask = drawn["mask"]
    i, row, column = np.nonzero(mask)
    known = [drawn["image"][i, row, column], drawn["depth"][i, row, column], row, column]
    x, y = np.column_stack(known), mask[i, row, column]
    learn, judge = i < 1000, i >= 1000
    few = np.random.default_rng(0).permutation(np.flatnonzero(learn))[:20_000]
    model = DecisionTreeClassifier(min_samples_leaf=50, random_state=0).fit(x[few], y[few])
    assert model.score(x[judge], y[judge]) < 1 / 6 + 0.02
    # The same model does find what is there: floor and wall from objects.
    i, row, column = (v.ravel() for v in np.indices(mask.shape))
    x = np.column_stack([drawn["depth"].ravel(), row, column])
    y, few = mask.ravel() > 0, np.random.default_rng(0).permutation(len(i))[:20_000]
    model = DecisionTreeClassifier(min_samples_leaf=50, random_state=0).fit(x[few], y[few])
    assert model.score(x, y) > np.mean(~y) + 0.05


def test_grey_is_the_luma(drawn):
    grey = scenes.draw("train", np.arange(20), 32, 1)["image"]
    luma = drawn["image"][:20] @ np.array([0.299, 0.587, 0.114])
    assert grey.shape == (20, 32, 32, 1)
    np.testing.assert_allclose(grey[..., 0], luma, atol=1.1)


def test_as_a_source(config):
    data = config(source="scenes", examples=40, size=16, channels=1)
    train, test = open_source(data, "train"), open_source(data, "test")
    assert (train.examples, test.examples) == (40, 10) and train.fields["image"].shape == (
        16,
        16,
        1,
    )
    assert train.classes == 6 and train.class_names == scenes.SHAPES
    found = test.read(np.array([4, 2]))
    expected = scenes.draw("test", [4, 2], 16, 1)
    np.testing.assert_array_equal(found["image"], expected["image"])
    np.testing.assert_array_equal(found["label"], expected["label"])
    assert found["index"].tolist() == [4, 2] and found["index"].dtype == np.int32
    with pytest.raises(UserError, match="data.examples=0"):
        open_source(config(source="scenes", examples=0), "train")
