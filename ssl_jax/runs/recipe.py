"""How many steps a recipe makes, and one that is longer than the run.

Warm-ups, freezes and delays that would reach the end of a run are refused, shortened or kept.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.errors import UserError

# Fields of these sections whose name ends so are counted in epochs from the start of a run.
SECTIONS = ("optimizer", "method")
ENDINGS = ("_epochs", "_epoch")
SHARE = 0.1  # of a run that `recipe='tenth'` leaves to each of them


def total_steps(config: ConfigDict, examples: int) -> int:
    """Optimizer steps of a run, at least 1, by `config.steps`, or `epochs` and `epochs_in`.

    Args:
      config: of the run.
      examples: number n of training examples.
    """
    if config.steps is not None:
        return max(config.steps, 1)
    if config.epochs_in == "examples":  # SimCLR, tf2/model.py: get_train_steps
        return int(config.epochs * examples // config.batch) + 1
    return max(round(config.epochs * (examples // config.batch)), 1)


def warmed_up_in_examples(config: ConfigDict, examples: int) -> ConfigDict:
    """The config with a warm-up of ⌊warmup_epochs · n / B⌋ steps, in epochs of whole batches.

    (SimCLR, tf2/model.py: WarmUpAndCosineDecay.)
    """
    counted = config.copy_and_resolve_references()
    steps = config.optimizer.get("warmup_epochs", 0.0) * examples // config.batch
    with counted.unlocked():
        counted.optimizer.warmup_epochs = steps / (examples // config.batch)
    return counted


def durations(config: ConfigDict) -> dict[str, float]:
    """Dotted names of what a recipe does for a while at the start -> its epochs, those above 0."""

    def walk(section: Any, prefix: str) -> Iterator[tuple[str, float]]:
        for name, value in section.items():
            if isinstance(value, Mapping | ConfigDict):
                yield from walk(value, f"{prefix}.{name}")
            elif name.endswith(ENDINGS) and isinstance(value, int | float) and value > 0:
                yield f"{prefix}.{name}", float(value)

    found: dict[str, float] = {}
    for section in SECTIONS:
        found |= dict(walk(config.get(section, {}), section))
    return found


def long(config: ConfigDict, epochs: float) -> dict[str, float]:
    """Those of `durations` that reach the end of a run of so many epochs.

    A learning rate is delayed first and warmed up then: the two count together.
    """
    found = durations(config)
    both = {}
    for name, value in found.items():
        section, _, leaf = name.rpartition(".")
        other = {"warmup_epochs": "delay_epochs", "delay_epochs": "warmup_epochs"}.get(leaf)
        both[name] = value + found.get(f"{section}.{other}", 0.0)
    return {name: value for name, value in found.items() if both[name] >= epochs}


def fit(config: ConfigDict, epochs: float) -> tuple[ConfigDict, list[str]]:
    """Makes a recipe fit a run, by the rule that `config.recipe` names.

    Args:
      config: of the run.
      epochs: passes over the data that the run makes.

    Returns:
      (the config that is trained with, lines that say what was changed or is odd).

    Raises:
      UserError: 'refuse', and something of the recipe reaches the end of the run.
    """
    too_long = long(config, epochs)
    drops = [m for m in config.optimizer.get("milestones", ()) if m >= epochs]
    lines = []
    if drops:
        lines.append(
            f"the learning rate never drops at epoch {', '.join(f'{m:g}' for m in drops)} "
            f"(--config.optimizer.milestones): the run has {epochs:.3g}"
        )
    if not too_long:
        return config, lines
    named = ", ".join(f"--config.{name}={value:g}" for name, value in too_long.items())
    said = f"{named}: as long as the run or longer, which has {epochs:.3g} epochs"
    if config.recipe == "refuse":
        raise UserError(
            f"{said}; train longer, shorten it, or add --config.recipe=tenth (each takes at most "
            "a tenth of the run) or --config.recipe=keep"
        )
    if config.recipe == "keep":
        return config, [*lines, f"{said}; kept (--config.recipe=keep)"]
    fitted = config.copy_and_resolve_references()
    with fitted.unlocked():
        for name, value in durations(config).items():
            section, leaf = name.rsplit(".", 1)
            part = fitted
            for key in section.split("."):
                part = part[key]
            part[leaf] = type(part[leaf])(min(value, SHARE * epochs))
    return fitted, [*lines, f"{said}; each takes at most a tenth of the run (--config.recipe)"]
