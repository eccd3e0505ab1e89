"""Checks of the numbers and names that a method is made with, before anything is traced.

Each takes them by the names that they have in `config.method`: positive(temperature=0.1). What
cannot be is a UserError that names the field, the value and what it may be.
"""

import dataclasses
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ssl_jax.errors import UserError, near_misses


def positive(**values: float) -> None:
    """Finite numbers above 0: temperatures, deviations."""
    _check(values, lambda x: x > 0, "a number above 0")


def not_negative(**values: float) -> None:
    """Finite numbers from 0 on: weights."""
    _check(values, lambda x: x >= 0, "a number of at least 0")


def finite(**values: float) -> None:
    """Finite numbers: factors."""
    _check(values, lambda x: True, "a number")


def share(**values: float) -> None:
    """Numbers from 0 to 1: the momentum of an average, probabilities."""
    _check(values, lambda x: 0 <= x <= 1, "from 0 to 1")


def count(least: int, **values: int) -> None:
    """Whole numbers of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise UserError(f"--config.method.{name} is {value!r}; it must be a whole number")
    _check(values, lambda n: n >= least, f"at least {least}")


def counts(least: int, **values: Sequence[int]) -> None:
    """Whole numbers of at least `least`, one or more of them: the sizes of several heads."""
    for name, sizes in values.items():
        if not len(sizes):
            raise UserError(f"--config.method.{name} is empty; it must have at least one number")
        count(least, **{f"{name}[{i}]": size for i, size in enumerate(sizes)})


def known(names: Iterable[str], **values: str) -> None:
    """One of some names."""
    names = tuple(names)
    for name, value in values.items():
        if value not in names:
            raise UserError(f"--config.method.{name} is {value!r}.{near_misses(value, names)}")


def fields(module: type, **values: Mapping[str, Any]) -> None:
    """Fields that a Flax module has, by their names."""
    names = {f.name for f in dataclasses.fields(module)} - {"parent", "name", "axis", "dtype"}
    for name, given in values.items():
        for key in given:
            if key not in names:
                raise UserError(
                    f"--config.method.{name} has no field {key}.{near_misses(key, names)}"
                )


def _check(values: dict[str, Any], right: Callable[[Any], bool], what: str) -> None:
    for name, value in values.items():
        number = isinstance(value, numbers.Real) and math.isfinite(value)
        if not number or not right(value):
            raise UserError(f"--config.method.{name} is {value!r}; it must be {what}")
