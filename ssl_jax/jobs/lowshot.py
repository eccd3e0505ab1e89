"""Probing with few labels: 1 % and 10 % of them, and k of every class."""

import statistics
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import run_features
from ssl_jax.evaluate.probes import knn, linear, lowshot
from ssl_jax.processes import host


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Linear probe and kNN on fixed, class-balanced lists of few labelled images.

    The encoder does not move (fine-tuning it on the same lists is another job). Of every list there
    are several draws; the numbers are their means, `…_sd` their standard deviations (n − 1).

    The linear probe is that of the linear job: C chosen on a hold-out of the few labels themselves.
    Where a class has a single label nothing can be held out: C is then `config.c`. kNN needs no
    choice: cosine, k = 20 (or all there are), weights exp(cos / 0.1).

    Args:
      config: `probing.defaults('lowshot')` with the fields of configs/lowshot.py.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: a field that cannot be, a class with too few labels for `shots`, or see
        `probing.each` and `linear.probe`.
    """
    if config.draws < 1:
        raise UserError(f"--config.draws is {config.draws}; it must be at least 1")
    knn.check_grid((config.k,), (config.temperature,))
    linear.check_choice(config.grid, config.holdout)
    if not config.c > 0:
        raise UserError(f"--config.c is {config.c}; it must be above 0")
    if not config.shares and not config.shots:
        raise UserError("--config.shares and --config.shots are both empty; give one of them")

    def measure(o: probing.Opened) -> dict[str, Any]:
        # Lists are drawn from all labels; of the images only the listed ones are encoded.
        labels, seeds = (
            run_features.labels_of(o.learn),
            range(config.seed, config.seed + config.draws),
        )
        lists = drawn(labels, config.shares, config.shots, seeds)
        rows = np.unique(np.concatenate([rows for draws in lists.values() for rows, _ in draws]))
        listed = o._replace(learn=o.learn._replace(rows=o.learn.rows[rows]))
        f = run_features.features(listed, config.batch, config.features)
        means: dict[str, float] = {}
        draws: dict[str, list[float]] = {}
        for which, of in lists.items():
            found = [on(f, np.searchsorted(rows, few), o.classes, config, s) for few, s in of]
            for probe in ("linear", "knn"):
                key = f"{probe}_top1_{which}"
                draws[key] = [one[probe] for one in found]
                means[key] = statistics.mean(draws[key])
                if config.draws > 1:
                    means[f"{key}_sd"] = statistics.stdev(draws[key])
        return {
            **means,
            "images_per_second": f.images_per_second,
            "features": config.features,
            "draws": draws,
        }

    probing.each(config, cluster, measure)
    return 0


def drawn(
    labels: np.ndarray, shares: tuple[float, ...], shots: tuple[int, ...], seeds: range
) -> dict[str, list[tuple[np.ndarray, int]]]:
    """Name of a kind of list ('1pct', '5shot') -> (rows, seed) of every draw."""
    lists = {
        f"{100 * share:g}pct": [(lowshot.fraction(labels, share, seed), seed) for seed in seeds]
        for share in shares
    }
    for k in shots:
        lists[f"{k}shot"] = [(lowshot.shots(labels, k, seed), seed) for seed in seeds]
    return lists


def on(
    f: run_features.Features, rows: np.ndarray, classes: int, config: ConfigDict, seed: int
) -> dict[str, float]:
    """Top-1 of both probes that learn from `rows` alone, in [0, 1]."""
    few, labels = f.train[rows], f.train_labels[rows]
    split = (few, labels, f.test, f.test_labels, classes)
    if np.unique(labels, return_counts=True)[1].min() > 1:
        line = linear.probe(*split, grid=tuple(config.grid), holdout=config.holdout, seed=seed)
    else:
        line = linear.probe_at(*split, c=config.c)
    scores = knn.classify(few, labels, f.test, classes, k=config.k, temperature=config.temperature)
    return {"linear": line["top1"], "knn": knn.accuracy(scores, f.test_labels)["top1"]}
