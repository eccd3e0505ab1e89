import itertools

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import clustering


def blobs(n=240, d=5, classes=4, spread=0.3, seed=0):
    r = np.random.default_rng(seed)
    labels = r.integers(0, classes, n)
    return (4 * np.eye(d)[labels] + spread * r.normal(size=(n, d))).astype(np.float32), labels


def test_agreement_by_hand():
    # Clusters against classes: 3 of class 0 in cluster 5, one strays to cluster 2, and so on.
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 2, -1])
    clusters = np.array([5, 5, 5, 2, 2, 2, 5, 7, 5])
    found = clustering.agreement(labels, clusters)
    assert found["accuracy"] == 6 / 8  # 5 → 0 (3), 2 → 1 (2), 7 → 2 (1)
    assert found["purity"] == 6 / 8
    # NMI from its definition, on the contingency [[3, 1, 0], [1, 2, 0], [0, 0, 1]].
    p = np.array([[3, 1, 0], [1, 2, 0], [0, 0, 1]]) / 8
    a, b = p.sum(1), p.sum(0)
    mutual = sum(
        p[i, j] * np.log(p[i, j] / (a[i] * b[j])) for i in range(3) for j in range(3) if p[i, j]
    )
    entropy = [-np.sum(q * np.log(q)) for q in (a, b)]
    assert found["nmi"] == pytest.approx(mutual / np.mean(entropy))
    # ARI from pairs: together in both / in the classes / in the clusters, of 28 pairs.
    pairs = list(itertools.combinations(range(8), 2))
    same = [(labels[i] == labels[j], clusters[i] == clusters[j]) for i, j in pairs]
    both = sum(x and y for x, y in same)
    first, second = sum(x for x, _ in same), sum(y for _, y in same)
    expected = first * second / 28
    assert found["ari"] == pytest.approx((both - expected) / ((first + second) / 2 - expected))


def test_agreement_is_the_best_of_all_matchings():
    r = np.random.default_rng(0)
    labels, clusters = r.integers(0, 5, 200), r.integers(0, 5, 200)
    best = max(np.mean(np.array(p)[clusters] == labels) for p in itertools.permutations(range(5)))
    found = clustering.agreement(labels, clusters)
    assert found["accuracy"] == pytest.approx(best)
    assert abs(found["ari"]) < 0.03 and found["nmi"] < 0.1  # chance


@pytest.mark.parametrize("clusters", [2, 40])
def test_fewer_or_more_clusters_than_classes(clusters):
    labels = np.arange(40) % 4
    found = clustering.agreement(labels, np.arange(40) % clusters)
    # 2 clusters of 20 hold two classes each; 40 of one: four are matched, and all are pure.
    assert found["accuracy"] == {2: 0.5, 40: 0.1}[clusters]
    assert found["purity"] == {2: 0.5, 40: 1.0}[clusters]


@pytest.mark.parametrize("geometry", clustering.GEOMETRIES)
def test_blobs_are_found(geometry):
    x, labels = blobs()
    group = clustering.kmeans if geometry == "euclidean" else clustering.spherical_kmeans
    found = group(x, 4, 4, 0)
    assert found.centres.shape == (4, 5) and found.spread == min(found.spreads)
    assert len(found.spreads) == 4
    assigned = clustering.assign(x, found.centres, geometry)
    measured = clustering.agreement(labels, assigned)
    assert measured == {
        "nmi": pytest.approx(1), "ari": pytest.approx(1), "accuracy": 1.0, "purity": 1.0,
    }  # fmt: skip
    again = group(x, 4, 4, 0)
    np.testing.assert_array_equal(again.centres, found.centres)
    if geometry == "euclidean":
        means = np.stack([x[assigned == i].mean(0) for i in range(4)])
        np.testing.assert_allclose(found.centres, means, atol=1e-3)
        spread = np.mean(((x - means[assigned]) ** 2).sum(1))
    else:
        u = x / np.linalg.norm(x, axis=1, keepdims=True)
        means = np.stack([u[assigned == i].sum(0) for i in range(4)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        np.testing.assert_allclose(found.centres, means, atol=1e-5)
        spread = np.mean(1 - (u * means[assigned]).sum(1))
    assert found.spread == pytest.approx(spread, rel=1e-3)


def test_spherical_does_not_see_length():
    x, _ = blobs(spread=1.0)
    scale = np.random.default_rng(1).uniform(0.1, 10, (len(x), 1)).astype(np.float32)
    plain, scaled = (clustering.spherical_kmeans(y, 4, 2, 0) for y in (x, x * scale))
    np.testing.assert_allclose(scaled.centres, plain.centres, atol=1e-4)
    assert np.ptp(clustering.kmeans(x * scale, 4, 2, 0).centres) > 2 * np.ptp(plain.centres)


def test_mini_batches_above_the_limit_are_close(monkeypatch):
    x, labels = blobs()
    full = clustering.kmeans(x, 4, 3, 0)
    monkeypatch.setattr(clustering, "FULL", 100)
    mini = clustering.kmeans(x, 4, 3, 0)
    assert mini.spread == pytest.approx(full.spread, rel=0.02)
    assert mini.spread != full.spread  # it is another algorithm
    assigned = clustering.assign(x, mini.centres, "euclidean")
    assert clustering.agreement(labels, assigned)["accuracy"] == 1.0


def test_assign_in_blocks_equals_the_definition():
    r = np.random.default_rng(0)
    x, centres = r.normal(size=(9000, 3)).astype(np.float32), r.normal(size=(5, 3))
    nearest = ((x[:, None] - centres) ** 2).sum(2).argmin(1)
    centres = centres.astype(np.float32)
    assert np.mean(clustering.assign(x, centres, "euclidean") == nearest) > 0.9999


def test_user_errors():
    x, _ = blobs(n=10)
    with pytest.raises(UserError, match="11 clusters of 10 images"):
        clustering.check(x, x, 11, 1)
    for few in (-1, 0, 1):
        with pytest.raises(UserError, match=f"{few} clusters of 10 images.*between 2 and"):
            clustering.check_counts(few, 10, 1)
    with pytest.raises(UserError, match="--config.restarts is 0"):
        clustering.check(x, x, 2, 0)
    with pytest.raises(UserError, match="test features are not all finite"):
        clustering.check(x, x + np.nan, 2, 1)
    with pytest.raises(UserError, match="no row has a label"):
        clustering.agreement(np.full(3, -1), np.arange(3))
