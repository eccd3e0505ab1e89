"""Every trained method by every protocol: the table of docs/results.md with few labels and all.

    python -m benchmarks.suite [--methods simclr byol] [--seeds 0 1 2] [--at-once 2]
                               [--runs runs/benchmark] [--finetune-steps 300]

Works on the runs of `benchmarks.digits`, which must be finished. For each, `configs/lowshot.py`
(linear probe on 1 % and 10 % of the labels) and `configs/finetune.py` (the whole network on all
labels), in processes of their own; what is finished is not repeated. The last lines are what to
compare with, for the networks and images of SimCLR's, MAE's and Jigsaw's runs: raw pixels, the
encoder as it began, and the same network trained with labels from fresh parameters (supervised).
"""

import functools
import json
import pathlib
import sys

from benchmarks import harness, tables
from ssl_jax.methods import METHODS

COLUMNS = ("kNN", "linear", "linear, 1 %", "linear, 10 %", "fine-tuned")
# The ResNet of all others at 28 pixels, a ViT, and the ResNet at 36 pixels.
NETWORKS = ("simclr", "mae", "jigsaw")


def job(name: str, run: pathlib.Path, folder: str, *more: str) -> dict:
    """The result.json of one job on one run, started here unless it is there."""
    file = run / folder / "result.json"
    if not file.exists():
        words = ("--config", f"configs/{name}.py", f"--config.checkpoint={run}")
        harness.train(*words, f"--workdir={run / folder}", *more)
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


def main() -> None:
    """Runs what is missing and prints a line after every method."""
    parser = harness.parser(__doc__)
    harness.run_flags(parser, METHODS, "benchmark", "jobs")
    parser.add_argument("--finetune-steps", type=int, default=300)
    a = harness.parse(parser, seeds=[0], finetune_steps=5)
    runs = {m: [a.runs / f"{m}_digits_{s}" for s in a.seeds] for m in METHODS}
    for run in [run for method in a.methods for run in runs[method]]:
        if not (run / "result.json").exists():
            sys.exit(f"{run} is not finished; python -m benchmarks.digits makes it")

    def jobs(f, *more, of):
        return [functools.partial(f, run, *more) for run in of]

    todo = {m: jobs(measure, a.finetune_steps, of=runs[m]) for m in a.methods}
    for m in [m for m in NETWORKS if m in a.methods]:
        todo[f"untrained encoder of {m}"] = jobs(baseline, "untrained", of=runs[m])
        todo[f"from scratch, as {m}"] = jobs(scratch, a.finetune_steps, of=runs[m])
    todo["raw pixels"] = jobs(baseline, "pixels", of=runs[a.methods[0]][:1])
    print(tables.head(("method", *COLUMNS)))
    found = {}
    for name, seeds in harness.at_once(a.at_once, todo):
        found[name] = seeds
        cells = ([s[column] for s in seeds if column in s] for column in COLUMNS)
        print(tables.row([name, *(tables.mean_sd(c, scale=100) for c in cells)]), flush=True)
        harness.write(a.out, found)


if __name__ == "__main__":
    main()
