"""Clustering: do the features fall into the classes by themselves?"""

from ml_collections import ConfigDict

from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import run_features
from ssl_jax.evaluate.probes import clustering, linear
from ssl_jax.processes import host


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """k-means on the features (evaluate/probes/clustering.py), compared with the classes.

    The centres are found on the images to learn from, without labels; the images to judge on go to
    the nearest centre and are compared with their labels.

    Args:
      config: `probing.defaults('cluster')` with geometry, standardise, clusters, restarts and seed.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: see `clustering.check` and `probing.each`.
    """
    geometries = clustering.GEOMETRIES
    if config.geometry not in geometries:
        raise UserError(
            f"--config.geometry is {config.geometry!r}.{near_misses(config.geometry, geometries)}"
        )

    def measure(o: probing.Opened):
        clusters = o.classes if config.clusters is None else config.clusters
        clustering.check_counts(clusters, len(o.learn.rows), config.restarts)
        f = run_features.features(o, config.batch, config.features)
        clustering.check(f.train, f.test, clusters, config.restarts)
        learn, judge = f.train, f.test
        if config.standardise:
            mean, scale = linear.standardisation(learn)
            learn, judge = (learn - mean) * scale, (judge - mean) * scale
        group = clustering.kmeans if config.geometry == "euclidean" else clustering.spherical_kmeans
        found = group(learn, clusters, config.restarts, config.seed)
        assigned = clustering.assign(judge, found.centres, config.geometry)
        return {
            **clustering.agreement(f.test_labels, assigned),
            "clusters": clusters,
            "spread": found.spread,
            "spread_of_restarts": list(found.spreads),
            "images_per_second": f.images_per_second,
            "features": config.features,
        }

    probing.each(config, cluster, measure)
    return 0
