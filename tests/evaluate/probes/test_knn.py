import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import knn, neighbours

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "knn_weighted.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


def data(n=37, m=11, d=5, classes=4, seed=0):
    r = np.random.default_rng(seed)
    return (
        r.normal(size=(n, d)).astype(np.float32),
        r.integers(0, classes, n),
        r.normal(size=(m, d)).astype(np.float32),
        r.integers(0, classes, m),
    )


def brute(train, labels, test, classes, k, temperature):
    """The definition, in float64: all similarities, a full sort, a loop over votes."""
    train, test = train.astype(np.float64), test.astype(np.float64)
    train = train / np.linalg.norm(train, axis=1, keepdims=True)
    test = test / np.linalg.norm(test, axis=1, keepdims=True)
    cosine = np.where(labels >= 0, test @ train.T, -np.inf)
    votes = np.zeros((len(test), classes))
    for row, order in enumerate(np.argsort(-cosine, axis=1, kind="stable")[:, :k]):
        for i in order:
            if labels[i] >= 0:
                votes[row, labels[i]] += np.exp(cosine[row, i] / temperature)
    return votes


@pytest.mark.parametrize("k, temperature", [(20, 0.07), (200, 0.07), (5, 0.07), (20, 1.0)])
def test_golden(golden, k, temperature):
    train, test = golden["train"], golden["test"]
    labels, truth = golden["train_labels"], golden["test_labels"]
    name = f"k{k}_T{temperature}"
    scores = knn.classify(train, labels, test, 10, k, temperature)
    np.testing.assert_allclose(np.exp(scores), golden[f"scores_{name}"], rtol=1e-4)
    np.testing.assert_array_equal(scores.argmax(1), golden[f"pred_{name}"])
    reached = knn.accuracy(scores, truth)
    np.testing.assert_allclose(100 * reached["top1"], golden[f"top1_{name}"], atol=1e-4)
    # The official five guesses, which classes without a vote fill up in the order of their index.
    top5, voted = official_top5(scores, truth, k)
    np.testing.assert_allclose(100 * top5, golden[f"top5_{name}"], atol=1e-4)
    assert reached["top5"] == voted


def official_top5(scores, truth, k):
    """DINO's rule: the first min(5, k) of a sort of all classes. Also without votes of nobody."""
    guesses = np.argsort(-scores, axis=1, kind="stable")[:, : min(5, k)]
    hit = guesses == truth[:, None]
    voted = np.take_along_axis(scores, guesses, axis=1) > -np.inf
    return hit.any(1).mean(), (hit & voted).any(1).mean()


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 20])
def test_top5_counts_no_class_without_a_vote(golden, k):
    truth = golden["test_labels"]
    scores = knn.classify(golden["train"], golden["train_labels"], golden["test"], 10, k, 0.07)
    reached = knn.accuracy(scores, truth)
    assert reached["top5"] == official_top5(scores, truth, k)[1]
    if k == 1:  # one neighbour, one guess: DINO's top-5 is its top-1
        assert reached["top5"] == reached["top1"] == official_top5(scores, truth, 1)[0] == 0.375


def test_top5_of_votes_by_hand():
    """Six classes, k = 3: the neighbours are of classes (2, 2, 4), (5, 5, 5) and (1, 3, 0)."""
    near = neighbours.Neighbours(
        np.array([[0.9, 0.8, 0.7]] * 3, np.float32), np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]])
    )
    labels = np.array([2, 2, 4, 5, 5, 5, 1, 3, 0])
    for scores, first in (
        (knn.weighted(near, labels, 6, 3, 0.1), 0),
        (knn.majority(near, labels, 6, 3), 1 / 3),  # one vote each: the lowest index, 0, is right
    ):
        # Found second; not voted for, though 0 is the lowest index; found third.
        assert knn.accuracy(scores, np.array([4, 0, 0])) == {
            "top1": pytest.approx(first),
            "top5": pytest.approx(2 / 3),
        }
    np.testing.assert_array_equal(
        knn.plain(near, labels, 6, 3), [[0, 0, 2, 0, 1, 0], [0] * 5 + [3], [1, 1, 0, 1, 0, 0]]
    )


@pytest.mark.parametrize(
    "k, name",
    [
        (20, "instdisc_top1_fraction_k20"),
        (200, "instdisc_top1_fraction_k200"),
        (1, "instdisc_NN1_top1_fraction"),
    ],
)
def test_golden_of_instance_discrimination(golden, k, name):
    scores = knn.classify(golden["train"], golden["train_labels"], golden["test"], 10, k, 0.07)
    reached = knn.accuracy(scores, golden["test_labels"])
    np.testing.assert_allclose(reached["top1"], golden[name], atol=1e-6)


def test_golden_grid_from_one_search(golden):
    """Every (k, T) of the official code, from the neighbours of the largest k."""
    labels, truth = golden["train_labels"], golden["test_labels"]
    near = neighbours.by_cosine(golden["train"], golden["test"], 200)
    table = knn.grid(near, labels, truth, 10, (5, 20, 200), (0.07, 1.0))
    assert [(c["k"], c["temperature"]) for c in table] == [
        (5, 0.07), (5, 1.0), (20, 0.07), (20, 1.0), (200, 0.07), (200, 1.0),
    ]  # fmt: skip
    seen = 0
    for cell in table:
        name = f"k{cell['k']}_T{cell['temperature']}"
        if f"top1_{name}" in golden:
            seen += 1
            np.testing.assert_allclose(100 * cell["top1"], golden[f"top1_{name}"], atol=1e-4)
            scores = knn.weighted(near, labels, 10, cell["k"], cell["temperature"])
            assert cell["top5"] == official_top5(scores, truth, cell["k"])[1]
    assert seen == 4
    assert len({cell["top1"] for cell in table}) > 2


@pytest.mark.parametrize("query_block, bank_block", [(1024, None), (4, 8), (3, 7), (11, 2)])
def test_blocks_do_not_matter(query_block, bank_block):
    # 11 queries and 37 rows: the last block is padded, and k = 6 exceeds the block of 2.
    train, labels, test, _ = data()
    labels[::5] = -1
    scores = knn.classify(train, labels, test, 4, 6, 0.1, query_block, bank_block)
    np.testing.assert_allclose(np.exp(scores), brute(train, labels, test, 4, 6, 0.1), rtol=1e-4)


def test_a_block_that_few_or_many_rows_of_enter():
    """Both ways to merge a block: rows that come from far to near enter all, from near to far none.

    k = 20 with blocks of 50 takes the short way where no query has more than 8 newcomers.
    """
    angle = np.linspace(0, np.pi / 2, 400)  # of the rows to the query
    bank = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    query = np.array([[1.0, 0.0]], np.float32)
    mixed = np.random.default_rng(0).permutation(400)
    for order in (np.arange(400), np.arange(400)[::-1], mixed):
        near = neighbours.by_cosine(bank[order], query, 20, bank_block=50)
        np.testing.assert_array_equal(order[near.index[0]], np.arange(20))
        np.testing.assert_allclose(near.similarity[0], np.cos(angle[:20]), rtol=1e-5)


def test_devices_do_not_matter():
    """Queries that do not divide: 11 over 4 devices, 3 of them, or 1."""
    assert jax.device_count() == 4
    train, _, test, _ = data()
    for search in (neighbours.by_cosine, neighbours.by_distance):
        four = search(train, test, 6, bank_block=10)
        for count in (1, 3):
            mesh = layout.mesh(jax.devices()[:count])
            few = search(train, test, 6, bank_block=10, mesh=mesh)
            np.testing.assert_array_equal(few.index, four.index)
            np.testing.assert_allclose(few.similarity, four.similarity, rtol=1e-5, atol=1e-6)
    assert neighbours.by_cosine(train, test[:1], 6).index.shape == (1, 6)


def test_a_second_call_does_not_compile():
    train, _, test, _ = data(n=50, m=9, d=7, seed=1)
    traces = []

    def similarity(queries, bank):
        traces.append(1)
        return neighbours._dot(queries, bank)

    first = neighbours.search(train, test, 5, similarity, bank_block=20)
    once = len(traces)
    again = neighbours.search(train, test, 5, similarity, bank_block=20)
    assert len(traces) == once > 0
    np.testing.assert_array_equal(again.index, first.index)


def test_rows_without_a_label_are_not_in_the_bank():
    train, labels, test, _ = data()
    hidden = labels == 3
    without = knn.classify(train[~hidden], labels[~hidden], test, 4, 6)
    marked = knn.classify(train, np.where(hidden, -1, labels), test, 4, 6)
    np.testing.assert_allclose(marked, without, rtol=1e-6)
    assert np.isneginf(marked[:, 3]).all()


def test_bank_smaller_than_k():
    train, labels, test, _ = data()
    labels[5:] = -1
    scores = knn.classify(train, labels, test, 4, 20)
    np.testing.assert_allclose(np.exp(scores), brute(train, labels, test, 4, 20, 0.1), rtol=1e-4)


def test_low_temperature_neither_overflows_nor_changes_the_nearest():
    # exp(1 / 1e-4) is far beyond float32; the vote is then that of the nearest neighbour.
    train, labels, test, _ = data()
    scores = knn.classify(train, labels, test, 4, 20, 1e-4)
    assert np.isfinite(scores[scores > -np.inf]).all()
    nearest = brute(train, labels, test, 4, 1, 1.0).argmax(1)
    np.testing.assert_array_equal(scores.argmax(1), nearest)


def test_scale_of_features_does_not_matter():
    train, labels, test, _ = data()
    plain = knn.classify(train, labels, test, 4)
    np.testing.assert_allclose(knn.classify(100 * train, labels, 1e-3 * test, 4), plain, rtol=1e-4)


def test_log_votes_by_hand():
    weights = jnp.log(jnp.array([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 9.0, 0.0]]))
    labels = jnp.array([[0, 2, 0, -1], [3, 3, -1, 1]])
    votes = np.exp(knn.log_votes(weights, labels, 4))
    np.testing.assert_allclose(votes, [[5, 0, 2, 0], [0, 0, 0, 2]], rtol=1e-6)


@pytest.mark.parametrize("bank_block", [None, 8])
def test_euclidean_equals_scikit_learn(bank_block):
    from sklearn.neighbors import KNeighborsClassifier

    train, labels, test, _ = data(n=60, m=40)
    train, test = train + 100, test + 100  # far from the origin, where ‖a‖² − 2ab cancels
    reference = KNeighborsClassifier(5).fit(train.astype(np.float64), labels)
    counts = knn.classify_euclidean(train, labels, test, 4, bank_block=bank_block)
    np.testing.assert_array_equal(counts, 5 * reference.predict_proba(test.astype(np.float64)))
    np.testing.assert_array_equal(counts.argmax(1), reference.predict(test.astype(np.float64)))


@pytest.mark.parametrize("k", [3, 7])
def test_plain_cosine_equals_scikit_learn(k):
    """From the neighbours of a larger k."""
    from sklearn.neighbors import KNeighborsClassifier

    train, labels, test, _ = data(n=60, m=40)
    reference = KNeighborsClassifier(k, metric="cosine", algorithm="brute").fit(train, labels)
    counts = knn.plain(neighbours.by_cosine(train, test, 7), labels, 4, k)
    np.testing.assert_array_equal(counts.argmax(1), reference.predict(test))
    np.testing.assert_allclose(counts.sum(1), k)


def test_neighbours_are_sorted_and_the_earlier_of_equals_comes_first():
    bank = np.array([[1.0], [3.0], [3.0], [2.0], [3.0]], np.float32)

    for block in (5, 2):
        near = neighbours.search(
            bank, np.ones((1, 1), np.float32), 4, neighbours._dot, bank_block=block
        )
        np.testing.assert_array_equal(near.similarity, [[3, 3, 3, 2]])
        np.testing.assert_array_equal(near.index, [[1, 2, 4, 3]])


def test_rows_that_are_not_there_are_not_found():
    known = np.array([True, False, True])
    near = neighbours.by_cosine(np.eye(3, 2), np.ones((1, 2)), 3, known)
    np.testing.assert_array_equal(near.index, [[0, 2, -1]])
    np.testing.assert_allclose(near.similarity, [[0.5**0.5, 0, -np.inf]], rtol=1e-6)


def test_user_errors():
    train, labels, test, _ = data()
    with pytest.raises(UserError, match="no training row has a label"):
        knn.classify(train, np.full(37, -1), test, 4)
    with pytest.raises(UserError, match="label 3 is outside the 3 classes"):
        knn.classify(train, labels, test, 3)
    with pytest.raises(UserError, match="k must be a whole number of at least 1"):
        knn.classify(train, labels, test, 4, 0)
    with pytest.raises(UserError, match="temperature must be positive"):
        knn.classify(train, labels, test, 4, 5, 0.0)
    with pytest.raises(UserError, match="train features are not all finite"):
        knn.classify(np.where(train > 2, np.nan, train), labels, test, 4)
    with pytest.raises(UserError, match="k must be a whole number of at least 1, got 2.5"):
        knn.check_grid((5, 2.5), ())
    with pytest.raises(UserError, match="at least 1, got -3"):
        knn.check_grid((-3,), ())
    for temperature in (-0.1, np.inf, np.nan):
        with pytest.raises(UserError, match="temperature must be positive and finite"):
            knn.check_grid((5,), (temperature,))
    with pytest.raises(UserError, match="--config.grid_k is 17, but there are only 16 images"):
        knn.check_bank(17, 16, "grid_k")
    knn.check_bank(16, 16, "k")
    with pytest.raises(UserError, match="test features are not all finite"):
        neighbours.by_distance(train, np.where(test > 1, np.inf, test), 5)
    assert neighbours.by_cosine(np.full((5, 2), 3e38, np.float32), test[:, :2], 1).index.max() >= 0
    with pytest.raises(ValueError, match="37 rows in the bank but 36 labels"):
        knn.classify(train, labels[1:], test, 4)
    with pytest.raises(ValueError, match="must be"):
        knn.classify(train, labels, test[:, :3], 4)
