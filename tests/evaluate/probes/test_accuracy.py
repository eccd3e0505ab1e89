import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import accuracy

SCORES = np.array([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.0, 0.4, 0.6]])


@pytest.mark.parametrize("k, expected", [(1, 0.5), (2, 0.75), (3, 1.0)])
def test_top_by_hand(k, expected):
    # ranks of the labels: 0, 0, 1, 2
    assert accuracy.top(SCORES, np.array([1, 0, 1, 0]), k) == expected


def test_rows_without_a_label_are_not_counted():
    assert accuracy.top(SCORES, np.array([1, -1, -1, 0]), 1) == 0.5


def test_equal_scores_are_ordered_by_index():
    flat = np.zeros((4, 4))
    labels = np.arange(4)
    assert accuracy.top(flat, labels, 1) == 0.25
    assert accuracy.top(flat, labels, 3) == 0.75


@pytest.mark.parametrize("k, expected", [(1, 0.25), (2, 0.5), (5, 0.5), (6, 0.5)])
def test_a_class_of_minus_infinity_is_no_guess(k, expected):
    none = -np.inf
    scores = np.array([[0, none, 1], [none, 1, none], [2, none, 1], [none, none, none]])
    # The labels' ranks: 2nd, 2nd and no guess, 1st, none; by a stable sort the second is the 2nd.
    assert accuracy.top(scores, np.array([0, 0, 0, 0]), k) == expected


def test_top5_of_few_classes_says_nothing():
    assert accuracy.top5(SCORES, np.array([1, 0, 1, 0])) is None
    assert accuracy.top5(np.zeros((2, 5)), np.array([0, 4])) is None
    assert accuracy.top5(np.zeros((2, 6)), np.array([4, 5])) == 0.5


def test_nan_is_wrong():
    scores = SCORES.copy()
    scores[0] = np.nan
    assert accuracy.top(scores, np.array([1, 0, 1, 0]), 3) == 0.75


def test_user_errors():
    with pytest.raises(UserError, match="no row has a label"):
        accuracy.top(SCORES, np.full(4, -1), 1)
    with pytest.raises(UserError, match="label 3 is outside the 3 classes"):
        accuracy.top(SCORES, np.array([0, 1, 2, 3]), 1)
