"""What the temperature of SimCLR does to its features: short runs on the digits.

    python -m benchmarks.temperature [--temperatures 0.02 0.05 0.2 1 5] [--seeds 0 1 2]
                                     [--at-once 2]

For each temperature and seed, `python -m ssl_jax.main --config configs/simclr.py:digits` and then
`configs/analyze.py` with the views of `digits`, of the embeddings behind the projector, which the
loss compares, and of the encoder's features; each in a process of its own under --runs; what is
finished is not repeated. Prints mean ± sd over the seeds, and over all runs the rank correlation of
the embeddings' numbers with the probes on the encoder's features.
"""

import functools
import json
import pathlib

from benchmarks import harness, tables

COLUMNS = ("alignment", "uniformity", "tolerance", "effective_rank", "knn_top1", "linear_top1")
PROBES = COLUMNS[-2:]
FEATURES = {"projector": "embeddings", "learned": "features of the encoder"}
NUMBERS = ("alignment", "uniformity", "alignment_and_uniformity", "tolerance")


def measure(temperature: float, seed: int, runs: pathlib.Path, more: tuple[str, ...]) -> dict:
    """The numbers of one run, for each of FEATURES; `more`: words of its command line."""
    folder = runs / f"simclr_t{temperature:g}_{seed}"
    harness.train(
        *("--config", "configs/simclr.py:digits", f"--config.method.temperature={temperature}"),
        *(f"--config.seed={seed}", "--config.report=False", f"--workdir={folder}", *more),
    )
    found = {}
    for features in FEATURES:
        file = folder / f"analyze_{features}" / "result.json"
        if not file.exists():
            harness.train(
                *("--config", "configs/analyze.py", f"--config.checkpoint={folder}"),
                *("--config.policy=digits", f"--config.features={features}"),
                f"--workdir={file.parent}",
            )
        found[features] = json.loads(file.read_text())
    return found


def main() -> None:
    """Runs what is missing and prints a table of each kind of features."""
    from scipy import stats

    parser = harness.parser(__doc__)
    five = [0.02, 0.05, 0.2, 1.0, 5.0]
    parser.add_argument("--temperatures", nargs="+", type=float, default=five)
    harness.run_flags(parser, (), "temperature", "runs")
    a = harness.parse(parser, temperatures=five[:2], seeds=[0])
    more = harness.TINY_RUN if a.tiny else ()
    jobs = {
        t: [functools.partial(measure, t, seed, a.runs, more) for seed in a.seeds]
        for t in a.temperatures
    }
    found = dict(harness.at_once(a.at_once, jobs))
    for features, title in FEATURES.items():
        rows = (line(t, [seed[features] for seed in seeds]) for t, seeds in found.items())
        print(f"\n{title}\n\n{tables.table(('temperature', *COLUMNS), rows)}")
    every = [run for seeds in found.values() for run in seeds]
    print(f"\nSpearman's ρ over {len(every)} runs, embeddings against probes on the features\n")
    for number in NUMBERS:
        cells = []
        for probe in PROBES:
            embeddings = [run["projector"][number] for run in every]
            r = stats.spearmanr(embeddings, [run["learned"][probe] for run in every])
            cells.append(f"{probe} {r.statistic:+.2f} (p = {r.pvalue:.3f})")
        print(f"{number:<26}{'  '.join(cells)}")
    harness.write(a.out, found)


def line(temperature: float, seeds: list[dict[str, float]]) -> list[str]:
    """The cells of a temperature: mean ± sd over the seeds."""
    cells = [f"{temperature:g}"]
    for column in COLUMNS:
        digits, scale = (1, 100) if "top1" in column else (2, 1)
        cells.append(tables.mean_sd([seed[column] for seed in seeds], digits, scale))
    return cells


if __name__ == "__main__":
    main()
