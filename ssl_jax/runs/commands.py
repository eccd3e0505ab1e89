"""The command line that a run came from, found again from its config."""

import pathlib
import shlex
import shutil
import sys
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.runs import config as configs

# What the command of a run does not say: where it lies, and what it settles by itself.
OWN = (
    *("workdir", "overwrite", "cpu_devices", "parallel", "compile_cache"),
    *("steps_at_once", "data.resident"),
)


def program() -> str:
    """How a command that the user is shown begins: as the one that this process was started with.

    Returns:
      'ssl-jax', with its folder where the shell would not find it; else 'python -m ssl_jax.main',
      with the interpreter as it was typed.
    """
    script = pathlib.Path(sys.argv[0])
    if script.name == "ssl-jax":
        found = shutil.which(script.name)
        known = found is not None and pathlib.Path(found).resolve() == script.resolve()
        return script.name if known else shlex.quote(str(script))
    typed = sys.orig_argv
    direct = typed[1:2] == ["-m"] and typed[2:3] in (["ssl_jax.main"], ["ssl_jax"])
    return f"{shlex.quote(typed[0]) if direct else 'python'} -m ssl_jax.main"


def run_command(config: ConfigDict, folder: str) -> str | None:
    """A command that continues the run, or shows its result.

    A run does not know the file that its config came from. This is the preset of
    `configs/<method>.py` that differs least, with the fields that differ.

    Args:
      config: of the run, complete (`completion.complete`).
      folder: its workdir.

    Returns:
      None where flags cannot say it: another method file, or fields that the presets lack.
    """
    found = nearest(config)
    if found is None:
        return None
    name, preset = found
    mine, theirs = flat(config.to_dict()), flat(preset.to_dict())
    words = []
    for field in configs.differences(preset, config, OWN):
        if field in absent(config, preset):
            continue  # of the model: what the preset says of it is what the run did
        if field not in mine or field not in theirs or mine[field] is None:
            return None
        value = mine[field]
        text = value if isinstance(value, str) else repr(value)
        words.append(shlex.quote(f"--config.{field}={text}"))
    return " ".join([program(), "--config", name, *words, "--workdir", shlex.quote(folder)])


def nearest(config: ConfigDict) -> tuple[str, ConfigDict] | None:
    """The preset of `configs/<method>.py` that a run's config differs least from.

    Returns:
      ('<method>:<preset>', the preset); None where there is no such file.
    """
    method = config.method.name
    if method not in configs.names():
        return None
    presets = getattr(configs.load_module(method), "PRESETS", {})
    known = {f"{method}:{name}": configs.load(f"{method}:{name}")[0] for name in presets}
    if not known:
        return None
    name = min(known, key=lambda name: len(configs.differences(known[name], config)))
    return name, known[name]


def absent(config: ConfigDict, preset: ConfigDict) -> dict[str, Any]:
    """Fields of a preset that a config lacks, by dotted names, in the sections that both have.

    Sections whose `name` differs (another model, another optimizer) have fields of their own, and
    so are not filled.
    """
    mine, theirs = flat(config.to_dict()), flat(preset.to_dict())
    sections = {field.rpartition(".")[0] for field in mine}
    found = {}
    for field, value in theirs.items():
        section = field.rpartition(".")[0]
        kind = f"{section}.name"
        if field in mine or section not in sections or isinstance(value, Mapping):  # an empty one
            continue
        if mine.get(kind) == theirs.get(kind):
            found[field] = value
    return found


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names.

    {'data': {'size': 28}} -> {'data.size': 28}
    """
    found = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            found |= flat(inner, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = inner
    return found
