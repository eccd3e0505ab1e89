"""Every trained method by every protocol: the table of docs/results.md with few labels and all.

    python -m benchmarks.suite [--methods simclr byol] [--seeds 0 1 2] [--at-once 2]
                               [--runs runs/benchmark] [--finetune-steps 300]

Works on the runs of `benchmarks.digits`, which must be finished. For each, `configs/lowshot.py`
(linear probe on 1 % and 10 % of the labels) and `configs/finetune.py` (the whole network on all
labels), in processes of their own; what is finished is not repeated. The last lines are what to
compare with, for the networks and images of SimCLR's, MAE's and Jigsaw's runs: raw pixels, the
encoder as it began, and the same network trained with labels from fresh parameters (supervised).
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from benchmarks import cores
from ssl_jax.methods import METHODS

COLUMNS = ("kNN", "linear", "linear, 1 %", "linear, 10 %", "fine-tuned")
# The ResNet of all others at 28 pixels, a ViT, and the ResNet at 36 pixels.
NETWORKS = ("simclr", "mae", "jigsaw")


def job(name: str, run: pathlib.Path, folder: str, *more: str) -> dict:
    """The result.json of one job on one run, started here unless it is there.

    Raises:
      SystemExit: the job failed; its output is shown.
    """
    file = run / folder / "result.json"
    if not file.exists():
        command = [
            *(sys.executable, "-m", "ssl_jax.main", "--config", f"configs/{name}.py"),
            *(f"--config.checkpoint={run}", f"--workdir={run / folder}", *more),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            sys.exit(f"{' '.join(command)}\n{done.stdout}")
    return json.loads(file.read_text())


def measure(run: pathlib.Path, steps: int) -> dict[str, float]:
    """All numbers of one run, in [0, 1]."""
    tuned = job("finetune", run, "finetune", f"--config.steps={steps}")
    own = json.loads((run / "result.json").read_text())
    return {**probed(run, "learned", own), "fine-tuned": tuned["finetune_top1"]}


def baseline(run: pathlib.Path, features: str) -> dict[str, float]:
    """The probes on 'pixels' or on the 'untrained' encoder of a run."""
    own = json.loads((run / "result.json").read_text())
    return probed(run, features, own["baselines"][features])


def probed(run: pathlib.Path, features: str, own: dict) -> dict[str, float]:
    """The probes on frozen features; `own`: what the run itself found with all labels."""
    folder = "lowshot" if features == "learned" else f"lowshot_{features}"
    few = job("lowshot", run, folder, "--config.shots=()", f"--config.features={features}")
    return {
        "kNN": own["knn_top1"],
        "linear": own["linear_top1"],
        "linear, 1 %": few["linear_top1_1pct"],
        "linear, 10 %": few["linear_top1_10pct"],
    }


def scratch(run: pathlib.Path, steps: int) -> dict[str, float]:
    """The encoder of a run from fresh parameters, those of the run's seed, on all labels."""
    seed = json.loads((run / "result.json").read_text())["seed"]
    more = ("--config.scratch=True", f"--config.steps={steps}", f"--config.seed={seed}")
    return {"fine-tuned": job("finetune", run, "finetune_scratch", *more)["finetune_top1"]}


def line(name: str, seeds: list[dict[str, float]]) -> str:
    """A line of the table, mean ± sd over the seeds in percent."""
    cells = []
    for column in COLUMNS:
        values = [100 * found[column] for found in seeds if column in found]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "–")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    """Runs what is missing and prints a line after every method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=1, help="jobs that share the cores")
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs") / "benchmark")
    parser.add_argument("--finetune-steps", type=int, default=300)
    arguments = parser.parse_args()
    runs = {m: [arguments.runs / f"{m}_digits_{s}" for s in arguments.seeds] for m in METHODS}
    for method in arguments.methods:
        for run in runs[method]:
            if not (run / "result.json").exists():
                sys.exit(f"{run} is not finished; python -m benchmarks.digits makes it")
    print("| method | " + " | ".join(COLUMNS) + " |\n" + "|---" * (len(COLUMNS) + 1) + "|")
    with cores.pool(arguments.at_once) as pool:
        steps = arguments.finetune_steps
        started = {
            method: [pool.submit(measure, run, steps) for run in runs[method]]
            for method in arguments.methods
        }
        for method in [m for m in NETWORKS if m in arguments.methods]:
            started[f"untrained encoder of {method}"] = [
                pool.submit(baseline, run, "untrained") for run in runs[method]
            ]
            started[f"from scratch, as {method}"] = [
                pool.submit(scratch, run, steps) for run in runs[method]
            ]
        first = runs[arguments.methods[0]]
        started["raw pixels"] = [pool.submit(baseline, run, "pixels") for run in first[:1]]
        try:
            for name, seeds in started.items():
                print(line(name, [seed.result() for seed in seeds]), flush=True)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


if __name__ == "__main__":
    main()
