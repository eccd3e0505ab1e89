"""A set of pictures with several labels each: the CSV that names them, and its measure."""

import csv
import os
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ssl_jax.data import sources
from ssl_jax.data.sources import folder
from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.evaluate.probes import average_precision
from ssl_jax.processes import host


def measure(config: ConfigDict, run: pathlib.Path, cluster: host.Cluster) -> dict[str, Any]:
    """A row of the transfer table: a set with several labels an image, by mean average precision.

    A picture that cannot be read is replaced by the next one, as everywhere, and keeps its labels.

    Raises:
      UserError: see `read_targets`; pictures that are not there, or none to learn from.
    """
    file = pathlib.Path(os.path.expanduser(config.multilabel)).absolute()
    names, targets = read_targets(file)
    changed = config.copy_and_resolve_references()
    changed.data.source = f"folder:{file.parent}"
    changed.data.labels = False  # sub-folders, if any, are no classes
    o = probing.open_run(changed, run, cluster, labels=False)
    data = probing.data_of(o.restored.saved.config.data, changed.data, labels=False)
    train, test = o.learn.source, None
    if config.split == "test":
        try:
            test = sources.open_source(data, "test")
        except sources.NoSplit:
            test = None
    places = folder.split_folders(str(file.parent), data.train_split, data.test_split)
    files = {
        split: [os.path.relpath(os.path.join(place, path), file.parent) for path in listed]
        for split, place in places.items()
        if (listed := folder.listing(place))
    }
    strange = sorted(set(targets) - {path for listed in files.values() for path in listed})
    if strange:
        raise UserError(
            f"{file} names {len(strange)} pictures that are not there: {', '.join(strange[:3])} "
            f"(paths are relative to {file.parent})"
        )
    learn, judge = representation.split(
        train._replace(classes=len(names)), test, config.train_examples, config.test_examples
    )
    encode = encoder.compile_encode(o.restored.encoder.features, o.mesh)
    found = []
    for part, split in ((learn, "train"), (judge, "test" if test else "train")):
        known = [row for row in part.rows if files[split][row] in targets]
        if not known:
            raise UserError(f"{file} has labels for none of the pictures to {split} on")
        x, _ = encoder.extract(
            encode, o.restored.variables, part.source, np.asarray(known), config.batch, cluster
        )
        found.append((x, np.asarray([targets[files[split][row]] for row in known])))
    (x, y), (x_new, y_new) = found
    scores = average_precision.classify(
        x, y, x_new, names, config.classifier, tuple(config.costs), config.folds
    )
    precision = average_precision.measure(scores, y_new)
    return {
        "name": file.parent.name,
        "source": str(file),
        "classes": len(names),
        "train_examples": len(x),
        "test_examples": len(x_new),
        "judged_on": "test" if test else "holdout",
        "mean_ap": precision["map"],
        "mean_ap_11point": precision["map_11point"],
        "ap": dict(zip(names, precision["ap"], strict=True)),
        "ap_11point": dict(zip(names, precision["ap_11point"], strict=True)),
        "step": o.restored.step,
    }


def read_targets(file: pathlib.Path) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Reads a CSV of labels: a header, then a line for every picture.

        file,cat,dog
        train/000012.jpg,1,0
        train/000017.jpg,-1,1

    1: the class is in the picture, 0: it is not, -1: does not count.

    Returns:
      names of the classes, and file (as written, relative to the CSV's folder) -> targets.

    Raises:
      UserError: no such file, no class, a line that does not fit.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"--config.multilabel: cannot read {file}: {error}") from None
    names = tuple(rows[0][1:]) if rows else ()
    if not names or len(set(names)) < len(names):
        raise UserError(f"{file}: the first line names the classes, each once, after 'file'")
    targets: dict[str, list[int]] = {}
    for number, (path, *values) in enumerate(rows[1:], 2):
        if len(values) != len(names) or not set(values) <= {"1", "0", "-1"}:
            raise UserError(
                f"{file}, entry {number} ({path}): it takes {len(names)} values of 1, 0 or -1"
            )
        path = os.path.normpath(path)
        if path in targets:
            raise UserError(f"{file} names {path} twice")
        targets[path] = [int(value) for value in values]
    if not targets:
        raise UserError(f"{file} has no pictures, only a first line")
    return names, targets
