"""Probing one encoder on several data sets."""

import pathlib
import statistics
from typing import Any

import jax
from ml_collections import ConfigDict

from ssl_jax.checkpoints import kept
from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import multilabel, probing
from ssl_jax.evaluate.features import run_features
from ssl_jax.evaluate.probes import average_precision, knn, linear
from ssl_jax.processes import host
from ssl_jax.runs import workdir
from ssl_jax.train import past


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """One table: linear top-1, mean accuracy per class and kNN on each of `config.sources`.

    Every data set is opened in the size and channels of the run, probed as in the linear and knn
    jobs, and judged on its test split, or on a fixed fifth of train where it has none.

    `config.multilabel` adds a set whose images have several labels, by mean average precision
    (evaluate/probes/average_precision.py).

    Args:
      config: `probing.defaults('transfer')` with the fields of configs/transfer.py.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0.

    Raises:
      UserError: no data set, one named twice, or see `probing.open_run`, `linear.probe` and
        `multilabel.read_targets`.
    """
    given = named(config)
    if config.classifier not in average_precision.CLASSIFIERS:
        raise UserError(
            f"--config.classifier is {config.classifier!r}."
            f"{near_misses(config.classifier, average_precision.CLASSIFIERS)}"
        )
    knn.check_grid((config.k,), (config.temperature,))
    linear.check_choice(config.grid, config.holdout)
    if config.folds < 2:
        raise UserError(f"--config.folds is {config.folds}; it must be at least 2")
    if not config.costs or not all(c > 0 for c in config.costs):
        raise UserError(f"--config.costs is {tuple(config.costs)}; it takes numbers above 0")
    runs = probing.begin(config, cluster)
    results = []
    for place in runs:
        # The encoder is read once a data set: little beside running it.
        single = [one(config, place, cluster, key, source) for key, source in given.items()]
        multi = [multilabel.measure(config, place, cluster)] if config.multilabel else []
        results.append(conclude(config, place, cluster, single, multi, alone=len(runs) == 1))
    if len(runs) > 1:
        probing.summarise(config, results)
    return 0


def named(config: ConfigDict) -> dict[str, str]:
    """Short name -> data.source of every data set of `config.sources`.

    Raises:
      UserError: no data set at all, two of one name, or one in data.source.
    """
    if config.data.source:
        raise UserError(
            f"transfer takes a list: --config.sources={config.data.source} in place of "
            "--config.data.source"
        )
    given: dict[str, str] = {}
    for source in probing.listed(config.sources or ""):
        short = probing.short_name(source)
        if short in given:
            raise UserError(
                f"--config.sources: {given[short]} and {source} are both called {short}"
            )
        given[short] = source
    if not given and not config.multilabel:
        raise UserError(
            "which data sets? add --config.sources=digits,tfds:cifar10 or --config.multilabel=CSV"
        )
    return given


def one(
    config: ConfigDict, run: pathlib.Path, cluster: host.Cluster, key: str, source: str
) -> dict[str, Any]:
    """A row of the table: a data set with one label an image."""
    changed = config.copy_and_resolve_references()
    changed.data.source = source
    o = probing.open_run(changed, run, cluster)
    knn.check_bank(config.k, len(o.learn.rows), "k")
    f = run_features.features(o, config.batch)
    line = linear.probe(
        f.train,
        f.train_labels,
        f.test,
        f.test_labels,
        o.classes,
        grid=tuple(config.grid),
        holdout=config.holdout,
        seed=config.seed,
    )
    scores = knn.classify(
        f.train, f.train_labels, f.test, o.classes, k=config.k, temperature=config.temperature
    )
    return {
        "name": key,
        "source": source,
        "classes": o.classes,
        "train_examples": len(f.train),
        "test_examples": len(f.test),
        "judged_on": probing.judged_on(o),
        "linear_top1": line["top1"],
        "per_class_accuracy": line["mean_per_class"],
        "knn_top1": knn.accuracy(scores, f.test_labels)["top1"],
        "step": o.restored.step,
    }


def conclude(
    config: ConfigDict,
    run: pathlib.Path,
    cluster: host.Cluster,
    single: list[dict[str, Any]],
    multi: list[dict[str, Any]],
    alone: bool,
) -> dict[str, Any]:
    """Prints the table of one run and writes its result.json (process 0 alone).

    Returns:
      the content of result.json: every number under its own name, besides the table.
    """
    run, number = kept.locate(run)
    step = config.step if number is None else str(number)
    saved = past.read(run)
    flat = {}
    for row in (*single, *multi):
        for field in MEASURES:
            if field in row:
                flat[f"{field}_{row['name']}"] = row[field]
    if len(single) > 1:
        for field in ("linear_top1", "per_class_accuracy", "knn_top1"):
            flat[f"{field}_mean"] = statistics.mean(row[field] for row in single)
    result = {
        "job": config.job,
        "method": saved.config.method.name,
        "seed": saved.config.seed,
        "checkpoint": str(run),
        "step": (single + multi)[0]["step"],
        **flat,
        "table": single + multi,
    }
    place = (
        pathlib.Path(config.workdir)
        if alone and config.workdir
        else run / probing.name_of(config, step)
    )
    workdir.write_result(place / "result.json", lambda: result)
    if jax.process_index() > 0:
        return result
    print(f"transfer of {saved.config.method.name} after {result['step']:,} steps, in %")
    print("\n".join(table(single, multi, flat)))
    print(f"written to {place / 'result.json'}")
    return result


# Numbers of a row that are averaged over runs.
MEASURES = ("linear_top1", "per_class_accuracy", "knn_top1", "mean_ap", "mean_ap_11point")


def table(single: list[dict], multi: list[dict], flat: dict[str, float]) -> list[str]:
    """The lines of the console's table."""

    def line(row, *fields):
        counts = f"{row['train_examples']:>9,}{row['test_examples']:>9,}  {row['judged_on']:<10}"
        return f"  {row['name']:<20}{counts}" + "".join(f"{100 * row[f]:>12.2f}" for f in fields)

    def head(*columns):
        return f"  {'data set':<20}{'train':>9}{'test':>9}  {'judged on':<10}" + "".join(
            f"{c:>12}" for c in columns
        )

    lines = []
    if single:
        fields = ("linear_top1", "per_class_accuracy", "knn_top1")
        lines.append(head("linear", "per class", "kNN"))
        lines += [line(row, *fields) for row in single]
        if len(single) > 1:
            means = "".join(f"{100 * flat[f'{f}_mean']:>12.2f}" for f in fields)
            lines.append(f"  {'mean':<50}{means}")
    if multi:
        lines.append(head("mAP", "11-point"))
        lines += [line(row, "mean_ap", "mean_ap_11point") for row in multi]
    return lines
