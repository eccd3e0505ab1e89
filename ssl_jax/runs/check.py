"""What can be said of a config before data and devices are touched."""

import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from ssl_jax.checkpoints import kept
from ssl_jax.devices import mapping
from ssl_jax.errors import UserError, near_misses
from ssl_jax.runs import config as configs

SPLITS = ("test", "holdout")
RECIPES = ("refuse", "tenth", "keep")
UNITS = ("batches", "examples")

COUNTS = (  # whole numbers from 1 on
    *("batch", "accumulate", "log_every", "max_bad_steps", "cpu_devices"),
    *("data.size", "data.threads", "data.examples"),
    *("evaluate.size", "evaluate.batch", "evaluate.train_examples", "evaluate.test_examples"),
    *("monitor.train_examples", "monitor.test_examples", "checkpoint.keep"),
)
NATURAL = (  # from 0 on
    *("seed", "data.ahead", "data.patience", "data.cache_bytes", "data.classes"),
    *("monitor.every_steps", "monitor.linear", "checkpoint.every_steps"),
    *("optimizer.learning_rate", "optimizer.weight_decay", "optimizer.clip_norm"),
    *("optimizer.clip_per_parameter", "optimizer.warmup_epochs", "optimizer.warmup_fraction"),
    *("optimizer.freeze_epochs", "optimizer.delay_epochs", "extend", "extend_rate"),
)
SHARES = ("data.max_bad", "optimizer.momentum")  # from 0 to 1
NAMES = {
    "parallel": mapping.MODES,
    "evaluate.split": SPLITS,
    "recipe": RECIPES,
    "epochs_in": UNITS,
    "extend_schedule": ("constant", "cosine"),
    "data.fit": ("crop", "squash"),
}


def pretraining(config: ConfigDict) -> None:
    """Checks the config of a pretraining run.

    Raises:
      UserError: the first field that cannot be right, and what it may be.
    """
    known(config)
    fields(config)
    length(config)
    kept.parse(config.checkpoint.best)
    steps_at_once(config)
    view = config.evaluate
    if not 0 < view.crop_fraction <= 1:
        raise UserError(
            f"--config.evaluate.crop_fraction is {view.crop_fraction}; it must be above 0, at most "
            "1"
        )
    if min(view.std, default=0) <= 0 or len(view.mean) not in (1, len(view.std)):
        raise UserError(
            f"--config.evaluate.std is {view.std}; it must be above 0, as many numbers as the mean"
        )
    for name, policy in config.views.items():
        if not isinstance(policy, ConfigDict) or "size" not in policy:
            raise UserError(
                f"--config.views.{name} is no augmentation; see ssl_jax/augment/policies.py"
            )


def length(config: ConfigDict) -> None:
    """Checks how long a training is, and that its batch is whole micro-batches.

    Raises:
      UserError: neither steps nor epochs, or what cannot be.
    """
    if config.steps is None and config.epochs is None:
        raise UserError("neither --config.steps nor --config.epochs is set; set one of them")
    which = "steps" if config.steps is not None else "epochs"
    if not 0 < config[which] < math.inf:
        raise UserError(f"--config.{which} is {config[which]}; it must be above 0")
    if config.batch % config.accumulate:
        raise UserError(
            f"--config.batch={config.batch} is not a multiple of "
            f"--config.accumulate={config.accumulate}"
        )


def remarks(config: ConfigDict) -> list[str]:
    """What is odd about a config and may be meant, a line each: said before the first step."""
    views = {f"views.{name}.size": policy.size for name, policy in config.views.items()}
    large = {
        name: size
        for name, size in {**views, "evaluate.size": config.evaluate.size}.items()
        if size > config.data.size
    }
    named = ", ".join(f"--config.{name}={size}" for name, size in large.items())
    lines = []
    if large:
        lines.append(
            f"{named}: larger than the stored picture, --config.data.size={config.data.size}; it "
            "is enlarged (neither follows the other)"
        )
    looks, saves = config.monitor.every_steps, config.checkpoint.every_steps
    if looks and saves and looks % saves and saves % looks:
        lines.append(
            f"--config.monitor.every_steps={looks} and --config.checkpoint.every_steps={saves} "
            f"meet every {math.lcm(looks, saves):,} steps: the best checkpoint is one of those, "
            "or the last"
        )
    return lines


def fields(config: ConfigDict) -> None:
    """Checks the ranges of single fields, where a config has them.

    Raises:
      UserError: the first that is out of its range.
    """

    def each(names: tuple[str, ...], holds: Callable[[Any], bool], what: str) -> None:
        for name in names:
            value = at(config, name)
            if value is not None and not holds(value):
                raise UserError(f"--config.{name} is {value}; it must be {what}")

    each(COUNTS, lambda x: x >= 1, "at least 1")
    each(COUNTS, lambda x: x == math.inf or x == int(x), "a whole number")
    each(NATURAL, lambda x: 0 <= x < math.inf, "at least 0")
    each(SHARES, lambda x: 0 <= x <= 1, "from 0 to 1")
    for name, choices in NAMES.items():
        value = at(config, name)
        if value is not None and value not in choices:
            raise UserError(f"--config.{name} is {value!r}.{near_misses(value, choices)}")


def at(config: ConfigDict, name: str) -> Any:
    """The value of a dotted field; None where it is absent."""
    for part in name.split("."):
        if not isinstance(config, ConfigDict) or part not in config:
            return None
        config = config[part]
    return config


def known(config: ConfigDict) -> None:
    """Checks that a config, perhaps of a user's own file, has the fields that every config has.

    Raises:
      UserError: a field that no config has, one that is missing, or one of another type.
    """
    default = configs.defaults()
    own = {"optimizer"}  # which every config file fills in
    for name in config:
        if name not in default and name not in own:
            raise UserError(
                f"the config has a field {name!r}.{near_misses(name, [*default, *own])}"
            )
    for name in (*default, *own):
        if name not in config:
            raise UserError(
                f"the config has no field {name!r}; begin it with ssl_jax.runs.config.defaults()"
            )
    for section in ("data", "evaluate", "monitor", "checkpoint"):
        for name in config[section]:
            if name not in default[section]:
                near = near_misses(name, default[section])
                raise UserError(f"the config has a field {section}.{name}.{near}")
        for name in default[section]:
            if name not in config[section]:
                raise UserError(f"the config has no field {section}.{name}")
            same_kind(f"{section}.{name}", config[section][name], default[section][name])
    for name in default:
        if not isinstance(default[name], ConfigDict):
            same_kind(name, config[name], default[name])


def same_kind(name: str, value: Any, default: Any) -> None:
    """Checks that a number stands where a number belongs, and so on; None passes for a placeholder.

    Raises:
      UserError: it does not.
    """
    kinds = {bool: "True or False", (int, float): "a number", str: "a text", tuple: "a tuple"}
    for kind, what in kinds.items():
        if isinstance(default, kind):
            wrong = isinstance(value, bool) and kind == (int, float)
            if value is None or wrong or not isinstance(value, kind):
                raise UserError(f"--config.{name} is {value!r}; it must be {what}")
            return


def writable(folder: pathlib.Path) -> None:
    """Checks, before time is spent, that a workdir can be made and written.

    Raises:
      UserError: it cannot.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make {folder}: {error.strerror}; choose another --workdir"
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{folder} cannot be written; choose another --workdir")


def steps_at_once(config: ConfigDict) -> None:
    """Checks how many steps a call makes, if that is said: `steps_at_once`, `data.resident`.

    Raises:
      UserError: what it cannot go with.
    """
    k = config.steps_at_once
    if k is None:
        return
    if k < 1:
        raise UserError(f"--config.steps_at_once is {k}; it must be at least 1")
    if k > 1 and config.data.resident is False:
        raise UserError(
            f"--config.steps_at_once={k} needs the images in device memory: "
            "--config.data.resident=True, or leave it at 1"
        )
    intervals = {
        "log_every": config.log_every,
        "monitor.every_steps": config.monitor.every_steps,
        "checkpoint.every_steps": config.checkpoint.every_steps,
    }
    for field, steps in intervals.items():
        if steps % k:
            raise UserError(
                f"--config.{field}={steps} is not a multiple of the {k} steps of a call "
                "(--config.steps_at_once)"
            )
