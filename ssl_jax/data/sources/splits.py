"""Names of splits: which of those that a set has is meant by `data.train_split` or `test_split`."""

from collections.abc import Iterable

from ssl_jax.errors import UserError, near_misses

TRAIN = ("train", "training")
TEST = ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation")
# What configs say by themselves. Sets have other names for the same, so these are looked for under
# all of them; any other name was written by the user, and must be there as it is.
LOOSE = {"train": ("train",), "test": ("test", "validation")}


def find(wanted: str, split: str, known: Iterable[str]) -> str | None:
    """The name in `known` that `wanted` means.

    Args:
      wanted: `data.train_split` or `data.test_split`.
      split: 'train' or 'test'.
      known: names that the set has.

    Returns:
      `wanted` if it is there; for a name of LOOSE the first of TRAIN or TEST in any capitals, those
      of its own beginning first ('val' before 'test' for 'validation'); else None.
    """
    known = sorted(known, reverse=True)
    if wanted in known:
        return wanted
    if wanted not in LOOSE[split]:
        return None
    family = TRAIN if split == "train" else TEST
    if wanted == "validation":
        family = tuple(sorted(family, key=lambda name: name.startswith("test")))
    there = {name.lower(): name for name in known}  # of equals the first in order of the alphabet
    return next((there[name] for name in (wanted, *family) if name in there), None)


def missing(wanted: str, split: str, known: Iterable[str], where: str) -> UserError:
    """The error for a split that the user has named and that is not there."""
    known = list(known)
    hint = near_misses(wanted, known) if known else ""
    return UserError(f"{where} has no split {wanted!r} (--config.data.{split}_split).{hint}")


def check_fixed(data, kind: str) -> None:
    """Checks the names of splits for a kind of source that has 'train' and 'test' and no others.

    Raises:
      UserError: another name, which would be ignored.
    """
    for split in ("train", "test"):
        wanted = getattr(data, f"{split}_split")
        if wanted not in LOOSE[split]:
            raise missing(wanted, split, ("train", "test"), kind)
