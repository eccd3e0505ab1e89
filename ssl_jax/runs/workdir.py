"""The folder of a run: what lies where, and how its small files are written.

config.json  facts.npz  metrics.jsonl  events.*  checkpoints/  report/  result.json
"""

import contextlib
import hashlib
import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.checkpoints import verify
from ssl_jax.contract import batch
from ssl_jax.contract.method import Run
from ssl_jax.errors import UserError, line
from ssl_jax.processes import insist
from ssl_jax.runs import config as configs


class Saved(NamedTuple):
    """What config.json holds.

    Attributes:
      config: the config of the run.
      run: its static facts, those of its source among them.
      cpu_devices: CPU devices a process; used again when the run continues.
      finetuned: of a fine-tuning, what its job.json says beside them: its own config, and the
        number of classes. None of a pretraining run.
      identity: `Source.identity` of the training data; empty in older runs.
    """

    config: ConfigDict
    run: Run
    cpu_devices: int
    finetuned: Mapping[str, Any] | None = None
    identity: str = ""


def write_config(folder: pathlib.Path, saved: Saved) -> None:
    """Writes config.json, and facts.npz where the source has facts.

    Raises:
      UserError: the folder cannot be written.
    """
    write_json(folder / "config.json", described(folder, saved))


def described(folder: pathlib.Path, saved: Saved) -> dict[str, Any]:
    """What config.json, or a fine-tuning's job.json, says of a run; writes its facts beside it.

    Raises:
      UserError: the folder cannot be written.
    """
    run = saved.run._asdict()
    fields, facts = run.pop("fields"), saved.run.facts
    del run["facts"]
    content = {
        "config": json.loads(configs.to_json(saved.config)),
        "run": run,
        "fields": {k: {"dtype": f.dtype.name, "shape": list(f.shape)} for k, f in fields.items()},
        "cpu_devices": saved.cpu_devices,
        "identity": saved.identity,
    }
    if facts:
        packed = io.BytesIO()
        np.savez_compressed(packed, **{k: np.asarray(v) for k, v in facts.items()})
        content["facts"] = hashlib.sha256(packed.getvalue()).hexdigest()
        try:
            _put(folder / "facts.npz", packed.getvalue())
        except OSError as error:
            raise UserError(
                f"cannot write {folder / 'facts.npz'}: {error.strerror}; choose another --workdir"
            ) from error
    return content


def has_learned(folder: pathlib.Path) -> bool:
    """Whether a run made a step that is written down: a checkpoint, a log line or a result."""
    kept = folder / "checkpoints"
    log = folder / "metrics.jsonl"
    checkpoints = kept.is_dir() and any(
        verify.is_step(f.name) and f.name != "0" for f in kept.iterdir()
    )
    return checkpoints or (folder / "result.json").exists() or bool(_size(log))


def _size(file: pathlib.Path) -> int:
    return file.stat().st_size if file.exists() else 0


def clear(folder: pathlib.Path) -> None:
    """Deletes what a run has written in its folder, and nothing else there.

    Raises:
      UserError: it cannot be deleted.
    """
    files = ("config.json", "facts.npz", "metrics.jsonl", "result.json", "events.out.tfevents.*")
    try:
        for name in files:
            for file in folder.glob(name):
                file.unlink()
        for name in ("checkpoints", "report"):
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
    except OSError as error:
        raise UserError(f"cannot delete the run in {folder}: {error.strerror}") from error


def read_config(folder: pathlib.Path) -> Saved | None:
    """Reads config.json, or the job.json of a fine-tuning; None where there is neither.

    It is data and nothing else: whatever it holds, none of it is run.

    Raises:
      UserError: the file is damaged, or cannot be read.
    """
    file, finetuned = folder / "config.json", None
    if not file.is_file():
        file = folder / "job.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        if file.name == "job.json":
            if "pretrained" not in content:  # of an older version, which kept no more than its path
                return None
            own = configs.from_json(json.dumps(content["config"]))
            finetuned = {"config": own, "classes": int(content["classes"])}
            content = content["pretrained"]
        config = configs.from_json(json.dumps(content["config"]))
        _check(config, content["run"], content["cpu_devices"])
        fields = _fields(content.get("fields"), config)
        run = Run(**content["run"], fields=fields, facts=_facts(folder, content.get("facts")))
        identity = content.get("identity", "")
        if not isinstance(identity, str):
            raise TypeError(f"identity is {identity!r:.50}")
        return Saved(config, run, content["cpu_devices"], finetuned, identity)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {line(error)}); use another --workdir, "
            "or put the file back"
        ) from error


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """Reads the result.json of a run; None where there is none, or it is torn or no result.

    Raises:
      UserError: it is one, with fields that cannot be.
    """
    file = folder / "result.json"
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or "fingerprint" not in content:
        return None
    try:
        _check_result(content)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {line(error)}); move it away, and the "
            "run's own command writes it again"
        ) from error
    return content


def write_file(file: pathlib.Path, content: str | bytes | None, then: str) -> None:
    """Writes a page or a picture whole or not at all, tried again for ten minutes as a result is.

    Every process calls it; process 0 writes, the others wait.

    Args:
      file: its path.
      content: what to write; that of other processes than 0 is not looked at.
      then: what the user can do once it can be written.

    Raises:
      UserError: it could not be written in all that time.
    """

    write_files(file, {file: content or ""}, then)


def write_files(
    what: pathlib.Path, contents: Mapping[pathlib.Path, str | bytes], then: str
) -> None:
    """As `write_file`, several of them.

    Args:
      what: names them all where they cannot be written: their folder.
      contents: path -> what to write; that of other processes than 0 is not looked at.
      then: as for `write_file`.

    Raises:
      UserError: they could not be written in all that time.
    """

    def attempt() -> str | None:
        try:
            for file, content in contents.items():
                _put(file, content)
        except OSError as error:
            return error.strerror or str(error)
        return None

    insist.insist(attempt, str(what), then)


def write_result(file: pathlib.Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
    """Writes a result.json, tried again for ten minutes as the last checkpoint of a run is.

    Every process calls it; process 0 makes and writes, the others wait.

    Args:
      file: its path.
      make: what to write. It may write files of its own, and is called again where that fails.

    Returns:
      what `make` returned; None on other processes than 0.

    Raises:
      UserError: it could not be written in all that time.
    """
    content = None

    def attempt() -> str | None:
        nonlocal content
        try:
            content = make()
            _write(file, content)
        except OSError as error:
            return error.strerror or str(error)
        return None

    insist.insist(attempt, str(file), "the same command writes it when it can")
    return content


def write_arrays(file: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays as .npz, whole or not at all, tried again as a result is.

    Every process calls it; process 0 writes, the others wait.

    Raises:
      UserError: it could not be written in all that time.
    """
    packed = io.BytesIO()
    np.savez(packed, **arrays)
    write_file(file, packed.getvalue(), "the same command writes it when it can")


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes JSON whole or not at all: to a file beside it, then renamed over it.

    Raises:
      UserError: the folder cannot be written.
    """
    try:
        _write(file, content)
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror}; choose another --workdir"
        ) from error


def _write(file: pathlib.Path, content: dict[str, Any]) -> None:
    """See `write_json`; raises OSError."""
    _put(file, json.dumps(content, indent=2, allow_nan=False) + "\n")


def _put(file: pathlib.Path, content: str | bytes) -> None:
    """Writes a file whole or not at all; raises OSError."""
    beside = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content if isinstance(content, bytes) else content.encode())
        os.replace(beside, file)
    except OSError:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise


def _fields(saved: Any, config: ConfigDict) -> dict[str, jax.ShapeDtypeStruct]:
    """Fields of an example; a run that is older than they are learned from square pictures."""
    if saved is None:
        return batch.image(config.data.size, config.data.channels)
    found = {}
    for name, field in saved.items():
        shape = tuple(field["shape"])
        if not all(type(side) is int and 0 < side < 2**31 for side in shape):
            raise TypeError(f"fields.{name} has the shape {shape!r:.50}")
        found[name] = jax.ShapeDtypeStruct(shape, np.dtype(field["dtype"]))
    return found


def _facts(folder: pathlib.Path, digest: str | None) -> dict[str, np.ndarray]:
    """What the source said of itself, as arrays; {} where it said nothing."""
    if digest is None:
        return {}
    packed = (folder / "facts.npz").read_bytes()
    if hashlib.sha256(packed).hexdigest() != digest:
        raise ValueError("facts.npz is not the one that it names")
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _check(config: ConfigDict, run: Any, cpu_devices: Any) -> None:
    """The fields that every config has must be of the kind that they are by default.

    Raises:
      TypeError: the first that is not. (One that is missing may be newer than the run.)
    """
    for name, default in configs.defaults().items():
        if isinstance(default, ConfigDict) and name in config:
            if not isinstance(config[name], ConfigDict):
                raise TypeError(f"{name} is {config[name]!r:.50}")
            for inner, kind in default.items():
                _same_kind(f"{name}.{inner}", config[name].get(inner), kind)
        else:
            _same_kind(name, config.get(name), default)
    for name, value in {**run, "cpu_devices": cpu_devices}.items():
        if type(value) is not int or not 0 < value < 2**63:
            raise TypeError(f"{name} is not a count")


def _same_kind(name: str, value: Any, default: Any) -> None:
    """A number where a number belongs, and so on; None stands for a placeholder, and passes."""
    kind = next((k for k in (bool, (int, float), str, tuple) if isinstance(default, k)), None)
    if kind is not None and value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} is {value!r:.50}")


def _check_result(result: dict[str, Any]) -> None:
    """What the console and the page say of a result must be there, and of its kind.

    Raises:
      KeyError: a field is missing.
      TypeError: the first of another kind.
    """

    def number(name, value, missing=False):
        known = isinstance(value, int | float) and abs(value) < 2**63  # no NaN either
        if not (known or (missing and value is None)):
            raise TypeError(f"{name} is {value!r:.50}")

    def group(name, value):
        if not isinstance(value, dict):
            raise TypeError(f"{name} is {value!r:.50}")
        return value

    for name in ("steps", "wall_seconds"):
        number(name, result[name])
    baselines, collapse = (group(name, result[name]) for name in ("baselines", "collapse"))
    judged = {"": result}
    judged |= {f"{k}.": group(k, baselines[k]) for k in ("pixels", "untrained")}
    for of, accuracies in judged.items():
        for name in ("knn_top1", "linear_top1"):
            number(of + name, accuracies[name], missing=True)
    for name in ("feature_std_ratio", "effective_rank"):
        number(name, collapse[name], missing=True)
    for name in ("embedding_std", "embedding_rank"):  # younger than some results
        number(name, collapse.get(name), missing=True)
    number("images_per_second", result["images_per_second"], missing=True)
    for name in ("linear_top5", "peak_memory_bytes"):
        number(name, result.get(name), missing=True)
    for name in ("seed", "batch", "resumed_at", "skipped_steps", "unreadable_pictures"):
        number(name, result.get(name, 0))
    for name in ("train_examples", "test_examples", "train_set", "test_set"):  # younger than some
        number(name, result.get(name, 0))
    if not isinstance(collapse["alarm"], str | None):
        raise TypeError(f"alarm is {collapse['alarm']!r:.50}")
    for name in ("made_with", "problems"):  # younger than some results
        group(name, result.get(name, {}))
