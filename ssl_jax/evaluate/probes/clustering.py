"""Clustering of features by k-means, and how well the clusters agree with the classes.

Labels are only used to judge: NMI, ARI, accuracy by the best one-to-one matching, purity. k-means
on Euclidean distances is scikit-learn's. scikit-learn has none by cosine: there it is
`losses.clustering.spherical_kmeans`.
"""

from typing import NamedTuple

import numpy as np

from ssl_jax.errors import UserError

GEOMETRIES = ("spherical", "euclidean")
FULL = 100_000  # rows up to which Euclidean k-means sees all of them in every iteration
SMALL = 10**9  # products in an iteration up to which one thread does them
ITERATIONS = 100  # of spherical k-means


class Clusters(NamedTuple):
    """The best of several k-means.

    Attributes:
      centres: float32 [k, d].
      spread: float, mean over the rows of the squared distance to the nearest centre (Euclidean)
        or of 1 − cosine (spherical): what k-means makes small.
      spreads: the same of every restart, in order.
    """

    centres: np.ndarray
    spread: float
    spreads: tuple[float, ...]


def kmeans(x: np.ndarray, clusters: int, restarts: int, seed: int) -> Clusters:
    """Lloyd's k-means on Euclidean distances, from k-means++ (Arthur and Vassilvitskii 2007).

    scikit-learn's KMeans with its defaults; above FULL rows MiniBatchKMeans (Sculley 2010,
    batches of 4,096 rows), which approximates it without reading all rows in every iteration.

    Args:
      x: float [n, d].
      clusters: k, at most n.
      restarts: from other starting points; the one with the least spread is kept.
      seed: restart i is a pure function of (x, clusters, seed + i).

    Returns:
      Clusters.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from threadpoolctl import threadpool_limits

    x = np.asarray(x, np.float32)
    # Threads that share little work wait for each other, endlessly so on a busy machine.
    threads = 1 if x.size * clusters < SMALL else None
    found = []
    for i in range(restarts):
        if len(x) <= FULL:
            model = KMeans(clusters, n_init=1, random_state=seed + i)
        else:
            model = MiniBatchKMeans(clusters, n_init=1, batch_size=4096, random_state=seed + i)
        with threadpool_limits(threads):
            centres = model.fit(x).cluster_centers_.astype(np.float32)
        found.append((float(np.mean(_distances(x, centres))), centres))
    return _best(found)


def spherical_kmeans(x: np.ndarray, clusters: int, restarts: int, seed: int) -> Clusters:
    """k-means by cosine: rows and centres have unit length (Dhillon and Modha 2001).

    It makes the mean of 1 − cos(x, its centre) small. Starts from k-means++ on the unit vectors,
    whose squared distances are 2 − 2 cos.

    Args:
      x: float [n, d], of any length.
      clusters, restarts, seed: as for `kmeans`.

    Returns:
      Clusters, the centres of unit length.
    """
    import jax
    import jax.numpy as jnp
    from sklearn.cluster import kmeans_plusplus

    from ssl_jax.losses import clustering

    x = unit(x)
    rows, member = jnp.asarray(x), jnp.ones(len(x), bool)
    # One compilation serves all restarts.
    improve = jax.jit(clustering.spherical_kmeans, static_argnames="iterations")
    found = []
    for i in range(restarts):
        start, _ = kmeans_plusplus(x, clusters, random_state=seed + i)
        centres, _ = improve(rows, member, jnp.asarray(unit(start).T), iterations=ITERATIONS)
        centres = np.asarray(centres).T
        found.append((float(np.mean(1 - _cosines(x, centres))), centres))
    return _best(found)


def assign(x: np.ndarray, centres: np.ndarray, geometry: str) -> np.ndarray:
    """The nearest centre of every row.

    Args:
      x: float [n, d].
      centres: float32 [k, d], from `kmeans` or `spherical_kmeans`.
      geometry: 'euclidean' or 'spherical', of the centres.

    Returns:
      int64 [n].
    """
    if geometry == "spherical":
        return np.concatenate([(b @ centres.T).argmax(1) for b in _blocks(unit(x))])
    half = (centres**2).sum(1) / 2
    return np.concatenate([(b @ centres.T - half).argmax(1) for b in _blocks(x)])


def agreement(labels: np.ndarray, clusters: np.ndarray) -> dict[str, float]:
    """How well clusters agree with classes; none of it depends on how the clusters are numbered.

    With N_{kc} rows of class c in cluster k, n rows, and I and H mutual information and entropy:

    - nmi: I(classes; clusters) / ((H(classes) + H(clusters)) / 2), in [0, 1] (scikit-learn);
    - ari: the Rand index over pairs, adjusted for chance: 1 if equal, 0 expected of random
      clusters, negative below that (Hubert and Arabie 1985; scikit-learn);
    - accuracy: max over one-to-one matchings σ of Σ_k N_{k σ(k)} / n (Yang et al. 2010; the
      Hungarian method of scipy). Clusters beyond the number of classes match none: all wrong;
    - purity: Σ_k max_c N_{kc} / n. It rises with the number of clusters, to 1 for n of them.

    Args:
      labels: int [n]; rows with label -1 are not counted.
      clusters: int [n].

    Returns:
      {'nmi', 'ari', 'accuracy', 'purity'}.

    Raises:
      UserError: no row has a label.
    """
    from scipy.optimize import linear_sum_assignment
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.metrics.cluster import contingency_matrix

    labels, clusters = np.asarray(labels), np.asarray(clusters)
    known = labels >= 0
    if not known.any():
        raise UserError("cluster: no row has a label to compare the clusters with")
    labels, clusters = labels[known], clusters[known]
    counts = contingency_matrix(labels, clusters)  # [classes, clusters] that occur
    matched = counts[linear_sum_assignment(counts, maximize=True)].sum()
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "accuracy": float(matched / len(labels)),
        "purity": float(counts.max(0).sum() / len(labels)),
    }


def unit(x: np.ndarray) -> np.ndarray:
    """Rows scaled to unit length, float32."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def check_counts(clusters: int, rows: int, restarts: int) -> None:
    """Checks what a user chooses before any feature is computed.

    Raises:
      UserError: fewer than two clusters, more than images, or no start.
    """
    if restarts < 1:
        raise UserError(f"--config.restarts is {restarts}; it must be at least 1")
    if not 2 <= clusters <= rows:
        raise UserError(
            f"cluster: {clusters} clusters of {rows:,} images; --config.clusters must lie between "
            "2 and the number of images to learn from"
        )


def check(learn: np.ndarray, judge: np.ndarray, clusters: int, restarts: int) -> None:
    """Checks what a user chooses against the features at hand.

    Raises:
      UserError: as `check_counts`, or features that are not finite.
    """
    check_counts(clusters, len(learn), restarts)
    for name, x in (("train", learn), ("test", judge)):
        if not np.isfinite(x).all():
            raise UserError(
                f"cluster: the {name} features are not all finite; the encoder diverged"
            )


def _best(found):
    spreads = tuple(spread for spread, _ in found)
    best = int(np.argmin(spreads))
    return Clusters(found[best][1], spreads[best], spreads)


def _blocks(x, rows=8192):
    """Blocks of rows: no [n, k] matrix for a large n."""
    x = np.asarray(x, np.float32)
    return (x[start : start + rows] for start in range(0, len(x), rows))


def _distances(x, centres):
    """Squared distance of every row to its nearest centre, [n]."""
    nearest = assign(x, centres, "euclidean")
    return np.concatenate(
        [((b - c) ** 2).sum(1) for b, c in zip(_blocks(x), _blocks(centres[nearest]), strict=True)]
    )


def _cosines(x, centres):
    """Cosine of every unit row to its nearest centre, [n]."""
    return np.concatenate([(b @ centres.T).max(1) for b in _blocks(x)])
