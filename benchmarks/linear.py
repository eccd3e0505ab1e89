"""The linear probe's two solvers and scikit-learn on the features of finished runs.

    python -m benchmarks.linear [--methods simclr byol] [--seeds 0 1 2] [--at-once 2]
                                [--runs runs/benchmark]

Works on the runs of `benchmarks.digits`. Of each it takes the features once and fits, on all
training images: L-BFGS, its C chosen on a hold-out (`configs/linear.py`); scikit-learn's
LogisticRegression at that C, to its optimum; and the grid of SGD behind a BatchNorm
(`configs/linear.py:sgd`), its rate and decay chosen on the same hold-out. Prints top-1 on test.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from benchmarks import cores
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


def process(run: pathlib.Path) -> dict[str, float]:
    """`measure` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.linear", "--measure", str(run)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def spread(values: list[float], sign: str = "") -> str:
    """'97.2 ± 0.4'."""
    mean = f"{statistics.mean(values):{sign}.2f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2f}"


def main() -> None:
    """Measures every run, prints a line for every method and what holds over all runs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="processes that share the cores")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs") / "benchmark")
    parser.add_argument("--measure", type=pathlib.Path, help="this run, in this process")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return
    columns = ("method", "L-BFGS", "− scikit-learn", "SGD grid − L-BFGS", "C", "rates")
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    every = []
    with cores.pool(arguments.at_once) as pool:
        started = {
            method: [
                pool.submit(process, arguments.runs / f"{method}_digits_{seed}")
                for seed in arguments.seeds
            ]
            for method in arguments.methods
        }
        for method, seeds in started.items():
            found = [seed.result() for seed in seeds]
            every += found
            cells = (
                spread([f["lbfgs"] for f in found]),
                spread([f["lbfgs"] - f["sklearn"] for f in found], "+"),
                spread([f["sgd"] - f["lbfgs"] for f in found], "+"),
                ", ".join(f"{f['C']:g}" for f in found),
                ", ".join(f"{f['learning_rate']:g}" for f in found),
            )
            print(f"| {method} | " + " | ".join(cells) + " |", flush=True)
    for name, gaps in (
        ("L-BFGS − scikit-learn", [f["lbfgs"] - f["sklearn"] for f in every]),
        ("SGD grid − L-BFGS", [f["sgd"] - f["lbfgs"] for f in every]),
    ):
        largest, half = max(map(abs, gaps)), sum(abs(g) <= 0.5 + 1e-9 for g in gaps)
        print(
            f"{name}: {spread(gaps, '+')} points, at most {largest:.2f}, "
            f"within 0.5 in {half} of {len(gaps)}"
        )


if __name__ == "__main__":
    main()
