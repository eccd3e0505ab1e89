"""What the temperature of SimCLR does to its features: short runs on the digits.

    python -m benchmarks.temperature [--temperatures 0.02 0.05 0.2 1 5] [--seeds 0 1 2]
                                     [--at-once 2]

For each temperature and seed, `python -m ssl_jax.main --config configs/simclr.py:digits` and then
`configs/analyze.py` with the views of `digits`, of the embeddings behind the projector, which the
loss compares, and of the encoder's features; each in a process of its own under --runs; what is
finished is not repeated. Prints mean ± sd over the seeds, and over all runs the rank correlation of
the embeddings' numbers with the probes on the encoder's features.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from benchmarks import cores

COLUMNS = ("alignment", "uniformity", "tolerance", "effective_rank", "knn_top1", "linear_top1")
PROBES = COLUMNS[-2:]
FEATURES = {"projector": "embeddings", "learned": "features of the encoder"}


def run(*words: str) -> None:
    """One process of ssl_jax.

    Raises:
      SystemExit: it failed; its output is shown.
    """
    command = [sys.executable, "-m", "ssl_jax.main", *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")


def measure(temperature: float, seed: int, runs: pathlib.Path) -> dict[str, dict[str, float]]:
    """The numbers of one run, for each of FEATURES."""
    folder = runs / f"simclr_t{temperature:g}_{seed}"
    run(
        *("--config", "configs/simclr.py:digits", f"--config.method.temperature={temperature}"),
        *(f"--config.seed={seed}", "--config.report=False", f"--workdir={folder}"),
    )
    found = {}
    for features in FEATURES:
        file = folder / f"analyze_{features}" / "result.json"
        if not file.exists():
            run(
                *("--config", "configs/analyze.py", f"--config.checkpoint={folder}"),
                *("--config.policy=digits", f"--config.features={features}"),
                f"--workdir={file.parent}",
            )
        found[features] = json.loads(file.read_text())
    return found


def main() -> None:
    """Runs what is missing and prints a table of each kind of features."""
    from scipy import stats

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--temperatures", nargs="+", type=float, default=[0.02, 0.05, 0.2, 1.0, 5.0]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="runs that share the cores")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs") / "temperature")
    arguments = parser.parse_args()
    with cores.pool(arguments.at_once) as pool:
        started = {
            t: [pool.submit(measure, t, seed, arguments.runs) for seed in arguments.seeds]
            for t in arguments.temperatures
        }
        found = {t: [seed.result() for seed in seeds] for t, seeds in started.items()}
    for features, title in FEATURES.items():
        print(f"\n{title}\n")
        print("| temperature | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
        for temperature, seeds in found.items():
            print(line(temperature, [seed[features] for seed in seeds]))
    every = [run for seeds in found.values() for run in seeds]
    print(f"\nSpearman's ρ over {len(every)} runs, embeddings against probes on the features\n")
    for number in ("alignment", "uniformity", "alignment_and_uniformity", "tolerance"):
        rhos = [
            stats.spearmanr(
                [run["projector"][number] for run in every], [run["learned"][p] for run in every]
            )
            for p in PROBES
        ]
        cells = (
            f"{p} {r.statistic:+.2f} (p = {r.pvalue:.3f})"
            for p, r in zip(PROBES, rhos, strict=True)
        )
        print(f"{number:<26}{'  '.join(cells)}")


def line(temperature: float, seeds: list[dict[str, float]]) -> str:
    """A line of the table, mean ± sd over the seeds."""
    cells = []
    for column in COLUMNS:
        scale, digits = (100, 1) if "top1" in column else (1, 2)
        values = [scale * seed[column] for seed in seeds]
        sd = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.{digits}f}{sd}")
    return f"| {temperature:g} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
