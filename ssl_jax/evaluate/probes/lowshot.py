"""Which few labels a low-shot probe may see: fixed lists, balanced over the classes, seeded.

The lists of SimCLR (Chen et al. 2020, section 4.2: 1 % and 10 % of ImageNet, "in a class-balanced
way") are files of names; these are pure functions of (labels, seed), so they exist for any data
set. Every class has one order of its rows for a seed, and every list takes the beginning of it:
a smaller list lies inside a larger one, and 1-shot inside 5-shot.
"""

import numpy as np

from ssl_jax.errors import UserError


def fraction(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """The rows of `share` of the labels of every class, rounded, at least one a class.

    Args:
      labels: int [n]; rows with label -1 are in no list.
      share: in (0, 1].
      seed: of the list.

    Returns:
      int64 [m], rows of `labels`, ascending.

    Raises:
      UserError: share outside (0, 1], or no labels.
    """
    if not 0 < share <= 1:
        raise UserError(f"low-shot: a share of the labels lies in (0, 1], got {share}")
    found = [rows[: max(1, round(share * len(rows)))] for rows in _orders(labels, seed).values()]
    return np.sort(np.concatenate(found))


def shots(labels: np.ndarray, k: int, seed: int) -> np.ndarray:
    """The rows of k labels of every class.

    Args:
      labels: int [n]; rows with label -1 are in no list.
      k: at least 1.
      seed: of the list.

    Returns:
      int64 [k · classes], rows of `labels`, ascending.

    Raises:
      UserError: k below 1, no labels, or a class with fewer than k of them.
    """
    if k < 1:
        raise UserError(f"low-shot: k is at least 1, got {k}")
    orders = _orders(labels, seed)
    poorest = min(orders, key=lambda name: len(orders[name]))
    if len(orders[poorest]) < k:
        raise UserError(
            f"low-shot: class {poorest} has {len(orders[poorest])} labelled training images, "
            f"{k}-shot needs {k} of every class"
        )
    return np.sort(np.concatenate([rows[:k] for rows in orders.values()]))


def _orders(labels: np.ndarray, seed: int) -> dict[int, np.ndarray]:
    """Class -> its rows, shuffled by Philox([seed, class]): other classes have no say in it."""
    labels = np.asarray(labels)
    names = np.unique(labels[labels >= 0])
    if not len(names):
        raise UserError("low-shot: no training row has a label")
    return {
        int(name): np.random.Generator(np.random.Philox([seed, int(name)])).permutation(
            np.flatnonzero(labels == name)
        )
        for name in names
    }
