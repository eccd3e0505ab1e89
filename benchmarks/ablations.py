"""Where the papers say that a method collapses: short runs on the digits, with and without.

    python -m benchmarks.ablations [--methods simsiam] [--steps 200] [--seed 0]

One run after the other, each `python -m ssl_jax.main --config configs/<method>.py:digits` with a
switch, in a process of its own under --runs; a finished run is not repeated. Prints, for each, the
spread and the rank of the features (RankMe) and of the embeddings (participation ratio), kNN, and
the alarm that the run itself raised, without labels.
"""

import json
import pathlib

from benchmarks import harness, tables

# DINO with its centre; `digits` has Sinkhorn–Knopp, BatchNorm in the head and a faster teacher.
CENTRE = ("method.centring=mean", "method.projector.norm=False", "method.momentum=0.97")
# method -> [(what is done to it, the switches)]; the first is the preset.
ABLATIONS = {
    "simsiam": [
        ("the preset", ()),
        ("no stop-gradient", ("method.stop_gradient=False",)),
        ("no predictor", ("method.predictor={}", "optimizer.groups={}")),
    ],
    "byol": [
        ("the preset", ()),
        ("no stop-gradient, no momentum", ("method.stop_gradient=False", "method.momentum=0.0")),
        ("no predictor, no momentum", ("method.predictor={}", "method.momentum=0.0")),
        ("no predictor", ("method.predictor={}",)),
    ],
    "dino": [
        ("the preset (Sinkhorn)", ()),
        ("no centring", ("method.centring=none",)),
        ("no momentum", ("method.momentum=0.0",)),
        ("centre", CENTRE),
        ("centre, no momentum", (*CENTRE, "method.momentum=0.0")),
    ],
    "barlow_twins": [
        ("the preset", ()),
        ("redundancy alone", ("method.invariance=0.0",)),
        ("invariance alone", ("method.redundancy=0.0",)),
    ],
    "swav": [("the preset", ()), ("no Sinkhorn", ("method.sinkhorn=False",))],
}


COLUMNS = ("method", "what", "features: std", "rank", "embeddings: std", "rank", "kNN", "alarm")


def main() -> None:
    """Runs what is missing and prints a line for each."""
    parser = harness.parser(__doc__)
    parser.add_argument("--methods", nargs="+", choices=ABLATIONS, default=list(ABLATIONS))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--runs", type=pathlib.Path, default=pathlib.Path("runs") / "ablations")
    a = harness.parse(parser, steps=5)
    more = harness.TINY_RUN[1:] if a.tiny else ()
    print(tables.head(COLUMNS))
    found = []
    for method in a.methods:
        for what, switches in ABLATIONS[method]:
            folder = a.runs / f"{method}_{what.replace(',', '').replace(' ', '_')}"
            harness.train(
                *("--config", f"configs/{method}.py:digits", "--config.report=False"),
                *(f"--config.steps={a.steps}", f"--config.seed={a.seed}", f"--workdir={folder}"),
                *(*more, *(f"--config.{switch}" for switch in switches)),
            )
            result = json.loads((folder / "result.json").read_text())
            c = result["collapse"]
            cells = [method, what, f"{c['feature_std_ratio']:.2f}", f"{c['effective_rank']:.1f}"]
            cells += [f"{c['embedding_std']:.3f}", f"{c['embedding_rank']:.1f}"]
            cells += [f"{100 * result['knn_top1']:.1f}", (c["alarm"] or "–").split(":")[0]]
            print(tables.row(cells), flush=True)
            found.append({"method": method, "what": what, "result": result})
            harness.write(a.out, found)


if __name__ == "__main__":
    main()
