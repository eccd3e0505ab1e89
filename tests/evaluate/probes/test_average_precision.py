import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import average_precision as ap


def devkit(scores, targets):
    """VOC2007 devkit, VOCevalcls.m, as it is written there (recall in exact tenths)."""
    order = np.argsort(-scores, kind="stable")
    hits, misses, points = 0, 0, []
    positives = int(np.sum(targets == 1))
    for row in order:
        if targets[row] == -1:
            continue
        hits += targets[row] == 1
        misses += targets[row] == 0
        points.append((hits * 10, hits / (hits + misses)))
    total = 0.0
    for tenth in range(11):
        reached = [p for recall, p in points if recall >= tenth * positives]
        total += max(reached, default=0.0) / 11
    return total


@pytest.mark.parametrize("seed", range(5))
def test_against_scikit_learn_and_the_devkits_loop(seed):
    from sklearn.metrics import average_precision_score

    r = np.random.default_rng(seed)
    targets = r.choice([0, 1, -1], 200, p=[0.7, 0.2, 0.1])
    scores = r.normal(size=200) + (targets == 1)
    known = targets >= 0
    want = average_precision_score(targets[known], scores[known])
    assert ap.average_precision(scores, targets) == pytest.approx(want, rel=1e-12)
    assert ap.average_precision_11(scores, targets) == pytest.approx(devkit(scores, targets))
    # Equal scores are one threshold, whatever the order of the rows.
    tied = np.round(scores)
    want = average_precision_score(targets[known], tied[known])
    assert ap.average_precision(tied, targets) == pytest.approx(want, rel=1e-12)
    assert ap.average_precision_11(tied[::-1], targets[::-1]) == pytest.approx(
        ap.average_precision_11(tied, targets)
    )


def test_by_hand():
    scores = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    targets = np.array([1, 0, 1, -1, 0])  # precision 1 at recall 1/2, 2/3 at recall 1
    assert ap.average_precision(scores, targets) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert ap.average_precision_11(scores, targets) == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)


def test_three_tenths_are_reached_by_three_of_ten():
    """0.1 · 3 > 0.3 in floating point: a comparison of floats would lose a point."""
    targets = np.array([1, 1, 1] + [0] * 90 + [1] * 7)
    scores = -np.arange(100.0)
    # Precision is 1 up to recall 0.3, and at most 10 % afterwards.
    want = (4 * 1 + 7 * 10 / 100) / 11
    assert ap.average_precision_11(scores, targets) == pytest.approx(want)


def test_ignored_rows_do_not_matter():
    r = np.random.default_rng(0)
    targets = r.integers(0, 2, 50)
    scores = r.normal(size=50)
    more = np.concatenate([targets, -np.ones(20, int)])
    noisy = np.concatenate([scores, r.normal(size=20) * 10])
    assert ap.average_precision(noisy, more) == ap.average_precision(scores, targets)
    assert ap.average_precision_11(noisy, more) == ap.average_precision_11(scores, targets)


def test_classes_without_a_positive_row_are_not_averaged():
    targets = np.array([[1, 0, -1], [0, 0, -1], [1, 0, -1]])
    scores = np.array([[3.0, 1, 1], [2, 2, 2], [1, 3, 3]])
    found = ap.measure(scores, targets)
    assert found["ap"][1:] == [None, None] and found["ap_11point"][1:] == [None, None]
    assert found["map"] == found["ap"][0] == pytest.approx((1 + 2 / 3) / 2)
    with pytest.raises(UserError, match="no test image is positive"):
        ap.measure(scores[:, 1:], targets[:, 1:])


def multilabel(n, seed):
    """Three independent labels, each read off a direction of the features, some unknown."""
    r = np.random.default_rng(seed)
    x = r.normal(size=(n, 6))
    targets = (x[:, :3] + 0.3 * r.normal(size=(n, 3)) > 0.5).astype(int)
    targets[r.random((n, 3)) < 0.05] = -1
    return x * 7, targets


COSTS = (1e-5, 1e-2, 1.0)


@pytest.mark.parametrize("classifier", ap.CLASSIFIERS)
def test_classifiers_find_the_labels(classifier):
    x, targets = multilabel(300, 0)
    x_new, targets_new = multilabel(300, 1)
    names = ("a", "b", "c")
    scores = ap.classify(x, targets, x_new, names, classifier, COSTS)
    found = ap.measure(scores, targets_new)
    assert 0.85 < found["map"] <= 1 and 0.85 < found["map_11point"] <= 1
    # Scores that know nothing have an AP of about the share of positive rows.
    chance = ap.measure(np.random.default_rng(0).normal(size=(300, 3)), targets_new)["map"]
    assert chance < 0.5
    # Rows that are unknown for a class are not learned from, and lengths do not matter.
    wild = np.where(targets[:, :1] == -1, -x, 3 * x)
    again = ap.classify(wild, targets[:, :1], 5 * x_new, names[:1], classifier, COSTS)
    np.testing.assert_allclose(again, scores[:, :1], atol=1e-3)


def test_the_cost_is_chosen_by_cross_validation():
    from sklearn.model_selection import cross_val_score
    from sklearn.svm import LinearSVC

    x, targets = multilabel(200, 0)
    known = targets[:, 0] >= 0
    unit = x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)
    values = {}
    for cost in COSTS:
        model = LinearSVC(
            C=cost, class_weight={1: 2, 0: 1}, dual=True, max_iter=2000, random_state=0
        )
        inside, outside = unit[known], targets[known, 0]
        values[cost] = cross_val_score(model, inside, outside, cv=3, scoring="average_precision")
    best = max(COSTS, key=lambda c: values[c].mean())
    alone = ap.classify(x, targets, x, ("a",), costs=(best,))
    np.testing.assert_array_equal(ap.classify(x, targets, x, ("a",), costs=COSTS), alone)
    other = next(c for c in COSTS if c != best)
    assert (alone != ap.classify(x, targets, x, ("a",), costs=(other,))).any()


def test_few_and_no_rows_of_a_class():
    x, targets = multilabel(100, 0)
    lone = np.zeros((100, 1), int)
    lone[3] = 1  # nothing to choose the cost on
    one = ap.classify(x, lone, x, ("rare",), costs=(1e-5, 10.0))
    np.testing.assert_array_equal(one, ap.classify(x, lone, x, ("rare",), costs=(1.0,)))
    for value, word in ((0, "positive"), (1, "negative")):
        with pytest.raises(UserError, match=f"class rare has no {word} training image"):
            ap.classify(x, np.full((100, 1), value), x, ("rare",))
