"""The config of a run as this version reads it: fields that are younger than the run filled in."""

import pathlib

from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.contract.method import Run
from ssl_jax.methods import METHODS, defaults
from ssl_jax.optim import optimizers
from ssl_jax.runs import completion, recipe, workdir


def read(folder: pathlib.Path) -> workdir.Saved | None:
    """`workdir.read_config`, with no field absent; None where there is no run.

    Raises:
      UserError: the file is damaged, or cannot be read.
    """
    saved = workdir.read_config(folder)
    if saved is None:
        return None
    config = complete(saved.config)
    if "recipe" not in saved.config and is_long(config, saved.run):
        config.recipe = "keep"  # what the run did; by default it would be refused now
    return saved._replace(config=config)


def is_long(config: ConfigDict, run: Run) -> bool:
    """Whether something of the recipe reaches the end of the run."""
    epochs = run.total_steps / run.steps_per_epoch
    return any(value >= epochs for value in recipe.durations(config).values())


def complete(config: ConfigDict) -> ConfigDict:
    """`completion.complete`, with the fields of its method, of the optimizers and of views."""
    name = config.get("method", {}).get("name")
    fields = completion.Fields(
        method=defaults(name) if name in METHODS else {},
        optimizer=optimizers.defaults(),
        view=policies.make("none", 1)._asdict(),
    )
    return completion.complete(config, fields)
