"""Retrieval: which images lie next to a query, and how many of them are of its class.

Neighbours by cosine, from the blocked search of neighbours.py. Queries are taken a few thousand at
a time, so that memory is bounded however long the lists are.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import neighbours

LIST_ENTRIES = 2**23  # neighbours in memory at a time: 64 MiB, and as much again to judge them


class Query(NamedTuple):
    """What is searched with.

    Attributes:
      features: float [m, d].
      labels: int [m]; -1: none.
      own: int [m], the row of the gallery that the query itself is, and that it must not find;
        -1: it is not in the gallery.
    """

    features: np.ndarray
    labels: np.ndarray
    own: np.ndarray


def measure(
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    query: Query,
    ks: Sequence[int],
    mesh: Any = None,
) -> dict[str, float]:
    """recall@k and MAP@R.

    recall@k (Jégou et al. 2011, as used by Oh Song et al. 2016): the share of queries with at least
    one image of their class among the k nearest.

    MAP@R (Musgrave et al. 2020, "A Metric Learning Reality Check"): the mean over queries of
    (1/R) Σ_{i=1}^{R} P(i), where R is the number of images of the query's class in the gallery, and
    P(i) the share of the i nearest that are of that class if the i-th is, else 0. It is 1 only if
    the R nearest are all of the class.

    Args:
      gallery: float [n, d]; normalised to unit length here.
      gallery_labels: int [n]; rows with label -1 are not in the gallery.
      query: what to search with; queries with label -1, or without any other image of their class
        in the gallery, are not counted.
      ks: each at least 1.
      mesh: as for `neighbours.search`.

    Returns:
      {'recall_at_<k>' for every k, 'mean_ap_at_r': in [0, 1]; 'queries': how many were counted}.

    Raises:
      UserError: no k, a k that is not a whole number or exceeds the gallery, no query to count,
        features that are not finite.
    """
    gallery_labels = np.asarray(gallery_labels)
    known = gallery_labels >= 0
    check_ks(ks, int(known.sum()) - int((query.own >= 0).any()))
    relevant = fellows(gallery_labels, query)
    counted = np.flatnonzero(relevant > 0)
    if not len(counted):
        raise UserError(
            "retrieve: no query has an image of its class in the gallery; recall needs labels"
        )
    longest = max(*ks, int(relevant.max()))
    recalls, precisions = np.zeros(len(ks)), 0.0
    step = max(1, LIST_ENTRIES // longest)
    for start in range(0, len(counted), step):
        rows = counted[start : start + step]
        part = Query(query.features[rows], query.labels[rows], query.own[rows])
        near = search(gallery, part, longest, known, mesh)
        index = near.index
        hit = (index >= 0) & (gallery_labels[index] == part.labels[:, None])  # [q, longest]
        recalls += [recall(hit, k) * len(rows) for k in ks]
        precisions += ap_at_r(hit, relevant[rows]).sum()
    found = {f"recall_at_{k}": float(r / len(counted)) for k, r in zip(ks, recalls, strict=True)}
    return found | {"mean_ap_at_r": float(precisions / len(counted)), "queries": len(counted)}


def search(
    gallery: np.ndarray,
    query: Query,
    k: int,
    known: np.ndarray | None = None,
    mesh: Any = None,
) -> neighbours.Neighbours:
    """The k nearest images of the gallery, the query itself left out.

    Args:
      gallery: float [n, d].
      query: what to search with.
      k: how many.
      known, mesh: as for `neighbours.search`.

    Returns:
      Neighbours; -inf and -1 where the gallery has fewer.
    """
    if not (query.own >= 0).any():
        return neighbours.by_cosine(gallery, query.features, k, known, mesh=mesh)
    near = neighbours.by_cosine(gallery, query.features, k + 1, known, mesh=mesh)
    own = near.index == query.own[:, None]  # [m, k + 1]
    own[:, -1] |= ~own.any(1)  # not among them (copies of it are nearer): the last is one too many
    keep = np.argsort(own, axis=1, kind="stable")[:, :k]  # the others, in their order
    return neighbours.Neighbours(*(np.take_along_axis(x, keep, axis=1) for x in near))


def fellows(gallery_labels: np.ndarray, query: Query) -> np.ndarray:
    """How many images of its class a query could find: R.

    Returns:
      int [m]; 0 for a query without a label.
    """
    labels = np.asarray(gallery_labels)
    classes = int(max(labels.max(), query.labels.max())) + 1
    count = np.bincount(labels[labels >= 0], minlength=max(classes, 1))
    return np.where(query.labels >= 0, count[query.labels] - (query.own >= 0), 0)


def recall(hit: np.ndarray, k: int) -> float:
    """Share of queries with a hit among the first k.

    Args:
      hit: bool [m, longest]: is the i-th neighbour of the query's class?
      k: how many are looked at.
    """
    return float(np.mean(hit[:, :k].any(1)))


def ap_at_r(hit: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """(1/R) Σ_{i=1}^{R} P(i) of every query, see `measure`.

    Args:
      hit: bool [m, longest], longest >= R.
      relevant: int [m], R >= 1.

    Returns:
      float64 [m] in [0, 1].
    """
    place = np.arange(1, hit.shape[1] + 1)
    hit = hit & (place <= relevant[:, None])
    precision = np.cumsum(hit, axis=1, dtype=np.int32) / place  # [m, longest]
    return np.einsum("ml,ml->m", precision, hit) / relevant


def pick(labels: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Rows to show, chosen without a look at what they find: a class each in turn, at random.

    Args:
      labels: int [m]; rows without a label (-1) count as a class of their own.
      count: how many.
      seed: the choice is a pure function of (labels, count, seed).

    Returns:
      int [min(count, m)], by class, and in the order of rows within one.
    """
    labels = np.asarray(labels)
    shuffled = np.random.Generator(np.random.Philox(seed)).permutation(len(labels))
    turn = np.zeros(len(labels), int)  # 0 for the first of its class that comes up, 1 for the next
    for name in np.unique(labels):
        members = shuffled[labels[shuffled] == name]
        turn[members] = np.arange(len(members))
    chosen = shuffled[np.argsort(turn[shuffled], kind="stable")[:count]]
    return chosen[np.lexsort((chosen, labels[chosen]))]


def check_ks(ks: Sequence[int], most: int) -> None:
    """Checks the lengths of the lists.

    Raises:
      UserError: none, or one that is no whole number from 1 to `most`.
    """
    if not len(ks):
        raise UserError("retrieve: ks is empty; recall@k needs a k, for example (1, 5, 10)")
    for k in ks:
        if k < 1 or k != int(k):
            raise UserError(f"retrieve: k must be a whole number of at least 1, got {k}")
        if k > most:
            raise UserError(f"retrieve: k = {k}, but a query can find {most:,} images at most")
