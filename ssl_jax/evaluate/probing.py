"""What every probing job starts with: a checkpoint, labelled images, and their features."""

import pathlib
import time
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict, config_dict

from ssl_jax import host, parallel, workdir
from ssl_jax.data import sources
from ssl_jax.errors import UserError
from ssl_jax.evaluate import encoder, representation


class Probing(NamedTuple):
    """Features of labelled images.

    Attributes:
      folder: where the job writes.
      restored: the encoder and the run it comes from.
      dataset: name of the source.
      classes: number of classes.
      train, train_labels: float32 [n, d], int32 [n].
      test, test_labels: float32 [m, d], int32 [m].
      images_per_second: of the encoder, both sets.
    """

    folder: pathlib.Path
    restored: encoder.Restored
    dataset: str
    classes: int
    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    images_per_second: float


def defaults(job: str) -> ConfigDict:
    """The fields that every probing config has."""
    c = ConfigDict()
    c.job = job
    c.checkpoint = config_dict.placeholder(str)  # workdir of a run
    c.workdir = config_dict.placeholder(str)  # None: <checkpoint>/<job>
    c.cpu_devices = config_dict.placeholder(int)
    c.compile_cache = "auto"
    c.batch = 500  # images at a time over all devices
    c.train_examples = 50_000  # most examples to learn from and to judge on
    c.test_examples = 50_000
    c.data = ConfigDict()  # None: as in the run
    c.data.source = config_dict.placeholder(str)
    c.data.dir = config_dict.placeholder(str)
    c.data.labels = config_dict.placeholder(bool)
    c.data.train_split = config_dict.placeholder(str)
    c.data.test_split = config_dict.placeholder(str)
    return c


def prepare(config: ConfigDict, cluster: host.Cluster) -> Probing:
    """Restores the encoder and computes features of labelled images.

    Args:
      config: from `defaults`, with overrides.
      cluster: the processes of the job.

    Raises:
      UserError: no checkpoint, no labels, or data that cannot be opened.
    """
    if config.checkpoint is None:
        raise UserError(
            f"which checkpoint? add --config.checkpoint=RUN, the workdir of a run "
            f"(for example runs/quickstart), to probe it with {config.job}"
        )
    host.set_cpu_devices(config.cpu_devices or host.cpu_devices(config.batch, 1, cluster))
    host.set_compile_cache(config.compile_cache)
    run = pathlib.Path(config.checkpoint)
    mesh = parallel.mesh()
    restored = encoder.restore(run, mesh)

    data = restored.saved.config.data.copy_and_resolve_references()
    given = {k: v for k, v in config.data.items() if v is not None}
    data.update(given)
    if data.source.startswith("folder:") and "labels" not in given:
        data.labels = True  # a probe needs them: the sub-folders name the classes
    train = sources.open_source(data, "train")
    if not train.classes:
        raise UserError(f"{train.name} has no labels, and {config.job} needs them")
    try:
        test = sources.open_source(data, "test")
    except sources.NoSplit:
        test = None
    if test is not None and test.classes != train.classes:
        raise UserError(
            f"{data.source}: train has {train.classes} classes, test has {test.classes}; "
            "both need the same"
        )
    bank, query = representation.split(train, test, config.train_examples, config.test_examples)

    encode = encoder.compile_encode(restored.saved.config, mesh)
    began = time.perf_counter()
    features = [
        encoder.extract(encode, restored.variables, *part, config.batch, cluster)
        for part in (bank, query)
    ]
    seconds = time.perf_counter() - began
    folder = run / config.job if config.workdir is None else pathlib.Path(config.workdir)
    return Probing(
        folder=folder,
        restored=restored,
        dataset=train.name,
        classes=train.classes,
        train=features[0][0],
        train_labels=features[0][1],
        test=features[1][0],
        test_labels=features[1][1],
        images_per_second=(len(bank.rows) + len(query.rows)) / seconds,
    )


def conclude(p: Probing, config: ConfigDict, found: dict[str, float]) -> None:
    """Prints the result of a probing job and writes its result.json (process 0 alone).

    Args:
      p: from `prepare`.
      config: of the job.
      found: numbers to report, fractions in [0, 1] among them as '*top1' and '*top5'.
    """
    saved = p.restored.saved
    result = {
        "job": config.job,
        "method": saved.config.method.name,
        "dataset": p.dataset,
        "checkpoint": str(config.checkpoint),
        "step": p.restored.step,
        "train_examples": len(p.train),
        "test_examples": len(p.test),
        "classes": p.classes,
        "images_per_second": p.images_per_second,
        **found,
    }
    if jax.process_index() > 0:
        return
    workdir.write_json(p.folder / "result.json", result)
    print(
        f"{config.job} on {p.dataset}: {saved.config.method.name} after {p.restored.step:,} steps, "
        f"{len(p.train):,} training and {len(p.test):,} test images"
    )
    for name, value in found.items():
        shown = f"{100 * value:.2f} %" if "top" in name else f"{value:g}"
        print(f"  {name:<14}{shown}")
    print(f"written to {p.folder / 'result.json'}")
