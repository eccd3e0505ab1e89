"""The folder of a run: what lies where, and how its small files are written.

config.json  metrics.jsonl  events.*  checkpoints/  report/  result.json
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.methods.protocol import Run


class Saved(NamedTuple):
    """What config.json holds.

    Attributes:
      config: the config of the run.
      run: its static facts.
      cpu_devices: CPU devices a process; used again when the run continues.
    """

    config: ConfigDict
    run: Run
    cpu_devices: int


def write_config(folder: pathlib.Path, saved: Saved) -> None:
    """Writes config.json.

    Raises:
      UserError: the folder cannot be written.
    """
    content = {
        "config": json.loads(configs.to_json(saved.config)),
        "run": saved.run._asdict(),
        "cpu_devices": saved.cpu_devices,
    }
    write_json(folder / "config.json", content)


def read_config(folder: pathlib.Path) -> Saved | None:
    """Reads config.json; None where there is none.

    Raises:
      UserError: the file is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        return None
    try:
        content = json.loads(file.read_text())
        config = configs.from_json(json.dumps(content["config"]))
        return Saved(config, Run(**content["run"]), content["cpu_devices"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {error}); use another --workdir, "
            "or put the file back"
        ) from error


def read_result(folder: pathlib.Path) -> dict[str, Any] | None:
    """Reads result.json; None where there is none or it is torn."""
    try:
        return json.loads((folder / "result.json").read_text())
    except (OSError, ValueError):
        return None


def write_json(file: pathlib.Path, content: dict[str, Any]) -> None:
    """Writes JSON whole or not at all: to a file beside it, then renamed over it.

    Raises:
      UserError: the folder cannot be written.
    """
    beside = file.with_name(file.name + ".tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        os.replace(beside, file)
    except OSError as error:
        raise UserError(
            f"cannot write {file}: {error.strerror}; choose another --workdir"
        ) from error
