"""Top-k accuracy from scores: the one number all probes report."""

import numpy as np

from ssl_jax.errors import UserError


def top(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of rows whose label is among the k classes of the highest score.

    Equal scores are ordered by class index, as a stable sort does. A classifier that gives the
    same score to everything is therefore right on class 0 alone, not everywhere.

    Args:
      scores: float [m, classes]; any monotone scale. A class of score -inf is no guess, whatever
        k: a vote that nobody gave is not counted. NaN counts as wrong.
      labels: int [m]; rows with label -1 (none) are not counted.
      k: how many guesses a row has.

    Returns:
      fraction in [0, 1] (a Python float).

    Raises:
      UserError: no row has a label, or a label is not a class of the scores.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    known = labels >= 0
    if not known.any():
        raise UserError("accuracy: no row has a label; evaluate on a labelled split")
    if labels.max() >= scores.shape[1]:
        raise UserError(
            f"accuracy: label {labels.max()} is outside the {scores.shape[1]} classes of the data"
        )
    scores, labels = scores[known], labels[known]
    truth = np.take_along_axis(scores, labels[:, None], axis=1)  # [m, 1]
    before = (scores == truth) & (np.arange(scores.shape[1]) < labels[:, None])
    rank = (scores > truth).sum(1) + before.sum(1)  # [m], 0 = first guess
    guessed = (truth[:, 0] > -np.inf) & ~np.isnan(truth[:, 0])
    return float(np.mean((rank < k) & guessed))


def top5(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """`top` with k = 5 of a classifier that scores every class.

    Returns:
      None where there are five classes or fewer: five guesses then are always right, and the number
      says nothing.
    """
    return None if np.shape(scores)[1] <= 5 else top(scores, labels, 5)
