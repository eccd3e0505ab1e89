"""What a representation is worth: the same probes on several feature sets of the same images."""

from typing import NamedTuple

import numpy as np

from ssl_jax.contract.source import Source
from ssl_jax.data import loader
from ssl_jax.errors import UserError, line
from ssl_jax.evaluate.features import encoder
from ssl_jax.evaluate.health import collapse
from ssl_jax.evaluate.probes import knn, linear

MONITORS = ("feature_std", "feature_std_ratio", "effective_rank")  # numbers of `collapse.measure`
PIXEL_SIDE = 32  # pixels are a baseline at this size at most: a classifier on more is slow


class Part(NamedTuple):
    """Some rows of a source: int [n]."""

    source: Source
    rows: np.ndarray


class Judged(NamedTuple):
    """One feature set and what it is worth.

    Attributes:
      features: float32 [n, d] of the rows that probes learn from.
      shown, shown_labels: float32 [m, d] and int32 [m] (-1: none) of the rows that probes are
        judged on, or those they learn from; for pictures.
      predicted: int32 [m], classes of `shown` by kNN; None without labels.
      knn_top1, linear_top1, linear_top5: in [0, 1]; None without labels, top-5 also with
        five classes or fewer.
      collapse: `collapse.measure` of `features`.
      problems: what could not be measured, and why, a line each.
    """

    features: np.ndarray
    shown: np.ndarray
    shown_labels: np.ndarray
    predicted: np.ndarray | None
    knn_top1: float | None
    linear_top1: float | None
    linear_top5: float | None
    collapse: dict[str, np.ndarray]
    problems: tuple[str, ...] = ()


def split(
    train: Source, test: Source | None, most_train: int, most_test: int
) -> tuple[Part, Part | None]:
    """The rows that probes learn from and those they are judged on.

    Without a test split a fixed fifth of train is held out. (The encoder has seen those images,
    though no labels.) Without labels there is nothing to judge on.

    Args:
      train, test: sources; test may be None.
      most_train, most_test: most rows of each.

    Returns:
      (learn from, judge on or None).
    """
    if not train.classes:
        return Part(train, encoder.subset(train.examples, most_train)), None
    if test is not None:
        return (
            Part(train, encoder.subset(train.examples, most_train)),
            Part(test, encoder.subset(test.examples, most_test)),
        )
    shuffled = np.random.Generator(np.random.Philox([0, 1])).permutation(train.examples)
    held = max(1, train.examples // 5)
    return (
        Part(train, np.sort(shuffled[held:][:most_train])),
        Part(train, np.sort(shuffled[:held][:most_test])),
    )


def labelled(*sets: tuple[np.ndarray, np.ndarray] | None) -> bool:
    """Whether each of the (features, labels) has labels, and there is a class that all have.

    A set may have classes and no labels all the same: the unlabelled split of STL-10.
    """
    if any(one is None for one in sets):
        return False
    found = [{*np.unique(labels[labels >= 0]).tolist()} for _, labels in sets]
    return bool(set.intersection(*found))


def check_classes(labels: np.ndarray, judged: np.ndarray) -> None:
    """Checks that there is something to judge; where no row has a label, probes say so themselves.

    Args:
      labels, judged: int [n] and [m], of the rows to learn from and to be judged on; -1: none.

    Raises:
      UserError: no class in common: every accuracy would be 0.
    """
    there, asked = (np.unique(x[x >= 0]) for x in (labels, judged))
    if len(there) and len(asked) and not np.isin(asked, there).any():
        raise UserError(
            "the images to learn from and those to be judged on have no class in common, so there "
            "is nothing to judge; other splits are named by --config.data.train_split and "
            "--config.data.test_split"
        )


def without_features(judged: Judged) -> Judged:
    """`judged` for a baseline of which the accuracies alone are shown: its features take memory."""
    return judged._replace(features=np.empty((0, judged.features.shape[1]), np.float32))


def judge(
    bank: tuple[np.ndarray, np.ndarray],
    query: tuple[np.ndarray, np.ndarray] | None,
    classes: int,
) -> Judged:
    """Weighted kNN (cosine, k = 20, exp(cos / 0.1)), linear probe and collapse of features.

    Args:
      bank: features float32 [n, d] and labels int32 [n] (-1: none) to learn from.
      query: the same to judge on, or None. Without a label in both, and without a class that both
        have, there are no accuracies.
      classes: number of classes.
    """
    features, labels = bank
    measured = {k: np.asarray(v) for k, v in collapse.measure(features).items()}
    if query is None:
        return Judged(features, features, labels, None, None, None, None, measured)
    test, test_labels = query
    if not labelled(bank, query):
        return Judged(features, test, test_labels, None, None, None, None, measured)
    problems = []

    def attempt(name, measure):
        """A probe that cannot be fitted is a line in the result, not the end of it."""
        try:
            return measure()
        except Exception as error:
            reason = line(error)
            problems.append(f"{name}: {type(error).__name__}: {reason}")
            return None

    def vote():
        scores = knn.classify(features, labels, test, classes)
        return scores, knn.accuracy(scores, test_labels)

    near = attempt("kNN", vote)
    fitted = attempt("linear", lambda: linear.probe(features, labels, test, test_labels, classes))
    return Judged(
        features=features,
        shown=test,
        shown_labels=test_labels,
        predicted=near[0].argmax(1).astype(np.int32) if near else None,
        knn_top1=near[1]["top1"] if near else None,
        linear_top1=fitted["top1"] if fitted else None,
        linear_top5=fitted["top5"] if fitted else None,
        collapse=measured,
        problems=tuple(problems),
    )


def pixels(part: Part, batch: int = 1_000) -> tuple[np.ndarray, np.ndarray]:
    """The data as it is, for features: what an encoder has to beat.

    Pixels of an image are in [0, 1], shrunk to at most PIXEL_SIDE. Of whole numbers (tokens) it is
    how often each occurs in the example, of other fields their values.

    Returns:
      float32 [n, d] and labels int32 [n].
    """
    source, n = part.source, len(part.rows)
    batch = min(batch, n)
    picked = source._replace(examples=n, read=lambda i: source.read(part.rows[i]))
    found, labels = [], []
    with loader.in_order(picked, batch=batch) as batches:
        for i, read in enumerate(batches):
            real = min(batch, n - i * batch)  # without the rows that pad the last batch
            fields = [_raw(name, read[name][:real], source) for name in source.fields]
            found.append(np.concatenate(fields, 1))
            labels.append(read["label"][:real])
    return np.concatenate(found), np.concatenate(labels)


def _raw(name: str, x: np.ndarray, source: Source) -> np.ndarray:
    """One field of some examples as float32 [b, d]."""
    from ssl_jax import augment

    if name == "image":
        side, c = min(x.shape[1], PIXEL_SIDE), x.shape[-1]
        x = np.asarray(augment.evaluate(x, side, (0.0,) * c, (1.0,) * c, 1.0))
    elif np.issubdtype(x.dtype, np.integer) and "vocabulary_size" in source.facts:
        flat, size = x.reshape(len(x), -1), int(source.facts["vocabulary_size"])
        counts = [np.bincount(row[row >= 0], minlength=size) for row in flat]  # [size] each
        x = np.stack(counts)
    return x.reshape(len(x), -1).astype(np.float32)
