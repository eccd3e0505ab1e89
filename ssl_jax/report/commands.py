"""The command line that a run came from, found again from its config."""

import shlex
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax.errors import UserError


def run_command(config: ConfigDict, folder: str) -> str | None:
    """A command that continues the run, or shows its result.

    A run does not know the file that its config came from. This is the preset of
    `configs/<method>.py` that differs least, with the fields that differ.

    Args:
      config: of the run.
      folder: its workdir.

    Returns:
      None where flags cannot say it: another method file, or fields that the presets lack.
    """
    path = f"configs/{config.method.name}.py"
    try:
        presets = getattr(configs.load_module(path), "PRESETS", {})
        known = {name: configs.load(f"{path}:{name}")[0] for name in presets}
    except UserError:
        return None
    found = {name: configs.differences(preset, config) for name, preset in known.items()}
    if not found:
        return None
    best = min(found, key=lambda name: len(found[name]))
    mine, theirs = flat(config.to_dict()), flat(known[best].to_dict())
    words = []
    for name in found[best]:
        if name not in mine or name not in theirs or mine[name] is None:
            return None
        value = mine[name]
        text = value if isinstance(value, str) else repr(value)
        words.append(shlex.quote(f"--config.{name}={text}"))
    return " ".join(
        ["python -m ssl_jax.main", "--config", f"{path}:{best}", *words]
        + ["--workdir", shlex.quote(folder)]
    )


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
