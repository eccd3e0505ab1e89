"""The linear probe's two solvers and scikit-learn on the features of finished runs.

    python -m benchmarks.linear [--methods simclr byol] [--seeds 0 1 2] [--at-once 2]
                                [--runs runs/benchmark]

Works on the runs of `benchmarks.digits`. Of each it takes the features once and fits, on all
training images: L-BFGS, its C chosen on a hold-out (`configs/linear.py`); scikit-learn's
LogisticRegression at that C, to its optimum; and the grid of SGD behind a BatchNorm
(`configs/linear.py:sgd`), its rate and decay chosen on the same hold-out. Prints top-1 on test.
"""

import functools
import json
import pathlib

from benchmarks import harness, tables
from ssl_jax.methods import METHODS


def measure(run: pathlib.Path) -> dict[str, float]:
    """Top-1 of all three in percent and what was chosen, in this process."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    from ssl_jax.evaluate import probing
    from ssl_jax.evaluate.features import apart, run_features
    from ssl_jax.evaluate.probes import linear, linear_sgd
    from ssl_jax.processes import host
    from ssl_jax.runs import config as configs

    config, _ = configs.load("configs/linear.py:sgd")
    config.checkpoint = str(run)
    cluster = host.Cluster(1, 0, 1)
    opened = probing.open_run(config, *probing.begin(config, cluster), cluster)
    f = run_features.features(opened, config.batch)
    sets = (f.train, f.train_labels, f.test, f.test_labels, opened.classes)
    ours = linear.probe(*sets, grid=tuple(config.grid), holdout=config.holdout, seed=config.seed)
    mean, scale = linear.standardisation(f.train)
    theirs = LogisticRegression(C=ours["C"], tol=1e-9, max_iter=10_000)
    theirs.fit(((f.train - mean) * scale).astype(np.float64), f.train_labels)
    linear_sgd.complete(config.sgd)
    train = apart.alone(f.train, f.train_labels)
    grid = linear_sgd.probe(
        lambda epoch: train,
        *(train, f.test, f.test_labels, opened.classes, config.sgd),
        holdout=config.holdout,
        seed=config.seed,
    )
    return {
        "lbfgs": 100 * ours["top1"],
        "sklearn": 100 * theirs.score((f.test - mean) * scale, f.test_labels),
        "sgd": 100 * grid["top1"],
        "C": ours["C"],
        "learning_rate": grid["learning_rate"],
        "weight_decay": grid["weight_decay"],
    }


COLUMNS = ("method", "L-BFGS", "− scikit-learn", "SGD grid − L-BFGS", "C", "rates")


def main() -> None:
    """Measures every run, prints a line for every method and what holds over all runs."""
    parser = harness.parser(__doc__)
    harness.run_flags(parser, METHODS, "benchmark", "processes")
    parser.add_argument("--measure", type=pathlib.Path, help="this run, in this process")
    a = harness.parse(parser, seeds=[0])
    if a.measure:
        print(json.dumps(measure(a.measure)))
        return
    process = functools.partial(harness.measured, "benchmarks.linear", "--measure")
    jobs = {
        method: [functools.partial(process, str(a.runs / f"{method}_digits_{s}")) for s in a.seeds]
        for method in a.methods
    }
    print(tables.head(COLUMNS))
    every = {}

    def gaps(found, one, other):
        return [f[one] - f[other] for f in found]

    for method, found in harness.at_once(a.at_once, jobs):
        every[method] = found
        cells = [method, tables.mean_sd([f["lbfgs"] for f in found], 2)]
        cells += [tables.mean_sd(gaps(found, "lbfgs", "sklearn"), 2, sign="+")]
        cells += [tables.mean_sd(gaps(found, "sgd", "lbfgs"), 2, sign="+")]
        cells += [", ".join(f"{f[k]:g}" for f in found) for k in ("C", "learning_rate")]
        print(tables.row(cells), flush=True)
        harness.write(a.out, every)
    runs = [f for found in every.values() for f in found]
    for name, of in (
        ("L-BFGS − scikit-learn", gaps(runs, "lbfgs", "sklearn")),
        ("SGD grid − L-BFGS", gaps(runs, "sgd", "lbfgs")),
    ):
        largest, half = max(map(abs, of)), sum(abs(g) <= 0.5 + 1e-9 for g in of)
        print(
            f"{name}: {tables.mean_sd(of, 2, sign='+')} points, at most {largest:.2f}, "
            f"within 0.5 in {half} of {len(of)}"
        )


if __name__ == "__main__":
    main()
