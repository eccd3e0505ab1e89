"""Probing by nearest neighbours: no training, one look at the features."""

import jax
from ml_collections import ConfigDict

from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import run_features
from ssl_jax.evaluate.probes import knn, neighbours
from ssl_jax.processes import host


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Classifies test images by the vote of the nearest training images (evaluate/probes/knn.py).

    The neighbours are found once, for the largest k. The result is the weighted vote with
    `config.k` and `config.temperature`; majority votes by cosine and by Euclidean distance stand
    beside it. A grid of other k and temperatures is a table and never the result: its best member
    would be chosen on the very images that it is judged on.

    Every process keeps the features of its own part of the training images.

    Args:
      config: `probing.defaults('knn')` with k, temperature, grid_k and grid_temperature.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: see `probing.each` and `knn.classify`.
    """
    ks = tuple(config.grid_k) or (config.k,)
    temperatures = tuple(config.grid_temperature) or (config.temperature,)
    knn.check_grid((config.k, *ks), (config.temperature, *temperatures))

    def measure(o: probing.Opened):
        knn.check_bank(config.k, len(o.learn.rows), "k")
        knn.check_bank(max(ks), len(o.learn.rows), "grid_k")
        f = run_features.features_apart(o, config.batch, config.features)
        labels = f.train.labels
        knn.check_labels(labels, o.classes)
        near = neighbours.by_cosine_apart(f.train, f.test, max(config.k, *ks))
        metric = neighbours.by_distance_apart(f.train, f.test, config.k)
        votes = {
            "knn": knn.weighted(near, labels, o.classes, config.k, config.temperature),
            "plain_cosine": knn.majority(near, labels, o.classes, config.k),
            "plain_euclidean": knn.majority(metric, labels, o.classes, config.k),
        }
        reached = {n: knn.accuracy(scores, f.test_labels) for n, scores in votes.items()}
        found = {f"{n}_{top}": x for n, both in reached.items() for top, x in both.items()}
        found["images_per_second"] = f.images_per_second
        found |= {"features": config.features, "k": config.k, "temperature": config.temperature}
        if config.grid_k or config.grid_temperature:
            found["grid"] = knn.grid(near, labels, f.test_labels, o.classes, ks, temperatures)
            if jax.process_index() == 0:
                print(table(found["grid"], config.split))
        return found

    probing.each(config, cluster, measure)
    return 0


def table(grid: list[dict[str, float]], split: str) -> str:
    """The grid in top-1 (%): a line for every k, a column for every temperature.

    Args:
      grid: from `knn.grid`.
      split: what it was judged on.
    """
    ks = list(dict.fromkeys(cell["k"] for cell in grid))
    temperatures = list(dict.fromkeys(cell["temperature"] for cell in grid))
    top1 = {(cell["k"], cell["temperature"]): cell["top1"] for cell in grid}
    lines = [
        "top-1 (%) of the grid",
        "       k" + "".join(f"{f'T={t:g}':>9}" for t in temperatures),
    ]
    lines += [f"{k:>8}" + "".join(f"{100 * top1[k, t]:9.2f}" for t in temperatures) for k in ks]
    if split == "test":
        lines.append("  (no result: choose k and T on --config.split=holdout, then read test once)")
    return "\n".join(lines)
