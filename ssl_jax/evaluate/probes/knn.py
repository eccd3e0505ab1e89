"""k-nearest-neighbour classification on cached features: the votes of the neighbours.

The search is the dear part (neighbours.py): one search for the largest k serves every smaller k,
every temperature and every vote.

Sources: the weighted vote of Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", section 3.4 (zhirongw/lemniscate.pytorch test.py, kNN), and its use by
DINO (facebookresearch/dino eval_knn.py, knn_classifier).
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import accuracy as accuracy_lib
from ssl_jax.evaluate.probes import neighbours


def classify(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    k: int = 20,
    temperature: float = 0.1,
    query_block: int = neighbours.QUERY_BLOCK,
    bank_block: int | None = None,
    mesh: Any = None,
) -> np.ndarray:
    """Weighted kNN scores: `neighbours.by_cosine`, then `weighted`.

    Args:
      train: float [n, d] features of the bank; normalised to unit length here.
      train_labels: int [n]; rows with label -1 are not in the bank.
      test: float [m, d] features to classify; normalised to unit length here.
      classes: number of classes; labels lie in [0, classes).
      k: neighbours that vote. With fewer than k labelled rows all of them vote.
      temperature: of the weights exp(cos / temperature), > 0. 0.07 in the papers.
      query_block, bank_block, mesh: as for `neighbours.search`.

    Returns:
      float32 [m, classes] on the host; -inf for a class without a vote.

    Raises:
      UserError: no labelled row, label outside the classes, k or temperature not positive,
        features that are not finite.
    """
    check_grid((k,), (temperature,))
    check_labels(train_labels, classes)
    known = np.asarray(train_labels) >= 0
    near = neighbours.by_cosine(train, test, k, known, query_block, bank_block, mesh)
    return weighted(near, train_labels, classes, k, temperature)


def classify_euclidean(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    k: int = 5,
    query_block: int = neighbours.QUERY_BLOCK,
    bank_block: int | None = None,
    mesh: Any = None,
) -> np.ndarray:
    """Plain kNN by Euclidean distance: `neighbours.by_distance`, then `plain`.

    Features are taken as they are, without normalisation.

    Args:
      train, train_labels, test, classes, k: as for `classify`.
      query_block, bank_block, mesh: as for `neighbours.search`.

    Returns:
      float32 [m, classes] counts on the host.

    Raises:
      UserError: as `classify`.
    """
    check_grid((k,), ())
    check_labels(train_labels, classes)
    known = np.asarray(train_labels) >= 0
    near = neighbours.by_distance(train, test, k, known, query_block, bank_block, mesh)
    return plain(near, train_labels, classes, k)


def weighted(
    near: neighbours.Neighbours, train_labels: np.ndarray, classes: int, k: int, temperature: float
) -> np.ndarray:
    """log Σ_{i in k nearest, y_i = c} exp(cos(x, x_i) / temperature) for every class c.

    The official code sums the votes themselves. They overflow float32 below a temperature of
    about 0.011, so we return their logarithm, computed stably: the same order of classes, the
    same predictions, and exp(scores) are the official votes.

    Args:
      near: from `neighbours.by_cosine`, of at least k neighbours.
      train_labels: int [n], of the bank.
      classes: number of classes.
      k: neighbours that vote.
      temperature: of the weights, > 0.

    Returns:
      float32 [m, classes]; -inf for a class without a vote.
    """
    return np.asarray(
        log_votes(near.similarity[:, :k] / temperature, _labels(near, train_labels, k), classes)
    )


def plain(
    near: neighbours.Neighbours, train_labels: np.ndarray, classes: int, k: int
) -> np.ndarray:
    """How many of the k nearest are of each class: the majority vote.

    Equal counts go to the lower class, as in scikit-learn.

    Args:
      near: from `neighbours.by_cosine` or `by_distance`, of at least k neighbours.
      train_labels, classes, k: as for `weighted`.

    Returns:
      float32 [m, classes].
    """
    return np.round(np.exp(majority(near, train_labels, classes, k)))


def majority(
    near: neighbours.Neighbours, train_labels: np.ndarray, classes: int, k: int
) -> np.ndarray:
    """log of `plain`, float32 [m, classes]; -inf for a class without a vote."""
    labels = _labels(near, train_labels, k)
    one_each = np.where(labels >= 0, np.float32(0), -np.inf)
    return np.asarray(log_votes(one_each, labels, classes))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy of the scores of a vote.

    Args:
      scores: float [m, classes], of `weighted` or `majority`; -inf for a class without a vote.
      labels: int [m]; rows with label -1 are not counted.

    Returns:
      {'top1', 'top5'}: fractions in [0, 1] (DINO's code prints percent). Only classes with a vote
      are guessed. DINO's code fills its min(5, k) guesses up with classes that nobody voted for;
      where the k neighbours are of min(5, k) classes or more, and for k = 1, both are the same.

    Raises:
      UserError: no row has a label, or a label is outside the classes.
    """
    return {
        "top1": accuracy_lib.top(scores, labels, 1),
        "top5": accuracy_lib.top(scores, labels, 5),
    }


def grid(
    near: neighbours.Neighbours,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> list[dict[str, float]]:
    """Accuracy of the weighted vote for every k and temperature, from neighbours found once.

    Args:
      near: from `neighbours.by_cosine`, of at least max(ks) neighbours.
      train_labels, test_labels: int [n] of the bank, int [m] of the queries.
      classes: number of classes.
      ks, temperatures: what to try.

    Returns:
      a list of {'k', 'temperature', 'top1', 'top5'}, by k, then by temperature, in the given order.
    """
    return [
        {"k": k, "temperature": t}
        | accuracy(weighted(near, train_labels, classes, k, t), test_labels)
        for k in ks
        for t in temperatures
    ]


@functools.partial(jax.jit, static_argnames="classes")
def log_votes(weights: jax.Array, labels: jax.Array, classes: int) -> jax.Array:
    """log Σ_{i: labels_i = c} exp(weights_i) for every class c, without overflow.

    Args:
      weights: float32 [m, k], logarithms of the votes; -inf does not vote.
      labels: int32 [m, k] in [0, classes), or -1: does not vote.
      classes: number of classes.

    Returns:
      float32 [m, classes]; -inf for a class without a vote.
    """

    def row(weights, labels):  # [k], [k]
        # No vote: adds exp(-inf) = 0 to the last class, which is where an index of -1 wraps to.
        weights = jnp.where(labels >= 0, weights, -jnp.inf)
        top = jnp.full(classes, -jnp.inf).at[labels].max(weights)
        shifted = jnp.where(jnp.isneginf(weights), -jnp.inf, weights - top[labels])
        total = jnp.zeros(classes).at[labels].add(jnp.exp(shifted))
        return jnp.where(total > 0, jnp.log(total) + top, -jnp.inf)

    return jax.vmap(row)(weights, labels)


def check_grid(ks: Sequence[int], temperatures: Sequence[float]) -> None:
    """Checks what a user chooses.

    Raises:
      UserError: a k below 1 or not whole, or a temperature that is not positive.
    """
    for k in ks:
        if k < 1 or k != int(k):
            raise UserError(f"knn: k must be a whole number of at least 1, got {k}")
    for temperature in temperatures:
        if not 0 < temperature < np.inf:
            raise UserError(f"knn: temperature must be positive and finite, got {temperature}")


def check_bank(k: int, rows: int, field: str) -> None:
    """Checks, before any feature is computed, that there are k neighbours.

    Args:
      k: what a user chose.
      rows: of the bank.
      field: of the config.

    Raises:
      UserError: the bank is smaller.
    """
    if k > rows:
        raise UserError(
            f"--config.{field} is {k}, but there are only {rows:,} images to learn from; it can be "
            f"at most {rows:,}"
        )


def check_labels(train_labels: np.ndarray, classes: int) -> None:
    """Checks the labels of a bank.

    Raises:
      UserError: no label, or one outside the classes.
    """
    labels = np.asarray(train_labels)
    if not (labels >= 0).any():
        raise UserError("knn: no training row has a label; kNN needs a labelled training split")
    if labels.max() >= classes:
        raise UserError(f"knn: label {labels.max()} is outside the {classes} classes of the data")


def _labels(near, train_labels, k):
    """Labels of the k nearest, int32 [m, k]; -1 where there is none."""
    index = near.index[:, :k]
    return np.where(index >= 0, np.asarray(train_labels, np.int32)[index], np.int32(-1))
