"""Multi-label classification: a classifier for every class, judged by average precision.

The protocol of VOC07 in self-supervised work (Goyal et al. 2019, "Scaling and Benchmarking
Self-Supervised Visual Representation Learning", section 5.1; facebookresearch/
fair_self_supervision_benchmark tools/svm): for every class a linear SVM on features of unit length,
its cost chosen by 3-fold cross-validation on the average precision.

Targets are 1 (the class is in the image), 0 (it is not) and −1 (difficult, unlabelled: the image
does not count for that class, neither in training nor in the measure). The official training script
takes −1 for a negative example; its low-shot and test scripts leave it out, as we do everywhere.
"""

from typing import Any

import numpy as np

from ssl_jax.errors import UserError

# tools/svm: --costs_list of the README and svm_helper.parse_cost_list, which adds powers of 2.
COSTS = tuple(10.0**power for power in range(-7, 3)) + tuple(0.5**power for power in range(4, 20))
CLASSIFIERS = ("svm", "logistic")


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Full AP: Σ_k (R_k − R_{k−1}) P_k over the distinct scores, highest first.

    P_k and R_k are precision and recall of "score ≥ the k-th". Nothing is interpolated: the AP of
    scikit-learn. (VOC's devkit from 2010 on, and tools/svm, first make the precision monotone.)

    Args:
      scores: float [n].
      targets: int [n] of 1, 0, −1.

    Returns:
      in [0, 1]; NaN without a positive row.
    """
    hits, taken = _curve(scores, targets)
    if not len(hits) or not hits[-1]:
        return float("nan")
    gained = np.diff(hits, prepend=0) / hits[-1]
    return float(np.sum(gained * hits / taken))


def average_precision_11(scores: np.ndarray, targets: np.ndarray) -> float:
    """11-point AP of VOC07: (1/11) Σ_{r ∈ {0, 0.1, …, 1}} max {P_k : R_k ≥ r}.

    Args and Returns as for `average_precision`.

    Source: Everingham et al. 2010, "The PASCAL Visual Object Classes (VOC) Challenge", section
    4.2; VOC2007 devkit, VOCevalcls.m. R_k ≥ r is compared in whole numbers, free of rounding.
    Equal scores are one threshold, so the order of the rows does not matter; the devkit breaks
    such ties by it.
    """
    hits, taken = _curve(scores, targets)
    if not len(hits) or not hits[-1]:
        return float("nan")
    precision = hits / taken
    # hits reaches its total at the end, so no set is empty.
    return float(np.mean([precision[10 * hits >= tenth * hits[-1]].max() for tenth in range(11)]))


def measure(scores: np.ndarray, targets: np.ndarray) -> dict[str, Any]:
    """Both kinds of AP of every class, and their means.

    Args:
      scores: float [n, classes].
      targets: int [n, classes] of 1, 0, −1.

    Returns:
      {'map', 'map_11point': means over the classes that have a positive row, in [0, 1];
      'ap', 'ap_11point': lists over all classes, None for a class without one}.

    Raises:
      UserError: no class has a positive row.
    """
    pairs = list(zip(np.asarray(scores).T, np.asarray(targets).T, strict=True))
    full = [average_precision(s, t) for s, t in pairs]
    eleven = [average_precision_11(s, t) for s, t in pairs]
    if np.isnan(full).all():
        raise UserError("multi-label: no test image is positive for any class")
    return {
        "map": float(np.nanmean(full)),
        "map_11point": float(np.nanmean(eleven)),
        "ap": [None if np.isnan(v) else v for v in full],
        "ap_11point": [None if np.isnan(v) else v for v in eleven],
    }


def classify(
    train: np.ndarray,
    targets: np.ndarray,
    test: np.ndarray,
    names: tuple[str, ...],
    classifier: str = "svm",
    costs: tuple[float, ...] = COSTS,
    folds: int = 3,
) -> np.ndarray:
    """Scores of a classifier for every class, on features of unit length.

    'svm': scikit-learn's LinearSVC with the official settings: squared hinge, positives weigh
    twice. 'logistic': LogisticRegression with the same weights. The cost C has the best mean AP
    over stratified folds of the training rows (of equals, the smallest), then all rows are learned.

    Args:
      train: float [n, d] features.
      targets: int [n, classes] of 1, 0, −1.
      test: float [m, d] features.
      names: of the classes, for messages.
      classifier: one of CLASSIFIERS.
      costs: values of C to try, > 0.
      folds: at most; fewer where a class has fewer positive or negative rows. With a single one
        there is nothing to choose on: C is 1.

    Returns:
      float64 [m, classes].

    Raises:
      UserError: a class without a positive or without a negative row to learn from.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import cross_val_score

    train, test = _unit(train), _unit(test)
    scores = np.empty((len(test), len(names)))
    for column, name in enumerate(names):
        known = targets[:, column] >= 0
        x, y = train[known], targets[known, column]
        few = int(min(np.sum(y == 1), np.sum(y == 0)))
        if not few:
            lacking = "positive" if not np.any(y == 1) else "negative"
            raise UserError(f"multi-label: class {name} has no {lacking} training image")
        with warnings.catch_warnings():
            # The official cap of 2,000 iterations is part of the protocol; large costs reach it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            best = 1.0
            if len(costs) == 1:
                best = costs[0]
            elif few > 1:
                best = max(
                    sorted(costs),
                    key=lambda c: np.mean(
                        cross_val_score(
                            _model(classifier, c),
                            x,
                            y,
                            cv=min(folds, few),
                            scoring="average_precision",
                        )
                    ),
                )
            scores[:, column] = _model(classifier, best).fit(x, y).decision_function(test)
    return scores


def _model(classifier: str, cost: float):
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    weights = {1: 2, 0: 1}
    if classifier == "svm":
        return LinearSVC(C=cost, class_weight=weights, dual=True, max_iter=2000, random_state=0)
    return LogisticRegression(C=cost, class_weight=weights, max_iter=2000)


def _curve(scores: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Positives and rows with at least the k-th distinct score, highest first: int [K] twice."""
    scores, targets = np.asarray(scores), np.asarray(targets)
    known = targets >= 0
    order = np.argsort(-scores[known], kind="stable")
    scores, targets = scores[known][order], targets[known][order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1) if len(scores) else []
    last = np.asarray(last, int)
    return np.cumsum(targets)[last], last + 1


def _unit(x: np.ndarray) -> np.ndarray:
    """Rows of unit length, as svm_helper.normalize_features."""
    x = np.asarray(x, np.float64)
    return x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-5)
