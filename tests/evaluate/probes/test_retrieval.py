import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import retrieval
from ssl_jax.evaluate.probes.retrieval import Query


def data(n=60, m=23, d=6, classes=4, seed=0):
    r = np.random.default_rng(seed)
    return (
        r.normal(size=(n, d)).astype(np.float32),
        r.integers(0, classes, n),
        r.normal(size=(m, d)).astype(np.float32),
        r.integers(0, classes, m),
    )


def brute(gallery, labels, query, ks):
    """The definitions, query by query, over a full sort in float64."""

    def unit(x):
        x = x.astype(np.float64)
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    recalls, aps = {k: [] for k in ks}, []
    for x, label, own in zip(unit(query.features), query.labels, query.own, strict=True):
        order = np.argsort(-(unit(gallery) @ x), kind="stable")
        order = [i for i in order if labels[i] >= 0 and i != own]
        hits = [labels[i] == label for i in order]
        relevant = sum(hits)
        if label < 0 or not relevant:
            continue
        for k in ks:
            recalls[k].append(any(hits[:k]))
        total = 0.0
        for i in range(1, relevant + 1):
            if hits[i - 1]:
                total += sum(hits[:i]) / i
        aps.append(total / relevant)
    found = {f"recall_at_{k}": np.mean(v) for k, v in recalls.items()}
    return found | {"mean_ap_at_r": np.mean(aps), "queries": len(aps)}


def outside(features, labels):
    return Query(features, labels, np.full(len(labels), -1))


@pytest.mark.parametrize("entries", [2**23, 100])
def test_equals_the_definition(entries, monkeypatch):
    """Also with lists of a few queries at a time, and with rows and queries without a label."""
    monkeypatch.setattr(retrieval, "LIST_ENTRIES", entries)
    gallery, labels, features, query_labels = data()
    labels[::7], query_labels[::5] = -1, -1
    query_labels[3] = 9  # a class that the gallery does not have
    query = outside(features, query_labels)
    found = retrieval.measure(gallery, labels, query, (1, 3, 10))
    expected = brute(gallery, labels, query, (1, 3, 10))
    assert found.pop("queries") == expected.pop("queries") == 17
    assert found == pytest.approx(expected, rel=1e-6)
    assert 0 < found["mean_ap_at_r"] < found["recall_at_10"]


def test_leave_one_out_equals_the_definition():
    gallery, labels, _, _ = data()
    labels[4] = 8  # alone in its class: it can find nothing
    query = Query(gallery, labels, np.arange(len(gallery)))
    found = retrieval.measure(gallery, labels, query, (1, 5))
    expected = brute(gallery, labels, query, (1, 5))
    assert found["queries"] == expected["queries"] == 59
    assert found == pytest.approx(expected, rel=1e-6)
    # Had it found itself, every first neighbour would be right.
    assert found["recall_at_1"] < 0.8


def test_a_query_is_left_out_even_where_copies_of_it_are_nearer():
    gallery = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], np.float32)
    for own in range(3):
        query = Query(gallery[:1], np.array([0]), np.array([own]))
        near = retrieval.search(gallery, query, 1)
        assert near.index[0, 0] == (1 if own == 0 else 0)
        near = retrieval.search(gallery, query, 3)
        assert near.index[0].tolist() == [i for i in range(4) if i != own]


@pytest.mark.parametrize(
    "right, expected", [((1,), 0.10), ((1, 10), 0.12), ((1, 2), 0.20), (range(1, 11), 1.0)]
)
def test_map_at_r_of_the_paper(right, expected):
    """Musgrave et al. 2020, their table of hypothetical results: R = 10, in percent there."""
    hit = np.isin(np.arange(1, 11), list(right))[None]
    np.testing.assert_allclose(retrieval.ap_at_r(hit, np.array([10])), [expected])


def test_ap_at_r_by_hand():
    hit = np.array(
        [
            [1, 0, 0, 1],  # R = 2: (1/1 + 0) / 2; the fourth is beyond R
            [1, 1, 0, 0],
            [0, 1, 1, 0],  # R = 3: (0 + 1/2 + 2/3) / 3
            [0, 0, 0, 1],  # R = 3: nothing within R
        ],
        bool,
    )
    found = retrieval.ap_at_r(hit, np.array([2, 2, 3, 3]))
    np.testing.assert_allclose(found, [0.5, 1.0, (1 / 2 + 2 / 3) / 3, 0.0])
    assert retrieval.recall(hit, 1) == 0.5 and retrieval.recall(hit, 2) == 0.75


def test_pick_takes_every_class_in_turn():
    labels = np.array([0] * 50 + [1] * 5 + [2] * 2 + [-1])
    rows = retrieval.pick(labels, 8)
    assert labels[rows].tolist() == [-1, 0, 0, 0, 1, 1, 2, 2]
    assert len(set(rows)) == 8
    np.testing.assert_array_equal(rows, retrieval.pick(labels, 8))
    assert rows.tolist() != retrieval.pick(labels, 8, seed=1).tolist()
    np.testing.assert_array_equal(retrieval.pick(labels[:3], 8), [0, 1, 2])
    assert len(retrieval.pick(labels, 0)) == 0


@pytest.mark.parametrize(
    "ks, message",
    [
        ((), "ks is empty"),
        ((0,), "at least 1, got 0"),
        ((1, 61), "k = 61, but a query can find 60 images at most"),
    ],
)
def test_ks_that_cannot_be(ks, message):
    gallery, labels, features, query_labels = data()
    with pytest.raises(UserError, match=message):
        retrieval.measure(gallery, labels, outside(features, query_labels), ks)


def test_itself_is_not_among_what_can_be_found():
    gallery, labels, _, _ = data()
    query = Query(gallery, labels, np.arange(60))
    with pytest.raises(UserError, match="k = 60, but a query can find 59"):
        retrieval.measure(gallery, labels, query, (60,))


def test_nothing_to_count():
    gallery, labels, features, query_labels = data()
    with pytest.raises(UserError, match="no query has an image of its class"):
        retrieval.measure(gallery, labels, outside(features, query_labels + 10), (1,))
