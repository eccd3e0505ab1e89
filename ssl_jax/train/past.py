"""A run that is there already: its config as this version reads it, and whether it goes on."""

import pathlib
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.data import sources
from ssl_jax.errors import UserError
from ssl_jax.methods import METHODS, defaults
from ssl_jax.optim import optimizers
from ssl_jax.runs import completion, recipe, workdir
from ssl_jax.runs import config as configs


def read(folder: pathlib.Path) -> workdir.Saved | None:
    """`workdir.read_config`, with no field absent; None where there is no run.

    Raises:
      UserError: the file is damaged, or cannot be read.
    """
    saved = workdir.read_config(folder)
    if saved is None:
        return None
    config = complete(saved.config)
    epochs = saved.run.total_steps / saved.run.steps_per_epoch
    if "recipe" not in saved.config and recipe.long(config, epochs):
        config.recipe = "keep"  # what the run did; by default it would be refused now
    return saved._replace(config=config)


def complete(config: ConfigDict) -> ConfigDict:
    """`completion.complete`, with the fields of its method, of the optimizers and of views."""
    name = config.get("method", {}).get("name")
    fields = completion.Fields(
        method=defaults(name) if name in METHODS else {},
        optimizer=optimizers.defaults(),
        view=policies.make("none", 1)._asdict(),
    )
    return completion.complete(config, fields)


def standing(config: ConfigDict, folder: pathlib.Path) -> tuple[workdir.Saved | None, bool]:
    """The run that a workdir holds and this command continues, and whether another gives way.

    A run of other values that has not learned anything yet gives way, and so does any with
    `config.overwrite`.

    Returns:
      (the run, or None where there is none to continue; whether `workdir.clear` is to delete what
      is there, once every process has read it).

    Raises:
      UserError: there is a run of other values.
    """
    if not (folder / "config.json").is_file() and (folder / "job.json").is_file():
        raise UserError(f"{folder} holds a fine-tuning; choose another --workdir")
    saved = read(folder)
    if saved is None:
        return None, False
    if saved.config.recipe == "keep" and config.recipe == "refuse":
        config.recipe = "keep"  # 'refuse' asks whether a run may begin; this one has
    before = saved.config.copy_and_resolve_references()
    before.data.source = sources.absolute(before.data.source)
    moved = configs.MOVED if goes_on(config, saved, folder) else ()
    changed = [field for field in configs.differences(before, config) if field not in moved]
    if not changed:
        return saved, False
    if not config.overwrite and workdir.has_learned(folder):
        raise UserError(
            f"{folder} holds a run whose config differs in {', '.join(changed)}; choose another "
            "--workdir, use the same values to continue, or delete it with --overwrite"
        )
    return None, True


def goes_on(config: ConfigDict, saved: workdir.Saved, folder: pathlib.Path) -> bool:
    """Whether a run may go on where its pictures lie now; `assemble` then compares them."""
    known = bool(saved.identity) and workdir.has_learned(folder)
    return known and finished(config, saved, folder) is None and not config.overwrite


def finished(
    config: ConfigDict, saved: workdir.Saved, folder: pathlib.Path
) -> dict[str, Any] | None:
    """The result of a run that has made all steps that are asked for; None of any other.

    A result of fewer steps is that of the run before it was extended.
    """
    result = workdir.read_result(folder)
    wanted = saved.run.total_steps + round(config.extend * saved.run.steps_per_epoch)
    return result if result is not None and result["steps"] >= wanted else None
