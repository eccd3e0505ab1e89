import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.evaluate import knn

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "knn_weighted.npz"


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
    np.testing.assert_allclose(100 * reached["top5"], golden[f"top5_{name}"], atol=1e-4)


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


@pytest.mark.parametrize("query_block, bank_block", [(1024, 4096), (4, 8), (3, 7), (11, 2)])
def test_blocks_do_not_matter(query_block, bank_block):
    # 11 queries and 37 rows: the last block is padded, and k = 6 exceeds the block of 2.
    train, labels, test, _ = data()
    labels[::5] = -1
    scores = knn.classify(train, labels, test, 4, 6, 0.1, query_block, bank_block)
    np.testing.assert_allclose(np.exp(scores), brute(train, labels, test, 4, 6, 0.1), rtol=1e-4)


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


@pytest.mark.parametrize("bank_block", [4096, 8])
def test_euclidean_equals_scikit_learn(bank_block):
    from sklearn.neighbors import KNeighborsClassifier

    train, labels, test, _ = data(n=60, m=40)
    train, test = train + 100, test + 100  # far from the origin, where ‖a‖² − 2ab cancels
    reference = KNeighborsClassifier(5).fit(train.astype(np.float64), labels)
    counts = knn.classify_euclidean(train, labels, test, 4, bank_block=bank_block)
    np.testing.assert_array_equal(counts, 5 * reference.predict_proba(test.astype(np.float64)))
    np.testing.assert_array_equal(counts.argmax(1), reference.predict(test.astype(np.float64)))


def test_neighbours_are_sorted_and_the_earlier_of_equals_comes_first():
    bank = np.array([[1.0], [3.0], [3.0], [2.0], [3.0]], np.float32)
    labels = np.array([0, 1, 2, 3, 4])

    for block in (5, 2):
        near, names = knn.neighbours(
            bank, labels, np.ones((1, 1), np.float32), 4, knn._dot, bank_block=block
        )
        np.testing.assert_array_equal(near, [[3, 3, 3, 2]])
        np.testing.assert_array_equal(names, [[1, 2, 4, 3]])


def test_user_errors():
    train, labels, test, _ = data()
    with pytest.raises(UserError, match="no training row has a label"):
        knn.classify(train, np.full(37, -1), test, 4)
    with pytest.raises(UserError, match="label 3 is outside the 3 classes"):
        knn.classify(train, labels, test, 3)
    with pytest.raises(UserError, match="k must be at least 1"):
        knn.classify(train, labels, test, 4, 0)
    with pytest.raises(UserError, match="temperature must be positive"):
        knn.classify(train, labels, test, 4, 5, 0.0)
    with pytest.raises(UserError, match="train features are not all finite"):
        knn.classify(np.where(train > 2, np.nan, train), labels, test, 4)
    with pytest.raises(ValueError, match="must be"):
        knn.classify(train, labels, test[:, :3], 4)
