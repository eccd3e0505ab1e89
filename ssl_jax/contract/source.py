"""A source is random access to examples of fixed shape: a tuple of pure functions."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from ssl_jax.errors import UserError


class Source(NamedTuple):
    """Random access to n examples, each a set of named fields of fixed shape.

    Attributes:
      name: what it is and where, for the log.
      examples: number of examples n.
      classes: number of classes, 0 if there are no labels.
      fields: name -> ShapeDtypeStruct of one example: {'image': uint8 [H, W, C]},
        {'tokens': int32 [L]}, {'image': …, 'tokens': int32 [captions, L]}, {'video': uint8
        [T, H, W, C]}, {'series': float32 [T, C]}.
      read: int array [b] of rows in [0, n) -> a batch (`contract/batch.py`): every field with a
        leading b, 'index': int32 [b], 'label': int32 [b]. The same rows give the same batch on any
        thread, at any time. 'index' is the row that the example came from: `rows` itself, except
        where an example could not be read and another took its place. 'label' is -1 where there is
        none. The caller owns the arrays. Raises Lost when the data is out of reach as a whole, and
        UserError when too many examples cannot be read.
      bad: () -> [(path, reason)] of the examples found unreadable so far, in order of their rows.
      class_names: names of the classes in order of their labels; empty if unknown.
      facts: what a method may need to know before it is compiled, by name: numbers, strings, tuples
        of strings, NumPy arrays (a vocabulary, counts of words, mean and deviation, frames a
        second). Saved with the run and compared when it continues.
      padding: name of a field -> what fills it in rows that pad a batch, where that is not 0.
      identity: a hash that is the same where the same examples lie at another place; empty where
        the name alone says which they are.
      describe: row -> what people call it: the path of its file. None: it has its number alone.
    """

    name: str
    examples: int
    classes: int
    fields: Mapping[str, Any]
    read: Callable[[Any], dict[str, Any]]
    bad: Callable[[], list[tuple[str, str]]]
    class_names: tuple[str, ...] = ()
    facts: Mapping[str, Any] = {}
    padding: Mapping[str, Any] = {}
    identity: str = ""
    describe: Callable[[int], str] | None = None


class NoSplit(UserError):
    """The data has no such split. What needs only the training split may catch this."""


class Lost(UserError):
    """The data is out of reach as a whole, a lost network folder: worth waiting for."""
