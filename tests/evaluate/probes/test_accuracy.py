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
    assert accuracy.top(np.full((4, 4), -np.inf), labels, 1) == 0.25


def test_nan_is_wrong():
    scores = SCORES.copy()
    scores[0] = np.nan
    assert accuracy.top(scores, np.array([1, 0, 1, 0]), 3) == 0.75


def test_user_errors():
    with pytest.raises(UserError, match="no row has a label"):
        accuracy.top(SCORES, np.full(4, -1), 1)
    with pytest.raises(UserError, match="label 3 is outside the 3 classes"):
        accuracy.top(SCORES, np.array([0, 1, 2, 3]), 1)
