"""The k nearest rows of a bank of features, exactly and in bounded memory.

The queries are split over the devices and stay there; the bank is streamed to every device in
blocks. Against each block the queries keep their k best neighbours so far, so no [m, n] matrix of
similarities, and no second copy of the bank, ever exists.

Where every process has its own rows of the bank (`apart.Apart`), each finds the k best of them for
all queries, and these are joined: what travels is P·m·k numbers, no features.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.devices import layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import apart
from ssl_jax.processes import talk

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
    centre: np.ndarray | None = None,
) -> Neighbours:
    """The k rows of the bank at the smallest Euclidean distance from each query.

    Args:
      bank: float [n, d].
      queries: float [m, d].
      k, known, query_block, bank_block, mesh: as for `search`.
      centre: float32 [d], where the origin is moved to; None: to the mean of the bank. Any gives
        the same neighbours up to rounding.

    Returns:
      Neighbours; the similarity is −‖x − x_i‖² up to a number that is the same for all rows.

    Raises:
      UserError: features that are not finite.
    """
    check_features(bank, queries)
    # Distances do not change when both sets move; near the origin ‖a‖² + ‖b‖² − 2ab cancels less.
    centre = np.mean(bank, axis=0, dtype=np.float32) if centre is None else centre
    queries = np.asarray(queries, np.float32) - centre
    return search(bank, queries, k, _closeness, known, centre, query_block, bank_block, mesh)


def by_cosine_apart(bank: apart.Apart, queries: np.ndarray, k: int) -> Neighbours:
    """`by_cosine` of a bank that no process has whole. Rows without a label are not in the bank.

    Args:
      bank: n rows.
      queries: float [m, d], the same on every process.
      k: neighbours to keep.

    Returns:
      Neighbours, on every process; the index is that of the n rows.

    Raises:
      UserError: features that are not finite, on every process.
    """
    _check_apart(bank, queries)
    return _search_apart(by_cosine, bank, queries, k)


def by_distance_apart(bank: apart.Apart, queries: np.ndarray, k: int) -> Neighbours:
    """`by_distance`, otherwise as `by_cosine_apart`."""
    _check_apart(bank, queries)
    centre = None
    if layout.processes(bank.mesh) > 1:  # what is compared must have one origin
        everyone = np.ones(len(bank.labels), bool)
        centre = apart.means(bank, everyone, lambda block: block).astype(np.float32)
    return _search_apart(functools.partial(by_distance, centre=centre), bank, queries, k)


def _search_apart(by, bank, queries, k):
    """The best k of each process's own rows, and of these the best k.

    Args:
      by: `by_cosine` or `by_distance`.
    """
    r = len(bank.own)
    known = bank.labels[bank.first : bank.first + r] >= 0
    if r:
        mesh = layout.mesh(jax.local_devices())
        near = by(bank.own, queries, k, known, mesh=mesh)
    else:
        near = Neighbours(
            np.full((len(queries), k), -np.inf, np.float32),
            np.full((len(queries), k), -1, np.int32),
        )
    return _join(near, bank) if layout.processes(bank.mesh) > 1 else near


def _join(near, bank):
    """The k best of the processes' k best."""
    talk.meet("neighbours", apart.DAY)
    m, k = near.index.shape
    index = np.where(near.index >= 0, near.index + np.int32(bank.first), np.int32(-1))
    similarity, joined = np.empty_like(near.similarity), np.empty_like(index)
    processes = layout.processes(bank.mesh)
    step = max(1, min(m, apart.GATHERED // (4 * processes * k)))
    for start in range(0, m, step):
        few = slice(start, start + step)
        # [P, q, k] -> [q, P·k]: processes in the order of their rows, so that the stable sort
        # leaves the earlier of equals in front, as `search` does.
        values, rows = (
            np.moveaxis(talk.from_each(x[few], bank.mesh), 0, 1).reshape(-1, processes * k)
            for x in (near.similarity, index)
        )
        order = np.argsort(-values, axis=1, kind="stable")[:, :k]
        similarity[few] = np.take_along_axis(values, order, axis=1)
        joined[few] = np.take_along_axis(rows, order, axis=1)
    return Neighbours(similarity, joined)


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
    mesh = layout.mesh(jax.local_devices()) if mesh is None else mesh
    (m, d), n, devices = queries.shape, len(bank), mesh.devices.size
    if known is not None and len(known) != n:
        raise ValueError(f"knn: {n} rows in the bank but {len(known)} labels")
    bank_block = min(bank_block or max(BANK_BLOCK, 4 * k), n)
    query_block = min(query_block, -(-m // devices))
    blocks = -(-m // (devices * query_block)) * devices
    split = _pad(np.asarray(queries, np.float32), blocks * query_block, 0.0)
    split = layout.put_split(split.reshape(blocks, query_block, d), mesh)
    best = (
        layout.put_split(np.full((blocks, query_block, k), -np.inf, np.float32), mesh),
        layout.put_split(np.full((blocks, query_block, k), -1, np.int32), mesh),
    )
    merge = _compile_merge(mesh, similarity)
    known = np.ones(n, bool) if known is None else np.asarray(known, bool)

    def put(start):
        rows = np.asarray(bank[start : start + bank_block], np.float32)
        rows = _pad(rows if centre is None else rows - centre, bank_block, 0.0)
        there = _pad(known[start : start + bank_block], bank_block, False)
        return layout.put_whole((rows, there, np.int32([start])), mesh)

    block = put(0)
    for start in range(0, n, bank_block):
        best = merge(best, split, block)
        # The next block travels while this one is compared. Waiting here keeps two alive at most.
        block = put(start + bank_block) if start + bank_block < n else None
        jax.block_until_ready(best)
    values, index = layout.fetch(best, mesh)
    return Neighbours(values.reshape(-1, k)[:m], index.reshape(-1, k)[:m])


@functools.lru_cache(maxsize=16)
def _compile_merge(mesh, similarity):
    return mapping.compile_carry(functools.partial(_merge, similarity=similarity), mesh)


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


def check_features(train: np.ndarray, test: np.ndarray) -> None:
    """Checks the features, in bounded memory.

    Raises:
      ValueError: the shapes do not fit.
      UserError: features that are not finite.
    """
    _check_shapes(train, test)
    for name, x in (("train", train), ("test", test)):
        if not apart.finite(x):
            raise UserError(_not_finite(name))


def _check_apart(bank, queries):
    """As `check_features`: on every process the same."""
    _check_shapes(bank.own, queries)
    for name, fine in (("train", apart.all_finite(bank)), ("test", apart.finite(queries))):
        if not fine:
            raise UserError(_not_finite(name))


def _check_shapes(train, test):
    if np.ndim(train) != 2 or np.ndim(test) != 2 or train.shape[1] != test.shape[1]:
        raise ValueError(f"knn: train {np.shape(train)} and test {np.shape(test)} must be [·, d]")


def _not_finite(name):
    return f"knn: the {name} features are not all finite; the encoder diverged"


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
