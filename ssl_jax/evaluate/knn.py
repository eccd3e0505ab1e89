"""k-nearest-neighbour classification on cached features, in bounded memory.

The queries are split over the devices and stay there; the bank (training features) is streamed to
every device in blocks. Against each block the queries keep their k best neighbours so far, so no
[m, n] matrix of similarities, and no second copy of the bank, ever exists. The search is the dear
part: one search for the largest k serves every smaller k, every temperature and every vote.

Sources: the weighted vote of Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric
Instance Discrimination", section 3.4 (zhirongw/lemniscate.pytorch test.py, kNN), and its use by
DINO (facebookresearch/dino eval_knn.py, knn_classifier).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax import parallel
from ssl_jax.errors import UserError
from ssl_jax.evaluate import accuracy as accuracy_lib

# Rows handled at once; the result does not depend on them. On CPU a block of similarities should
# stay in the cache of a core.
QUERY_BLOCK, BANK_BLOCK = 256, 4096


class Neighbours(NamedTuple):
    """The k nearest rows of a bank for every query, best first.

    Attributes:
      similarity: float32 [m, k] in descending order; -inf where the bank has fewer than k rows.
      index: int32 [m, k], rows of the bank; -1 there.
    """

    similarity: np.ndarray
    index: np.ndarray


def classify(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    k: int = 20,
    temperature: float = 0.1,
    query_block: int = QUERY_BLOCK,
    bank_block: int | None = None,
    mesh: Any = None,
) -> np.ndarray:
    """Weighted kNN scores: `by_cosine`, then `weighted`.

    Args:
      train: float [n, d] features of the bank; normalised to unit length here.
      train_labels: int [n]; rows with label -1 are not in the bank.
      test: float [m, d] features to classify; normalised to unit length here.
      classes: number of classes; labels lie in [0, classes).
      k: neighbours that vote. With fewer than k labelled rows all of them vote.
      temperature: of the weights exp(cos / temperature), > 0. 0.07 in the papers.
      query_block, bank_block, mesh: as for `search`.

    Returns:
      float32 [m, classes] on the host; -inf for a class without a vote.

    Raises:
      UserError: no labelled row, label outside the classes, k or temperature not positive,
        features that are not finite.
    """
    check_grid((k,), (temperature,))
    check_labels(train_labels, classes)
    known = np.asarray(train_labels) >= 0
    near = by_cosine(train, test, k, known, query_block, bank_block, mesh)
    return weighted(near, train_labels, classes, k, temperature)


def classify_euclidean(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    classes: int,
    k: int = 5,
    query_block: int = QUERY_BLOCK,
    bank_block: int | None = None,
    mesh: Any = None,
) -> np.ndarray:
    """Plain kNN by Euclidean distance: `by_distance`, then `plain`.

    Features are taken as they are, without normalisation.

    Args:
      train, train_labels, test, classes, k: as for `classify`.
      query_block, bank_block, mesh: as for `search`.

    Returns:
      float32 [m, classes] counts on the host.

    Raises:
      UserError: as `classify`.
    """
    check_grid((k,), ())
    check_labels(train_labels, classes)
    known = np.asarray(train_labels) >= 0
    near = by_distance(train, test, k, known, query_block, bank_block, mesh)
    return plain(near, train_labels, classes, k)


def weighted(
    near: Neighbours, train_labels: np.ndarray, classes: int, k: int, temperature: float
) -> np.ndarray:
    """log Σ_{i in k nearest, y_i = c} exp(cos(x, x_i) / temperature) for every class c.

    The official code sums the votes themselves. They overflow float32 below a temperature of
    about 0.011, so we return their logarithm, computed stably: the same order of classes, the
    same predictions, and exp(scores) are the official votes.

    Args:
      near: from `by_cosine`, of at least k neighbours.
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


def plain(near: Neighbours, train_labels: np.ndarray, classes: int, k: int) -> np.ndarray:
    """How many of the k nearest are of each class: the majority vote.

    Equal counts go to the lower class, as in scikit-learn.

    Args:
      near: from `by_cosine` or `by_distance`, of at least k neighbours.
      train_labels, classes, k: as for `weighted`.

    Returns:
      float32 [m, classes].
    """
    labels = _labels(near, train_labels, k)
    one_each = np.where(labels >= 0, np.float32(0), -np.inf)
    return np.round(np.exp(log_votes(one_each, labels, classes)))


def accuracy(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy of the scores of a vote.

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


def grid(
    near: Neighbours,
    train_labels: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    ks: Sequence[int],
    temperatures: Sequence[float],
) -> list[dict[str, float]]:
    """Accuracy of the weighted vote for every k and temperature, from neighbours found once.

    Args:
      near: from `by_cosine`, of at least max(ks) neighbours.
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


def by_cosine(
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    known: np.ndarray | None = None,
    query_block: int = QUERY_BLOCK,
    bank_block: int | None = None,
    mesh: Any = None,
) -> Neighbours:
    """The k rows of the bank with the largest cosine to each query.

    Args:
      bank: float [n, d], of any length.
      queries: float [m, d], of any length.
      k, known, query_block, bank_block, mesh: as for `search`.

    Returns:
      Neighbours; the similarity is the cosine.

    Raises:
      UserError: features that are not finite.
    """
    check_features(bank, queries)
    queries = np.asarray(queries, np.float32)
    length = np.linalg.norm(queries, axis=1, keepdims=True)
    queries = queries / np.maximum(length, 1e-12)
    return search(bank, queries, k, _cosine, known, None, query_block, bank_block, mesh)


def by_distance(
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    known: np.ndarray | None = None,
    query_block: int = QUERY_BLOCK,
    bank_block: int | None = None,
    mesh: Any = None,
) -> Neighbours:
    """The k rows of the bank at the smallest Euclidean distance from each query.

    Args:
      bank: float [n, d].
      queries: float [m, d].
      k, known, query_block, bank_block, mesh: as for `search`.

    Returns:
      Neighbours; the similarity is −‖x − x_i‖² up to a number that is the same for all rows.

    Raises:
      UserError: features that are not finite.
    """
    check_features(bank, queries)
    # Distances do not change when both sets move; near the origin ‖a‖² + ‖b‖² − 2ab cancels less.
    centre = np.mean(bank, axis=0, dtype=np.float32)
    queries = np.asarray(queries, np.float32) - centre
    return search(bank, queries, k, _closeness, known, centre, query_block, bank_block, mesh)


def search(
    bank: np.ndarray,
    queries: np.ndarray,
    k: int,
    similarity: Callable[[jax.Array, jax.Array], jax.Array],
    known: np.ndarray | None = None,
    centre: np.ndarray | None = None,
    query_block: int = QUERY_BLOCK,
    bank_block: int | None = None,
    mesh: Any = None,
) -> Neighbours:
    """The k most similar rows of the bank for every query, best first.

    Exact. Of equal similarities the earlier row of the bank comes first.

    Args:
      bank: float [n, d], on the host; converted to float32 a block at a time.
      queries: float32 [m, d].
      k: neighbours to keep.
      similarity: (queries [q, d], bank [r, d]) -> [q, r], larger is nearer. A module-level
        function: it names the compiled search.
      known: bool [n], False for rows that are not in the bank; None: all are.
      centre: float32 [d], taken off every row of the bank; None: nothing is.
      query_block, bank_block: rows that a device compares at once; bank_block None: 4,096, or 4k
        where that is more (the best of every block are sorted out). Each device holds two blocks
        of the bank, its share of the queries and of the result, and about
        query_block × bank_block × 8 bytes.
      mesh: the queries are split over its devices. None: over those of this process. On a mesh of
        several processes all of them must call, with the same arrays.

    Returns:
      Neighbours, on every process.
    """
    mesh = parallel.mesh(jax.local_devices()) if mesh is None else mesh
    (m, d), n, devices = queries.shape, len(bank), mesh.devices.size
    if known is not None and len(known) != n:
        raise ValueError(f"knn: {n} rows in the bank but {len(known)} labels")
    bank_block = min(bank_block or max(BANK_BLOCK, 4 * k), n)
    query_block = min(query_block, -(-m // devices))
    blocks = -(-m // (devices * query_block)) * devices
    split = _pad(np.asarray(queries, np.float32), blocks * query_block, 0.0)
    split = parallel.put_split(split.reshape(blocks, query_block, d), mesh)
    best = (
        parallel.put_split(np.full((blocks, query_block, k), -np.inf, np.float32), mesh),
        parallel.put_split(np.full((blocks, query_block, k), -1, np.int32), mesh),
    )
    merge = _compile_merge(mesh, similarity)
    known = np.ones(n, bool) if known is None else np.asarray(known, bool)

    def put(start):
        rows = np.asarray(bank[start : start + bank_block], np.float32)
        rows = _pad(rows if centre is None else rows - centre, bank_block, 0.0)
        there = _pad(known[start : start + bank_block], bank_block, False)
        return parallel.put_whole((rows, there, np.int32([start])), mesh)

    block = put(0)
    for start in range(0, n, bank_block):
        best = merge(best, split, block)
        # The next block travels while this one is compared. Waiting here keeps two alive at most.
        block = put(start + bank_block) if start + bank_block < n else None
        jax.block_until_ready(best)
    values, index = parallel.fetch(best, mesh)
    return Neighbours(values.reshape(-1, k)[:m], index.reshape(-1, k)[:m])


@functools.lru_cache(maxsize=16)
def _compile_merge(mesh, similarity):
    return parallel.compile_carry(functools.partial(_merge, similarity=similarity), mesh)


def _merge(best, queries, block, similarity):
    """Best k of (best so far, this block of the bank), one block of queries at a time."""
    rows, known, start = block  # [r, d], [r], [1]
    k = best[0].shape[-1]

    def join(kept, values, near):  # merges the `kept` best of this block
        values, index = values  # [q, k] twice
        top, place = lax.top_k(near, kept)
        # Older rows stand first: top_k keeps the earlier of equals, so blocks do not matter.
        index = jnp.concatenate([index, jnp.where(top > -jnp.inf, place + start, -1)], axis=1)
        values, order = lax.top_k(jnp.concatenate([values, top], axis=1), k)
        return values, jnp.take_along_axis(index, order, axis=1)

    def compare(args):
        values, q = args  # ([q, k], [q, k]), [q, d]
        near = similarity(q, rows)  # [q, d] × [r, d] -> [q, r]
        near = jnp.where(known, near, -jnp.inf)
        # Once the k best are good, few rows of a block beat the last of them. Sorting out a few is
        # much cheaper than k, and exact where no query has more.
        most, few = min(k, near.shape[1]), min(max(8, k // 8), near.shape[1])
        entering = jnp.max(jnp.sum(near > values[0][:, -1:], axis=1))
        return lax.cond(
            entering <= few,
            functools.partial(join, few),
            functools.partial(join, most),
            values,
            near,
        )

    return lax.map(compare, (best, queries))


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
        if not temperature > 0:
            raise UserError(f"knn: temperature must be positive, got {temperature}")


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


def check_features(train: np.ndarray, test: np.ndarray) -> None:
    """Checks the features, in bounded memory.

    Raises:
      ValueError: the shapes do not fit.
      UserError: features that are not finite.
    """
    if np.ndim(train) != 2 or np.ndim(test) != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"knn: train {np.shape(train)} and test {np.shape(test)} must be [·, d]")
    for name, x in (("train", train), ("test", test)):
        for start in range(0, len(x), BANK_BLOCK):
            block = x[start : start + BANK_BLOCK]
            # The sum of finite numbers is finite, unless it overflows: then every one is asked.
            with np.errstate(over="ignore", invalid="ignore"):
                suspicious = not np.isfinite(np.sum(block))
            if suspicious and not np.isfinite(block).all():
                raise UserError(
                    f"knn: the {name} features are not all finite; the encoder diverged"
                )


def _labels(near, train_labels, k):
    """Labels of the k nearest, int32 [m, k]; -1 where there is none."""
    index = near.index[:, :k]
    return np.where(index >= 0, np.asarray(train_labels, np.int32)[index], np.int32(-1))


def _dot(queries, bank):
    # [q, d] × [r, d] -> [q, r]. Full float32: accelerators round products to bfloat16 or TF32
    # by default, which reorders neighbours.
    return jnp.matmul(queries, bank.T, precision=lax.Precision.HIGHEST)


def _cosine(queries, bank):
    # The queries are of unit length already: they are few. The bank is not copied for it.
    length = jnp.linalg.norm(bank, axis=1)  # [r]
    return _dot(queries, bank) / jnp.maximum(length, 1e-12)


def _closeness(queries, bank):
    # −‖q − b‖² up to ‖q‖², which is the same for all candidates of a query.
    return 2 * _dot(queries, bank) - jnp.sum(bank**2, axis=1)


def _pad(x, rows, value):
    """`x` with rows of `value` appended up to `rows`; one compiled shape for uneven blocks."""
    missing = rows - len(x)
    if not missing:
        return x
    return np.concatenate([x, np.full((missing, *x.shape[1:]), value, x.dtype)])
