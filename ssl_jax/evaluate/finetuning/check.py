"""The fields of a fine-tuning, checked before time is spent."""

import re

from ml_collections import ConfigDict

from ssl_jax.augment.mixing import MODES
from ssl_jax.devices import mapping
from ssl_jax.errors import UserError, near_misses
from ssl_jax.runs import check as runs
from ssl_jax.train import supervised


def check(config: ConfigDict) -> None:
    """Checks the fields of this job.

    Raises:
      UserError: the first field that cannot be right.
    """
    runs.fields(config)
    runs.length(config)
    for field in ("labels", "layer_decay"):
        if not 0 < config[field] <= 1:
            raise UserError(f"--config.{field} is {config[field]}; it must be above 0, at most 1")
    if config.shots is not None and (config.shots < 1 or config.labels < 1):
        raise UserError(
            f"--config.shots={config.shots} must be at least 1, and --config.labels is then 1"
        )
    for field in ("erasing.probability", "mixing.probability", "mixing.switch"):
        group, leaf = field.split(".")
        if not 0 <= config[group][leaf] <= 1:
            raise UserError(f"--config.{field} is {config[group][leaf]}; it must be from 0 to 1")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(
            f"--config.label_smoothing is {config.label_smoothing}; it must be from 0 to below 1"
        )
    for field in ("mixup", "cutmix"):
        if config.mixing[field] < 0:
            raise UserError(
                f"--config.mixing.{field} is {config.mixing[field]}; it must not be negative"
            )
    if config.mixing.group < 0 or config.mixing.group % 2:
        raise UserError(f"--config.mixing.group is {config.mixing.group}; it must be even, or 0")
    for field, value, known in (
        ("parallel", config.parallel, mapping.MODES),
        ("mixing.mode", config.mixing.mode, MODES),
        ("head", config.head, supervised.HEADS),
        ("interpolation", config.interpolation, ("bilinear", "bicubic")),
    ):
        if value not in known:
            raise UserError(f"--config.{field} is {value!r}.{near_misses(value, known)}")
    for pattern in config.fresh:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"--config.fresh: {pattern!r} is no regular expression: {error}"
            ) from None
