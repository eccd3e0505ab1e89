"""k-nearest-neighbour classification on cached features, in bounded memory.

The bank (training features) is streamed to the device in blocks. Against each block the queries
keep their k best neighbours so far, so no [m, n] matrix of similarities ever exists.

Sources: the weighted vote of Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", section 3.4 (zhirongw/lemniscate.pytorch test.py, kNN), and its use by
DINO (facebookresearch/dino eval_knn.py, knn_classifier).
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.errors import UserError
from ssl_jax.evaluate import accuracy as accuracy_lib


def classify(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    k: int = 20,
    temperature: float = 0.1,
    query_block: int = 1024,
    bank_block: int = 4096,
) -> np.ndarray:
    """Weighted kNN scores: log of Σ_{i in k nearest, y_i = c} exp(cos(x, x_i) / temperature).

    The official code sums the votes themselves. They overflow float32 below a temperature of
    about 0.011, so we return their logarithm, computed stably: the same order of classes, the
    same predictions, and exp(scores) are the official votes.

    Args:
      train: float [n, d] features of the bank; normalised to unit length here.
      train_labels: int [n]; rows with label -1 are not in the bank.
      test: float [m, d] features to classify; normalised to unit length here.
      classes: number of classes; labels lie in [0, classes).
      k: neighbours that vote. With fewer than k labelled rows all of them vote.
      temperature: of the weights exp(cos / temperature), > 0. 0.07 in the papers.
      query_block, bank_block: rows of `test` and `train` handled at once. The result does not
        depend on them; memory is about query_block × bank_block × 4 bytes.

    Returns:
      float32 [m, classes] on the host; -inf for a class without a vote.

    Raises:
      UserError: no labelled row, label outside the classes, k or temperature not positive,
        features that are not finite.
    """
    if not temperature > 0:
        raise UserError(f"knn: temperature must be positive, got {temperature}")
    _check(train, train_labels, test, classes, k)
    similarity, labels = neighbours(
        _unit(train), train_labels, _unit(test), k, _dot, query_block, bank_block
    )
    return np.asarray(log_votes(similarity / temperature, labels, classes))


def classify_euclidean(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    k: int = 5,
    query_block: int = 1024,
    bank_block: int = 4096,
) -> np.ndarray:
    """Plain kNN: the number of the k nearest rows, by Euclidean distance, that are of each class.

    Features are taken as they are, without normalisation. Equal counts go to the lower class, as
    in scikit-learn.

    Args:
      train, train_labels, test, classes, k, query_block, bank_block: as for `classify`.

    Returns:
      float32 [m, classes] counts on the host.

    Raises:
      UserError: as `classify`.
    """
    _check(train, train_labels, test, classes, k)
    # Distances do not change when both sets move; near the origin ‖a‖² + ‖b‖² − 2ab cancels less.
    train, test = np.asarray(train, np.float32), np.asarray(test, np.float32)
    centre = train.mean(0)
    similarity, labels = neighbours(
        train - centre, train_labels, test - centre, k, _closeness, query_block, bank_block
    )
    one_each = jnp.where(jnp.isneginf(similarity), -jnp.inf, 0.0)
    return np.round(np.exp(log_votes(one_each, labels, classes)))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy of the scores of `classify` or `classify_euclidean`.

    Args:
      scores: float [m, classes].
      labels: int [m]; rows with label -1 are not counted.

    Returns:
      {'top1', 'top5'}: fractions in [0, 1] (DINO's code prints percent). As there, guesses beyond
      the classes that got votes go to the lowest indices; unlike there, 'top5' has five guesses
      even where k < 5.

    Raises:
      UserError: no row has a label, or a label is outside the classes.
    """
    return {
        "top1": accuracy_lib.top(scores, labels, 1),
        "top5": accuracy_lib.top(scores, labels, 5),
    }


def neighbours(
    bank: np.ndarray,
    bank_labels: np.ndarray,
    queries: np.ndarray,
    k: int,
    similarity: Callable[[jax.Array, jax.Array], jax.Array],
    query_block: int = 1024,
    bank_block: int = 4096,
) -> tuple[jax.Array, jax.Array]:
    """The k most similar labelled rows of the bank for every query, best first.

    Args:
      bank: float32 [n, d], on the host or a device.
      bank_labels: int [n]; rows with label -1 are skipped.
      queries: float32 [m, d].
      k: neighbours to keep.
      similarity: (queries [q, d], bank [r, d]) -> [q, r], larger is nearer. A module-level
        function: it is a static argument of the compiled search.
      query_block, bank_block: rows handled at once.

    Returns:
      similarity float32 [m, k] in descending order, -inf where the bank has fewer than k rows;
      labels int32 [m, k], -1 there. Of equal similarities the earlier row of the bank comes first.
    """
    m, n = len(queries), len(bank)
    query_block, bank_block = min(query_block, m), min(bank_block, n)
    blocks = -(-m // query_block)
    queries = _pad(queries, blocks * query_block, 0.0)
    queries = jnp.asarray(queries).reshape(blocks, query_block, -1)
    best = (
        jnp.full((blocks, query_block, k), -jnp.inf, jnp.float32),
        jnp.full((blocks, query_block, k), -1, jnp.int32),
    )
    for start in range(0, n, bank_block):
        rows = _pad(bank[start : start + bank_block], bank_block, 0.0)
        labels = _pad(np.asarray(bank_labels[start : start + bank_block], np.int32), bank_block, -1)
        best = _merge(best, queries, rows, labels, similarity)
        # Dispatch runs ahead of the device; waiting here keeps at most one block in flight.
        jax.block_until_ready(best)
    return jax.tree.map(lambda x: x.reshape(-1, k)[:m], best)


@functools.partial(jax.jit, static_argnames="similarity", donate_argnums=0)
def _merge(best, queries, rows, labels, similarity):
    """Best k of (best so far, this block of the bank), one block of queries at a time."""

    def block(args):
        (values, names), q = args  # [q, k] twice, [q, d]
        near = similarity(q, rows)  # [q, d] × [r, d] -> [q, r]
        near = jnp.where(labels >= 0, near, -jnp.inf)
        top, index = lax.top_k(near, min(values.shape[1], near.shape[1]))
        # Older rows stand first: top_k keeps the earlier of equals, so blocks do not matter.
        values = jnp.concatenate([values, top], axis=1)
        names = jnp.concatenate([names, jnp.where(jnp.isneginf(top), -1, labels[index])], axis=1)
        values, index = lax.top_k(values, best[0].shape[2])
        return values, jnp.take_along_axis(names, index, axis=1)

    return lax.map(block, (best, queries))


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


def _dot(queries, bank):
    # [q, d] × [r, d] -> [q, r]. Full float32: accelerators round products to bfloat16 or TF32
    # by default, which reorders neighbours.
    return jnp.matmul(queries, bank.T, precision=lax.Precision.HIGHEST)


def _closeness(queries, bank):
    # −‖q − b‖² up to ‖q‖², which is the same for all candidates of a query.
    return 2 * _dot(queries, bank) - jnp.sum(bank**2, axis=1)


def _unit(x):
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _pad(x, rows, value):
    """`x` with rows of `value` appended up to `rows`; one compiled shape for uneven blocks."""
    x = np.asarray(x)
    missing = rows - len(x)
    if not missing:
        return x
    return np.concatenate([x, np.full((missing, *x.shape[1:]), value, x.dtype)])


def _check(train, train_labels, test, classes, k):
    if np.ndim(train) != 2 or np.ndim(test) != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"knn: train {np.shape(train)} and test {np.shape(test)} must be [·, d]")
    if len(train) != len(train_labels):
        raise ValueError(f"knn: {len(train)} train rows but {len(train_labels)} labels")
    labels = np.asarray(train_labels)
    if k < 1:
        raise UserError(f"knn: k must be at least 1, got {k}")
    if not (labels >= 0).any():
        raise UserError("knn: no training row has a label; kNN needs a labelled training split")
    if labels.max() >= classes:
        raise UserError(f"knn: label {labels.max()} is outside the {classes} classes of the data")
    for name, x in (("train", train), ("test", test)):
        if not np.isfinite(np.asarray(x)).all():
            raise UserError(f"knn: the {name} features are not all finite; the encoder diverged")
