"""A source is random access to decoded pictures of one size: a tuple of pure functions."""

from collections.abc import Callable
from typing import Any, NamedTuple

from ssl_jax.errors import UserError


class Source(NamedTuple):
    """Random access to n examples as uint8 pictures of one shape.

    Attributes:
      name: what it is and where, for the log.
      examples: number of examples n.
      classes: number of classes, 0 if there are no labels.
      shape: (H, W, C) of every picture.
      read: int array [b] of rows in [0, n) -> {'image': uint8 [b, H, W, C], 'index': int32 [b],
        'label': int32 [b]}. The same rows give the same batch on any thread, at any time. 'index'
        is the row that the picture came from: `rows` itself, except where a picture could not be
        read and another took its place. 'label' is -1 where there is none. The caller owns the
        arrays. Raises Lost when the data is out of reach as a whole, and UserError when too many
        pictures cannot be read.
      bad: () -> [(path, reason)] of the pictures found unreadable so far, in order of their rows.
      class_names: names of the classes in order of their labels; empty if unknown.
    """

    name: str
    examples: int
    classes: int
    shape: tuple[int, int, int]
    read: Callable[[Any], dict[str, Any]]
    bad: Callable[[], list[tuple[str, str]]]
    class_names: tuple[str, ...] = ()


class NoSplit(UserError):
    """The data has no such split. What needs only the training split may catch this."""


class Lost(UserError):
    """The data is out of reach as a whole, a lost network folder: worth waiting for."""
