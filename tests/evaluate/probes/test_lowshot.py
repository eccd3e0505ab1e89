import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import lowshot

# 400, 100, 60 and 3 rows of four classes, and 20 without a label, mixed.
LABELS = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, -1], [400, 100, 60, 3, 20]))
FIXED = [40, 46, 49, 62, 65, 95]


def counts(rows):
    return np.bincount(LABELS[rows], minlength=4).tolist()  # fails on a label of -1


def test_a_fraction_of_every_class_and_at_least_one():
    assert counts(lowshot.fraction(LABELS, 0.1, 0)) == [40, 10, 6, 1]
    assert counts(lowshot.fraction(LABELS, 0.01, 0)) == [4, 1, 1, 1]
    np.testing.assert_array_equal(lowshot.fraction(LABELS, 1.0, 0), np.flatnonzero(LABELS >= 0))


@pytest.mark.parametrize("seed", range(3))
def test_lists_are_nested(seed):
    one, ten = (set(lowshot.fraction(LABELS, share, seed)) for share in (0.01, 0.1))
    assert one < ten
    few, more = (set(lowshot.shots(LABELS, k, seed)) for k in (1, 3))
    assert few < more


def test_shots_of_every_class():
    rows = lowshot.shots(LABELS, 3, 0)
    assert counts(rows) == [3, 3, 3, 3] and (np.diff(rows) > 0).all()


def test_a_seed_is_a_list():
    first = lowshot.shots(LABELS, 2, 0)
    np.testing.assert_array_equal(first, lowshot.shots(LABELS, 2, 0))
    assert (first != lowshot.shots(LABELS, 2, 1)).any()
    assert (lowshot.fraction(LABELS, 0.1, 0) != lowshot.fraction(LABELS, 0.1, 1)).any()


def test_a_list_does_not_depend_on_the_other_classes():
    without = np.where(LABELS == 1, -1, LABELS)
    rows = lowshot.fraction(LABELS, 0.1, 0)
    np.testing.assert_array_equal(lowshot.fraction(without, 0.1, 0), rows[LABELS[rows] != 1])


def test_the_list_itself_is_fixed():
    """Published numbers rest on these lists: a change of the code must not change them."""
    labels = np.repeat([0, 1], 50)
    np.testing.assert_array_equal(lowshot.fraction(labels, 0.06, 0), FIXED)
    np.testing.assert_array_equal(lowshot.shots(labels, 3, 0), FIXED)


def test_what_cannot_be_is_one_line():
    for share in (0.0, 1.5):
        with pytest.raises(UserError, match="lies in"):
            lowshot.fraction(LABELS, share, 0)
    with pytest.raises(UserError, match="class 3 has 3 labelled training images, 5-shot needs 5"):
        lowshot.shots(LABELS, 5, 0)
    with pytest.raises(UserError, match="at least 1"):
        lowshot.shots(LABELS, 0, 0)
    with pytest.raises(UserError, match="no training row has a label"):
        lowshot.fraction(np.full(5, -1), 0.1, 0)
