"""What every job on a checkpoint starts and ends with: runs opened, features, result.json.

`each` takes the runs of `config.checkpoint` one after the other, lets the job measure, writes and
prints; of several runs (seeds, say) it also reports mean and standard deviation.
"""

import os
import pathlib
import re
import statistics
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict, config_dict

from ssl_jax.checkpoints import kept
from ssl_jax.contract import batch
from ssl_jax.data import sources
from ssl_jax.devices import layout
from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.models import dtype_of
from ssl_jax.processes import host, talk
from ssl_jax.runs import workdir

SPLITS = ("test", "holdout")
# `config.features` of the jobs that have it: see run_features.py.
FEATURES = ("learned", "projector", "untrained", "pixels")
# Numbers of a result that say what was done: not averaged.
FACTS = (
    *("seed", "step", "train_examples", "test_examples", "classes"),
    *("labels", "shots", "labels_seed", "steps", "batch", "finetune_seed"),
    *("finetuned", "k", "temperature"),
)
# A number with one of these in its name is a share in [0, 1] and is shown in percent.
SHARES = ("top", "recall", "_ap", "iou", "accuracy", "delta")


class Opened(NamedTuple):
    """A run, restored, with images to measure it on.

    Attributes:
      run: workdir of the run.
      folder: where the job writes.
      step: which of its checkpoints was asked for: 'last', 'best' or a number.
      restored: its encoder and config.
      encoder: name of the encoder; None: the method's first.
      mesh: all devices.
      cluster: the processes of the job.
      dataset: name of the source.
      classes: number of classes, 0 without labels.
      class_names: in order of the labels; empty if unknown.
      learn: rows to learn from.
      judge: rows to be judged on; None without labels.
    """

    run: pathlib.Path
    folder: pathlib.Path
    step: str
    restored: encoder.Restored
    encoder: str | None
    mesh: Any
    cluster: host.Cluster
    dataset: str
    classes: int
    class_names: tuple[str, ...]
    learn: representation.Part
    judge: representation.Part | None


def defaults(job: str) -> ConfigDict:
    """The fields that the config of every such job has."""
    c = ConfigDict()
    c.job = job
    c.checkpoint = config_dict.placeholder(str)  # workdir of a run, or several: RUN,RUN,RUN
    c.workdir = config_dict.placeholder(str)  # None: RUN/<job>; of several runs, runs/<job>
    c.step = "last"  # of the checkpoint: last | best (by the metric of the run) | a number
    c.encoder = config_dict.placeholder(str)  # of the method, by name; None: the first
    c.dtype = "float32"  # of the network's computation: float32 | bfloat16, which is faster
    c.cpu_devices = config_dict.placeholder(int)
    c.compile_cache = "auto"
    c.batch = 500  # images at a time over all devices
    c.split = "test"  # holdout: judged on a fixed fifth of train, to choose hyperparameters on
    c.train_examples = 50_000  # most examples to learn from and to judge on
    c.test_examples = 50_000
    c.data = ConfigDict()  # None: as in the run
    c.data.source = config_dict.placeholder(str)
    c.data.dir = config_dict.placeholder(str)
    c.data.labels = config_dict.placeholder(bool)
    c.data.train_split = config_dict.placeholder(str)
    c.data.test_split = config_dict.placeholder(str)
    c.data.range = config_dict.placeholder(object)
    return c


def each(
    config: ConfigDict,
    cluster: host.Cluster,
    measure: Callable[[Opened], dict[str, Any]],
    *,
    labels: bool = True,
    compare: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None,
    rows: int | None = None,
    block: int = 1,
) -> list[dict[str, Any]]:
    """Measures every run of `config.checkpoint`, writes result.json and prints.

    Args:
      config: of the job, from `defaults`, with overrides.
      cluster: the processes of the job.
      measure: what the job finds of one run. Numbers are printed and averaged over the runs (see
        SHARES); anything else that JSON can hold is written.
      labels: the job needs them.
      compare: the results of several runs -> what the summary's result.json says besides.
      rows, block: as for `begin`.

    Returns:
      the content of every run's result.json.

    Raises:
      UserError: no checkpoint, no labels, data that cannot be opened, or what `measure` raises.
    """
    runs = begin(config, cluster, rows, block)
    results = []
    for run in runs:
        opened = open_run(config, run, cluster, alone=len(runs) == 1, labels=labels)
        results.append(conclude(opened, config, measure(opened)))
    if len(runs) > 1:
        summarise(config, results, compare(results) if compare else {})
    return results


def begin(
    config: ConfigDict, cluster: host.Cluster, rows: int | None = None, block: int = 1
) -> list[pathlib.Path]:
    """Checks the fields of `defaults`, arranges devices and cache, names the runs.

    Args:
      config: of the job.
      cluster: the processes of the job.
      rows: that the devices share at a time; None: `config.batch`.
      block: the rows of one device must be a multiple of it.

    Raises:
      UserError: no checkpoint, one named twice, an unknown split, dtype or unknown features, or a
        number of images below 1.
    """
    if not listed(config.checkpoint or ""):
        raise UserError(
            f"which checkpoint? add --config.checkpoint=RUN, the workdir of a run "
            f"(for example runs/quickstart), for {config.job} to work on"
        )
    check(config)
    runs = runs_named(config.checkpoint, "checkpoint")
    if config.workdir and len(runs) == 1:
        place = pathlib.Path(config.workdir)
        for file, what in (("config.json", "a pretraining run"), ("job.json", "a fine-tuning")):
            if (place / file).exists() and (config.job != "finetune" or file == "config.json"):
                raise UserError(
                    f"{place} holds {what}, whose result would be lost; choose another --workdir"
                )
    host.set_cpu_devices(
        config.cpu_devices or host.cpu_devices(rows or config.batch, block, cluster)
    )
    host.set_compile_cache(config.compile_cache)
    talk.connect(f"begin/{config.job}/{config.checkpoint}/{config.workdir}")
    return runs


def check(config: ConfigDict) -> None:
    """Checks the fields of `defaults` that a job has.

    Raises:
      UserError: the first that cannot be right.
    """
    for field in ("batch", "train_examples", "test_examples"):
        if config[field] < 1:
            raise UserError(f"--config.{field} is {config[field]}; it must be at least 1")
    for field in ("seed", "labels_seed"):
        if config.get(field, 0) < 0:
            raise UserError(f"--config.{field} is {config[field]}; it must be at least 0")
    if config.split not in SPLITS:
        raise UserError(f"--config.split is {config.split!r}.{near_misses(config.split, SPLITS)}")
    which = config.get("features", "learned")
    if which not in FEATURES:
        raise UserError(f"--config.features is {which!r}.{near_misses(which, FEATURES)}")
    if "dtype" in config:
        dtype_of(config.dtype, "dtype")


def name_of(config: ConfigDict, step: str | None = None) -> str:
    """Name of the folder that a job writes to: what sets its question apart is in it.

    'knn', 'knn_best' (of `config.step`), 'knn_pixels', 'knn_holdout', 'knn_cifar10' (of another
    `data.source`).
    """
    parts = [config.job]
    step = config.get("step", "last") if step is None else step
    parts += [step] if step != "last" else []
    if config.get("features", "learned") != "learned":
        parts.append(config.features)
    if config.get("encoder") is not None:
        parts.append(config.encoder)
    if config.data.source is not None:
        parts.append(short_name(config.data.source))
    if config.split != "test":
        parts.append(config.split)
    return "_".join(parts)


def short_name(source: str) -> str:
    """'cifar10' for tfds:cifar10, 'flowers' for folder:/a/flowers/, 'digits' for digits."""
    kind, _, rest = source.partition(":")
    return pathlib.Path(rest).name if kind == "folder" else (rest or kind).replace("/", "_")


def runs_named(text: str, field: str) -> list[pathlib.Path]:
    """The workdirs of 'RUN,RUN', the value of `config.<field>`.

    A comma that belongs to a path has a backslash before it; where there is a run in the folder of
    that very name, it needs none.

    Raises:
      UserError: one that is no run, or one named twice.
    """
    whole = kept.locate(pathlib.Path(text))[0]
    alone = bool(text) and any((whole / f).is_file() for f in ("config.json", "job.json"))
    names = [text] if alone else listed(text)
    folders = [pathlib.Path(os.path.expanduser(name)) for name in names]
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise UserError(f"--config.{field} names {folder} {places.count(place)} times")
        if workdir.read_config(kept.locate(folder)[0]) is None:
            comma = "; a comma in a path is written as \\," if len(folders) > 1 else ""
            raise UserError(
                f"--config.{field}: there is no run in {folder} (no config.json){comma}"
            )
    return folders


def listed(text: str) -> list[str]:
    """The parts of a list with commas between; a comma behind a backslash belongs to a part.

    'a, b\\,c' -> ['a', 'b,c']
    """
    parts = [part.strip().replace("\\,", ",") for part in re.split(r"(?<!\\),", text)]
    if len(parts) > 1 and not all(parts):
        raise UserError(f"{text!r} has nothing before or after a comma")
    return [part for part in parts if part]


def open_run(
    config: ConfigDict,
    run: pathlib.Path,
    cluster: host.Cluster,
    *,
    alone: bool = True,
    labels: bool = True,
) -> Opened:
    """Restores the encoder of a run and opens the images.

    Args:
      config: of the job.
      run: workdir of the run.
      cluster: the processes of the job.
      alone: it is the only run, so `config.workdir` is its own.
      labels: the job needs them.

    Raises:
      UserError: no checkpoint, no labels where they are needed, or data that cannot be opened.
    """
    mesh = layout.mesh()
    name = config.get("encoder")
    run, number = kept.locate(run)
    step = config.get("step", "last") if number is None else str(number)
    restored = encoder.restore(run, mesh, name, step=step, dtype=config.get("dtype"))
    data = data_of(restored.saved.config.data, config.data, labels)
    train = sources.open_source(data, "train")
    if labels and not train.classes:
        raise UserError(f"{train.name} has no labels, and {config.job} needs them")
    test = None
    if config.split == "test":
        try:
            test = sources.open_source(data, "test")
        except sources.NoSplit:
            if config.data.test_split is not None:
                raise
    if labels and test is not None and test.classes != train.classes:
        raise UserError(
            f"{data.source}: train has {train.classes} classes, test has {test.classes}; "
            "both need the same"
        )
    learn, judge = representation.split(train, test, config.train_examples, config.test_examples)
    if not len(learn.rows) or (judge is not None and not len(judge.rows)):
        raise UserError(
            f"{train.name} has {train.examples} image(s): too few to learn from some and to be "
            "judged on others"
        )
    for part in (learn, judge) if labels else ():
        if part is not None and not labelled(part):
            raise UserError(
                f"no image of {part.source.name} that {config.job} takes has a label; "
                "--config.data.train_split and --config.data.test_split name other splits"
            )
    own = alone and config.workdir is not None
    return Opened(
        run=run,
        folder=pathlib.Path(config.workdir) if own else run / name_of(config, step),
        step=step,
        restored=restored,
        encoder=name,
        mesh=mesh,
        cluster=cluster,
        dataset=train.name,
        classes=train.classes,
        class_names=train.class_names,
        learn=learn,
        judge=judge,
    )


def labelled(part: representation.Part, most: int = 100) -> bool:
    """Whether a row has a label: of `most` of them, and of all where none of those has."""
    for rows in (part.rows[encoder.subset(len(part.rows), most)], part.rows):
        for first in range(0, len(rows), most):
            if (part.source.read(rows[first : first + most])["label"] >= 0).any():
                return True
    return False


def data_of(saved: ConfigDict, asked: ConfigDict, labels: bool) -> ConfigDict:
    """The run's `config.data` with what the job's config says instead.

    Names of splits, and the range of samples, go with the set that they were written for: another
    source has train and test unless the job's config names others.

    Args:
      saved: of the run.
      asked: of the job; None where it says nothing.
      labels: the job needs them: the sub-folders of a folder name its classes.
    """
    data = saved.copy_and_resolve_references()
    given = {name: value for name, value in asked.items() if value is not None}
    if sources.absolute(given.get("source", data.source)) != sources.absolute(data.source):
        data.update(train_split="train", test_split="test", range=None)
    data.update(given)
    if labels and data.source.startswith("folder:") and "labels" not in given:
        data.labels = True
    return data


def conclude(o: Opened, config: ConfigDict, found: Mapping[str, Any]) -> dict[str, Any]:
    """Prints what a job found of one run and writes its result.json (process 0 alone).

    Returns:
      the content of result.json.
    """
    saved = o.restored.saved
    result = {
        "job": config.job,
        "method": saved.config.method.name,
        "finetuned": saved.finetuned is not None,  # it has seen labels
        "seed": saved.config.seed,
        "dataset": o.dataset,
        "checkpoint": str(o.run),
        "step": o.restored.step,
        "judged_on": judged_on(o),
        "train_examples": len(o.learn.rows),
        "test_examples": len(o.judge.rows) if o.judge else 0,
        "classes": o.classes,
        **found,
    }
    workdir.write_result(o.folder / "result.json", lambda: result)
    if jax.process_index() > 0:
        return result
    kind = "held-out training" if result["judged_on"] == "holdout" else "test"
    noun = batch.noun(o.learn.source.fields)
    tuned = "fine-tuned " if saved.finetuned else ""
    print(
        f"{name_of(config)} on {o.dataset}: {tuned}{saved.config.method.name} after "
        f"{o.restored.step:,} steps, {result['train_examples']:,} training and "
        f"{result['test_examples']:,} {kind} {noun}"
    )
    for part, field in ((o.learn, "train_examples"), (o.judge, "test_examples")):
        if part is not None and len(part.rows) == config[field] < part.source.examples:
            print(
                f"  {len(part.rows):,} of the {part.source.examples:,} {noun} of "
                f"{part.source.name} (--config.{field})"
            )
    width = 2 + max(map(len, numbers(found)), default=0)
    for name, value in numbers(found).items():
        print(f"  {name:<{width}}{shown(name, value)}")
    print(f"written to {o.folder / 'result.json'}")
    return result


def judged_on(o: Opened) -> str | None:
    """'test', or 'holdout' of train where there is no test split or none was asked for."""
    if o.judge is None:
        return None
    return "holdout" if o.judge.source is o.learn.source else "test"


def summarise(
    config: ConfigDict, results: list[dict[str, Any]], more: Mapping[str, Any] | None = None
) -> None:
    """Mean and standard deviation (n − 1) over several runs, printed and written.

    Args:
      config: of the job.
      results: the content of every run's result.json.
      more: what else is written.
    """
    columns = [numbers(r) for r in results]
    common = [name for name in columns[0] if all(name in c for c in columns)]
    spread = {}
    for name in common:
        if name not in FACTS:
            values = [c[name] for c in columns]
            spread[name] = {"mean": statistics.mean(values), "sd": statistics.stdev(values)}
    folder = pathlib.Path(config.workdir or pathlib.Path("runs") / name_of(config))
    content = {"job": config.job, "runs": results, "over_runs": spread, **(more or {})}
    workdir.write_result(folder / "result.json", lambda: content)
    if jax.process_index() > 0:
        return
    print(f"\n{name_of(config)} of {len(results)} runs, mean ± standard deviation")
    width = 2 + max(map(len, spread), default=0)
    for name, both in spread.items():
        print(f"  {name:<{width}}{shown(name, both['mean'])} ± {shown(name, both['sd'])}")
    print(f"written to {folder / 'result.json'}")


def numbers(found: Mapping[str, Any]) -> dict[str, float]:
    """What can be averaged."""
    return {
        k: v for k, v in found.items() if isinstance(v, int | float) and not isinstance(v, bool)
    }


def shown(name: str, value: float) -> str:
    """'96.70 %' or '0.316'."""
    return f"{100 * value:.2f} %" if any(s in name for s in SHARES) else f"{value:.4g}"
