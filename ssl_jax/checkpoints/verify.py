"""Which checkpoint of a run is whole: verified against its manifest, damaged ones set aside."""

import json
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax

from ssl_jax.checkpoints import manifest
from ssl_jax.errors import UserError, warn
from ssl_jax.processes import talk

MARK = {"manifest": manifest.NAME}  # Orbax keeps it with the step: a manifest belongs to it
SPARED = 5  # attempts at reading from a run that deletes what is being read


def newest(manager, *, read_only: bool = False) -> int | None:
    """The newest checkpoint that is whole; every process calls it and gets the same answer.

    Process 0 verifies: it reads all files and compares them with the manifest. A damaged checkpoint
    is named on the console and set aside (renamed to `<step>.damaged`), and the one before is
    looked at. One without a manifest, which an older version made, is used and said to be so.

    Args:
      manager: from `store.open_manager`.
      read_only: damaged ones are named and passed over, not renamed. The run may be training.

    Returns:
      its step; None where there never was a checkpoint.

    Raises:
      UserError: there were some and none is whole.
    """
    return _on_every_process(manager, lambda folder: choose(folder, read_only))


def read_picked(
    manager, read: Callable[[int], Any], pick: Callable[[pathlib.Path], int]
) -> tuple[Any, int] | None:
    """Reads the checkpoint that `pick` finds; again where the run deletes it meanwhile.

    Args:
      manager: from `store.open_manager(read_only=True)`.
      read: step -> what is wanted of it.
      pick: folder of checkpoints -> step of one that is whole, or -1 where there is none. Process 0
        calls it.

    Returns:
      (what `read` returned, step); None where there is no checkpoint.

    Raises:
      UserError: the run deletes checkpoints faster than they are read.
      whatever `read` and `pick` raise.
    """
    folder = pathlib.Path(manager.directory)
    for _ in range(SPARED):
        step = _on_every_process(manager, pick)
        if step is None:
            return None
        value = problem = None
        try:
            value = read(step)
        except Exception as error:
            problem = error
        # The run keeps its newest few. Had this one been deleted under our hands, chunks not found
        # would have been read as zeros.
        gone = damage(folder / str(step), contents=False) is not None
        if not talk.any_process(gone):
            if problem is not None:
                raise problem
            return value, step
    raise UserError(f"{folder} changes faster than it is read; try again when the run has ended")


def _on_every_process(manager, pick: Callable[[pathlib.Path], int]) -> int | None:
    """What `pick` finds on process 0; None for its -1. The others fail where it fails."""
    folder = pathlib.Path(manager.directory)
    found, problem = -1, None
    if jax.process_index() == 0:
        try:
            found = pick(folder)
        except (OSError, UserError) as error:
            found, problem = -2, error
    found = talk.from_first(found)
    if problem is not None:
        raise problem
    if found == -2:
        raise UserError(f"process 0 finds no checkpoint in {folder} that can be read")
    return None if found == -1 else found


def steps(folder: pathlib.Path) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    try:
        names = [f.name for f in folder.iterdir() if f.is_dir()]
    except FileNotFoundError:
        return []
    return sorted(int(name) for name in names if is_step(name))


def is_step(name: str) -> bool:
    """Whether a folder's name is that of a checkpoint: its step, as `str` writes it."""
    return re.fullmatch("0|[1-9][0-9]{0,17}", name) is not None


def choose(folder: pathlib.Path, read_only: bool) -> int:
    """See `newest`; -1 where there never was a checkpoint."""
    passed_over: list[int] = []
    while True:
        listed = steps(folder)
        left = [step for step in listed if step not in passed_over]
        if not left:
            break
        step = folder / str(left[-1])
        problem = damage(step)
        if problem is None:
            if not manifest.exists(step):
                warn(f"checkpoint {step} has no checksums (an older version made it): not verified")
            return left[-1]
        if not read_only:
            set_aside(step, problem)
        elif steps(folder) == listed:  # else the run has gone on, and may have deleted it
            warn(f"checkpoint {step} is damaged: {problem}; passed over")
            passed_over.append(left[-1])
    aside = [f.name for f in folder.glob("*.damaged*")] if folder.is_dir() else []
    if not passed_over and not aside:
        return -1
    raise UserError(
        f"every checkpoint in {folder} is damaged; put back a copy of one, or delete that folder "
        "to begin again at step 0"
    )


def damage(step: pathlib.Path, under: str = "", contents: bool = True) -> str | None:
    """`manifest.damage`; a step that an older version saved has no manifest and passes."""
    if manifest.exists(step):
        return manifest.damage(step, under, contents)
    try:
        about = json.loads((step / "_CHECKPOINT_METADATA").read_text())
        marked = MARK.items() <= (about.get("custom_metadata") or {}).items()
    except FileNotFoundError:
        return "_CHECKPOINT_METADATA is missing"
    except (ValueError, AttributeError, RecursionError):
        return "_CHECKPOINT_METADATA is damaged"
    return f"{manifest.NAME} is missing" if marked else None


def set_aside(step: pathlib.Path, problem: str) -> None:
    """Renames a damaged step, so that it is none any more.

    Raises:
      UserError: the folder cannot be written.
    """
    names = (f"{step.name}.damaged{n}" for n in ("", *(f".{k}" for k in range(1, 1000))))
    aside = next(step.with_name(name) for name in names if not step.with_name(name).exists())
    try:
        step.rename(aside)
    except OSError as error:
        raise UserError(
            f"checkpoint {step} is damaged ({problem}) and cannot be renamed to {aside.name}: "
            f"{error.strerror}"
        ) from error
    warn(f"checkpoint {step} is damaged: {problem}; set aside as {aside.name}")
