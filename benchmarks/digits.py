"""Every method on the embedded digits over several seeds: the table of docs/results.md.

    python -m benchmarks.digits [--methods simclr byol] [--preset digits|peer] [--seeds 0 1 2]
                                [--at-once 2]

Each run is `python -m ssl_jax.main --config configs/<method>.py:<preset>` in a process of its own
under --runs; a finished run is not repeated, an interrupted one continues. Words after `--` go to
every run (`-- --config.evaluate.split=holdout`). With --at-once N, N runs share the cores, each
with its own: more runs an hour, fewer images a second in each.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from benchmarks import cores
from ssl_jax.methods import METHODS
from ssl_jax.runs import config as configs

COLUMNS = ("kNN", "linear", "images/s", "memory (GiB)", "wall (s)")


def run(method: str, preset: str, seed: int, runs: pathlib.Path, more: list[str]) -> dict:
    """The result.json of one run, started here unless it is finished.

    Raises:
      SystemExit: the run failed; its output is shown.
    """
    folder = runs / f"{method}_{preset}_{seed}"
    command = [
        *(sys.executable, "-m", "ssl_jax.main"),
        *("--config", f"configs/{method}.py:{preset}"),
        *(f"--config.seed={seed}", f"--workdir={folder}", *more),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}")
    return json.loads((folder / "result.json").read_text())


def table(results: dict[str, list[dict]]) -> str:
    """Markdown: a line for each method, mean ± sd over its seeds."""

    def spread(values, scale=1.0, digits=1):
        values = [scale * v for v in values]
        mean = f"{statistics.mean(values):,.{digits}f}"
        return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.{digits}f}"

    lines = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for method, seeds in results.items():
        cells = [
            spread([r["knn_top1"] for r in seeds], 100),
            spread([r["linear_top1"] for r in seeds], 100),
            spread([r["images_per_second"] for r in seeds], digits=0),
            spread([r["peak_memory_bytes"] for r in seeds], 2**-30),
            spread([r["wall_seconds"] for r in seeds], digits=0),
        ]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing and prints the table after every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--preset", default="digits")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="runs that share the cores")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs") / "benchmark")
    arguments, more = parser.parse_known_args()
    more = [word for word in more if word != "--"]
    methods = [
        name
        for name in arguments.methods
        if arguments.preset in configs.load_module(f"configs/{name}.py").PRESETS
    ]
    results = {}
    with cores.pool(arguments.at_once) as pool:
        started = {
            method: [
                pool.submit(run, method, arguments.preset, seed, arguments.runs, more)
                for seed in arguments.seeds
            ]
            for method in methods
        }
        try:
            for method, seeds in started.items():
                results[method] = [seed.result() for seed in seeds]
                print(table({method: results[method]}).splitlines()[-1], flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    print("\n" + table(results))


if __name__ == "__main__":
    main()
