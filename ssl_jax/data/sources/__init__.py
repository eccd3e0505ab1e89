"""From config.data to a Source."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

from ssl_jax.contract.source import NoSplit, Source
from ssl_jax.data.decode import reader
from ssl_jax.data.sources import splits
from ssl_jax.errors import UserError, near_misses

__all__ = ["NoSplit", "Source", "absolute", "open_source"]


def _digits(name: str, split: str, data) -> Source:
    from ssl_jax.data.sources.digits import open_digits

    return open_digits(split, data)


def _scenes(name: str, split: str, data) -> Source:
    from ssl_jax.data.sources.scenes import open_scenes

    return open_scenes(split, data)


def _synthetic(name: str, split: str, data) -> Source:
    from ssl_jax.data.sources.synthetic import open_synthetic

    return open_synthetic(split, data)


def _folder(name: str, split: str, data) -> Source:
    from ssl_jax.data.sources.folder import open_folder

    return open_folder(name, split, data)


def _tfds(name: str, split: str, data) -> Source:
    from ssl_jax.data.sources.tfds import open_tfds

    return open_tfds(name, split, data)


def check_pictures(data, kind: str) -> None:
    """Checks the shape of the pictures of config.data.

    Raises:
      UserError: a field that cannot be.
    """
    if data.size < 1:
        raise UserError(f"--config.data.size={data.size} must be at least 1.")
    if data.channels not in (1, 3):
        raise UserError(f"--config.data.channels={data.channels} must be 1 (grey) or 3 (RGB).")


def check_drawn(data, kind: str) -> None:
    """As `check_pictures`, of a kind with the splits train and test."""
    check_pictures(data, kind)
    splits.check_fixed(data, kind)


def check_files(data, kind: str) -> None:
    """As `check_pictures`, and how files of pictures are read."""
    check_pictures(data, kind)
    if data.fit not in ("crop", "squash"):
        raise UserError(
            f"Unknown --config.data.fit={data.fit!r}.{near_misses(data.fit, ('crop', 'squash'))}"
        )
    reader.bounds(getattr(data, "range", None))
    if not 0 <= data.max_bad <= 1:
        raise UserError(f"--config.data.max_bad={data.max_bad} is a fraction: 0 to 1.")


def check_digits(data, kind: str) -> None:
    """As `check_files`, of a kind with the splits train and test."""
    check_files(data, kind)
    splits.check_fixed(data, kind)


class Kind(NamedTuple):
    """A kind of source.

    Attributes:
      open: (what stands after the colon, split, config.data) -> Source. It imports what it needs.
      usage: how `data.source` names it.
      check: (config.data, kind) raises UserError for the first field that this kind cannot take,
        before anything is opened.
    """

    open: Callable[[str, str, Any], Source]
    usage: str
    check: Callable[[Any, str], None]


KINDS = {
    "digits": Kind(_digits, "digits", check_digits),
    "scenes": Kind(_scenes, "scenes", check_drawn),
    "synthetic": Kind(_synthetic, "synthetic", check_drawn),
    "folder": Kind(_folder, "folder:/path", check_files),
    "tfds": Kind(_tfds, "tfds:name", check_files),
}


def absolute(source: str) -> str:
    """`data.source` with the whole path of a folder, so that it means the same everywhere.

    'folder:pictures' -> 'folder:/here/pictures'; links and what is no folder are left as they are.
    """
    kind, _, name = source.partition(":")
    if kind != "folder" or not name:
        return source
    return f"folder:{os.path.abspath(os.path.expanduser(name))}"


def open_source(data, split: str) -> Source:
    """Opens the data that `data.source` names.

    Args:
      data: config.data (see runs/config.py for the fields).
        source: 'digits' | 'scenes' | 'synthetic' | 'folder:/path' | 'tfds:name[/config][:version]'.
        The other fields are those of its kind. Of pictures:
        size, channels: shape of every picture, [size, size, channels], channels 1 or 3.
        fit: 'crop' (the centre square, resized) or 'squash' (both sides resized).
      split: 'train' or 'test'.

    Raises:
      NoSplit: the data has no such split.
      UserError: anything else that the user can mend.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split is 'train' or 'test', not {split!r}")
    kind, colon, name = data.source.partition(":")
    known = KINDS.get(kind)
    if known is not None and bool(name) == (":" in known.usage) and bool(colon) == bool(name):
        known.check(data, kind)
        return known.open(name, split, data)
    if os.path.isdir(os.path.expanduser(data.source)):
        raise UserError(f"Unknown data.source={data.source!r}. Did you mean folder:{data.source}?")
    usages = [kind.usage for kind in KINDS.values()]
    raise UserError(f"Unknown data.source={data.source!r}.{near_misses(data.source, usages)}")
