"""Similarities of views, against loops in float64."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.evaluate.health import similarity
from ssl_jax.runs import config as configs


@pytest.fixture(scope="module")
def views():
    """Two views of 30 images of three classes (the last image has no label), unit length."""
    rng = np.random.default_rng(0)
    labels = np.array([i % 3 for i in range(29)] + [-1])
    image = rng.normal(size=(3, 8))[labels] + 0.7 * rng.normal(size=(30, 8))
    x, y = (similarity.unit(image + 0.6 * rng.normal(size=(30, 8))) for _ in range(2))
    return x, y, labels


def test_numbers_are_means_over_the_pairs_they_name(views):
    x, y, labels = views
    found, h = similarity.measure(x, y, labels, 2.0, 2.0)
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    pairs = {"positive": [], "negative": [], "same_class": []}
    nearest = []
    for i in range(30):
        cosines = [a[i] @ b[j] for j in range(30)]
        pairs["positive"].append(cosines[i])
        nearest.append(cosines[i] > max(c for j, c in enumerate(cosines) if j != i))
        for j in range(30):
            if j != i:
                pairs["negative"].append(cosines[j])
                if labels[i] == labels[j] >= 0:
                    pairs["same_class"].append(cosines[j])
    assert found["positive_similarity"] == pytest.approx(np.mean(pairs["positive"]), abs=1e-6)
    assert found["negative_similarity"] == pytest.approx(np.mean(pairs["negative"]), abs=1e-6)
    assert found["tolerance"] == pytest.approx(np.mean(pairs["same_class"]), abs=1e-6)
    assert found["positive_recall"] == np.mean(nearest) and 0 < np.mean(nearest) < 1
    assert found["alignment"] == pytest.approx(
        np.mean(2 - 2 * np.array(pairs["positive"])), abs=1e-6
    )
    for name, values in pairs.items():
        count, _ = np.histogram(values, similarity.BINS, (-1, 1))
        np.testing.assert_allclose(getattr(h, name), count / len(values), atol=1.1 / len(values))


def test_without_labels_there_is_no_tolerance(views):
    x, y, _ = views
    found, h = similarity.measure(x, y, np.full(30, -1), 2.0, 2.0)
    assert "tolerance" not in found and h.same_class is None


def test_hardness_is_the_softmax_over_the_other_images(views):
    x, y, _ = views
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows = similarity.hardness(x, y, (0.05, 1.0))
    for row in rows:
        negatives, hardest = [], []
        for i in range(30):
            s = np.delete(b @ a[i], i) / row["temperature"]
            r = np.exp(s - s.max())
            r /= r.sum()
            negatives.append(np.exp(-np.sum(r * np.log(r))) / 29)
            hardest.append(r.max())  # 1 % of 29, but at least one
        assert row["negatives"] == pytest.approx(np.mean(negatives), rel=1e-4)
        assert row["hardest"] == pytest.approx(np.mean(hardest), rel=1e-4)
    assert rows[0]["negatives"] < rows[1]["negatives"] <= 1
    assert rows[0]["hardest"] > rows[1]["hardest"]


@pytest.mark.parametrize(
    "config, sizes",
    [("simclr", (20, 20)), ("byol", (20, 20)), ("dino", (20, 20)), ("jigsaw", (36, 36))],
)
def test_the_views_of_a_run_are_its_own(config, sizes):
    c, _ = configs.load(f"configs/{config}.py:digits")
    c.views.local = ConfigDict(dict(next(iter(c.views.values())), size=8))
    pair = similarity.policies(c, "")
    assert tuple(p.size for p in pair) == sizes
    common = similarity.policies(c, "digits")
    assert common[0] == common[1] and common[0].size == c.evaluate.size
    assert common[0].mean == tuple(c.evaluate.mean)
    with pytest.raises(UserError, match="unknown augmentation"):
        similarity.policies(c, "digit")


def test_rank_correlation_is_of_ranks():
    assert similarity.rank_correlation([1, 2, 3, 40], [0.1, 0.2, 0.3, 0.31])[0] == pytest.approx(1)
    assert similarity.rank_correlation([1, 2, 3], [3, 2, 1])[0] == pytest.approx(-1)
    # One swap of five: ρ = 1 − 6·2 / (5·24) = 0.9, t = ρ √(3 / (1 − ρ²)) = 3.576 with 3 degrees.
    rho, p = similarity.rank_correlation([1, 2, 3, 4, 5], [2, 1, 3, 4, 5])
    assert rho == pytest.approx(0.9) and p == pytest.approx(0.0374, abs=1e-4)
