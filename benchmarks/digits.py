"""Every method on the embedded digits over several seeds: the table of docs/results.md.

    python -m benchmarks.digits [--methods simclr byol] [--preset digits|peer] [--seeds 0 1 2]
                                [--at-once 2]

Each run is `python -m ssl_jax.main --config configs/<method>.py:<preset>` in a process of its own
under --runs; a finished run is not repeated, an interrupted one continues. Words after `--` go to
every run (`-- --config.evaluate.split=holdout`). With --at-once N, N runs share the cores, each
with its own: more runs an hour, fewer images a second in each.
"""

import functools
import json
import pathlib

from benchmarks import harness, tables
from ssl_jax.methods import METHODS
from ssl_jax.runs import config as configs

COLUMNS = ("method", "kNN", "linear", "images/s", "memory (GiB)", "wall (s)")


def run(method: str, preset: str, seed: int, runs: pathlib.Path, more: list[str]) -> dict:
    """The result.json of one run, started here unless it is finished."""
    folder = runs / f"{method}_{preset}_{seed}"
    config = ("--config", f"configs/{method}.py:{preset}", f"--config.seed={seed}")
    harness.train(*config, f"--workdir={folder}", *more)
    return json.loads((folder / "result.json").read_text())


def line(method: str, seeds: list[dict]) -> list[str]:
    """The cells of a method: mean ± sd over its seeds."""
    scales = {"knn_top1": (1, 100), "linear_top1": (1, 100), "images_per_second": (0, 1)}
    scales |= {"peak_memory_bytes": (1, 2**-30), "wall_seconds": (0, 1)}
    of = scales.items()
    return [method, *(tables.mean_sd([r[k] for r in seeds], d, scale) for k, (d, scale) in of)]


def main() -> None:
    """Runs what is missing and prints a line after every method, then the table."""
    parser = harness.parser(__doc__)
    harness.run_flags(parser, METHODS, "benchmark", "runs")
    parser.add_argument("--preset", default="digits")
    a, more = harness.parse_known(parser, seeds=[0])
    more = [word for word in more if word != "--"] + (list(harness.TINY_RUN) if a.tiny else [])
    jobs = {
        method: [functools.partial(run, method, a.preset, seed, a.runs, more) for seed in a.seeds]
        for method in a.methods
        if a.preset in configs.load_module(f"configs/{method}.py").PRESETS
    }
    results = {}
    for method, seeds in harness.at_once(a.at_once, jobs):
        results[method] = seeds
        print(tables.row(line(method, seeds)), flush=True)
        harness.write(a.out, results)
    print("\n" + tables.table(COLUMNS, [line(*item) for item in results.items()]))


if __name__ == "__main__":
    main()
