"""Saving checkpoints of the whole training state (Orbax); `reading.py` reads them.

A checkpoint gets its name when all of it is on disk, with a manifest of checksums (`manifest.py`)
that is verified before anything is read (`verify.py`). Which ones stay is decided in `kept.py`.
Only process 0 saves: the state is whole on every process. A save that fails costs no more than that
checkpoint: training goes on and tries again.

Orbax writes and reads the arrays; folders, names and deletions are ours, so that the manifest is
written before a checkpoint has its name. Reading is by Orbax's v1 API, writing by its older
`AsyncCheckpointer`: v1 has no save that process 0 can make alone. (`v1.save_async` compares paths
with a collective of all processes, whatever `active_processes` says, and `v1.training.Checkpointer`
refuses `active_processes`; tried with Orbax 0.12.8.) Both share one format.
"""

import concurrent.futures
import contextlib
import errno
import gc
import os
import pathlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import v1

from ssl_jax.checkpoints import kept, manifest, orbax, verify
from ssl_jax.errors import UserError, warn
from ssl_jax.processes import insist

TEMPORARY = ".orbax-checkpoint-tmp"  # in the name of a step until it is whole; Orbax's own suffix
DELETED = (
    "deleted"  # folder that old steps are moved to, at once, before they are deleted bit by bit
)
STATE = "state"  # the item of a checkpoint that holds it
METRICS, NUMBERS = kept.METRICS.split("/")  # the item that the best is chosen by, and its file
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOENT),
)


class Manager:
    """The checkpoints of a run, and the save in progress: what `open_manager` yields.

    Attributes:
      directory: `<workdir>/checkpoints`.
      keep: how many of the newest stay.
      best: which stays besides.
    """

    def __init__(self, directory: pathlib.Path, keep: int, best: kept.Best, saver, pool):
        self.directory, self.keep, self.best = directory, keep, best
        self._saver = saver  # Orbax's; None where nothing is to be saved
        self._pool = pool  # of one thread, for what follows a save
        self._saving: concurrent.futures.Future | None = None

    def all_steps(self) -> list[int]:
        """Steps of the finished checkpoints, oldest first."""
        return verify.steps(self.directory)

    def latest_step(self) -> int | None:
        """The newest of them; None where there is none."""
        return max(self.all_steps(), default=None)

    def wait_until_finished(self) -> None:
        """Waits for the save in progress. What goes wrong with it is said, not raised."""
        if self._saving is not None:
            concurrent.futures.wait([self._saving])


@contextlib.contextmanager
def open_manager(
    folder: pathlib.Path, keep: int, best: kept.Best = kept.KNN, *, read_only: bool = False
):
    """Opens the checkpoints of a run: the newest `keep`, and the best.

    Half-written and half-deleted ones are deleted. A context manager: leaving it waits for the
    last save.

    Args:
      folder: `<workdir>/checkpoints`.
      keep: how many of the newest stay.
      best: the metric by which one more is kept, and whether more or less of it is better. One that
        was saved without the metric, or with NaN, is never the best.
      read_only: for probing, also of a run that goes on: nothing in the folder is changed.

    Yields:
      a Manager that saves in the background.

    Raises:
      UserError: the folder cannot be made, or, on leaving, the last save failed.
    """
    folder = folder.absolute()
    read_only = read_only or jax.process_index() > 0
    if not read_only:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make {folder}: {error.strerror}; choose another --workdir"
            ) from error
        _clean(folder)
        # Those that cannot be compared are not deleted for being worse than others.
        for step in verify.steps(folder):
            problem = verify.damage(folder / str(step), "metrics")
            if problem:
                verify.set_aside(folder / str(step), problem)
    with contextlib.ExitStack() as stack:
        stack.enter_context(orbax.silent())
        saver = pool = None
        if not read_only:
            stack.callback(_clean, folder)  # what a late thread of a failed save has written since
            pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1, "checkpoint"))
            saver = stack.enter_context(_saver())
        manager = Manager(folder, keep, best, saver, pool)
        try:
            yield manager
        except BaseException:
            problem = _settle(manager)
            if problem:
                warn(f"a checkpoint could not be saved in {folder} ({problem})")
            raise
        problem = _settle(manager)
        if problem:
            raise UserError(f"the last checkpoint could not be saved in {folder} ({problem})")


def save(manager: Manager, state: Any, metrics: Mapping[str, Any] | None = None) -> None:
    """Starts saving `state` under its step, in the background, on process 0.

    What goes wrong (a full disk, a folder that is gone) is said on one line; nothing is raised, and
    the next call tries again.

    Args:
      manager: from `open_manager`.
      state: TrainState.
      metrics: what the monitors have found of late, by which the best checkpoint is kept. Its
        finite numbers are saved; text and NaN are not.
    """
    if jax.process_index() > 0:
        return
    step = int(state.step)
    _settle(manager)  # what failed before was said when it did
    problem = _start(manager, state, step, metrics, say=True)
    if problem:
        _say_not_saved(manager, step, problem)


def save_last(manager: Manager, state: Any, metrics: Mapping[str, Any] | None = None) -> None:
    """Saves `state` and returns when it is on disk; every process calls it.

    Where that fails it is tried again for ten minutes (`insist.insist`): at the end of a run, or
    when it is asked to stop, there is no later save.

    Args:
      manager, state, metrics: as for `save`.

    Raises:
      UserError: it could not be saved in all that time.
    """
    step = int(state.step)

    def attempt() -> str | None:
        _settle(manager)
        return _start(manager, state, step, metrics, say=False) or _settle(manager)

    insist.insist(
        attempt,
        f"checkpoint {manager.directory / str(step)}",
        "when it can, the same command continues from the checkpoint before",
    )


def _saver() -> ocp.AsyncCheckpointer:
    """What writes the items 'state' and 'metrics' of a checkpoint."""
    alone = orbax.alone()
    arrays = ocp.type_handlers.ArrayHandler(
        primary_host=None,
        use_replica_parallel=False,  # else every process would have to write a part
        # As Orbax has it; it holds the kinds of random keys.
        array_metadata_store=v1.options.ArrayOptions.Saving().array_metadata_store,
    )
    state = ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
        multiprocessing_options=alone,
    )
    metrics = ocp.JsonCheckpointHandler(NUMBERS, multiprocessing_options=alone)
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add(STATE, ocp.args.PyTreeSave, state)
    registry.add(METRICS, ocp.args.JsonSave, metrics)
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(
            handler_registry=registry,
            composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
        ),
        # At once: made in the background, they are waited for by signals that do not come where a
        # process is on its own, or where one cannot be made.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        multiprocessing_options=alone,
    )


def _start(
    manager: Manager, state: Any, step: int, metrics: Mapping[str, Any] | None, *, say: bool
) -> str | None:
    """Starts a save; returns what went wrong already, on one line, or None.

    Args:
      say: what goes wrong later is said as soon as it does.
    """
    folder = manager.directory
    items = {STATE: ocp.args.PyTreeSave(state)}
    if numbers := kept.numbers(metrics):
        items[METRICS] = ocp.args.JsonSave(numbers)
    try:
        if not folder.is_dir():
            # Not made anew: where a mount is lost, its empty mount point would fill up instead.
            return f"{folder} is gone"
        if step in manager.all_steps():
            return None
        manager._saver.save(
            _unsealed(folder, step),
            args=ocp.args.Composite(**items),
            custom_metadata=verify.MARK,
            force=True,
        )
    except Exception as error:
        _forget(manager)
        return _line(error)
    manager._saving = manager._pool.submit(_seal, manager, step, say)
    return None


def _unsealed(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Where a step is written until it has its manifest: still a temporary name."""
    return folder / f"{step}{TEMPORARY}-sealing"


def _seal(manager: Manager, step: int, say: bool) -> str | None:
    """Waits for a save, gives it its manifest and then its name, and frees the disk.

    Runs in a thread of its own.

    Returns:
      what went wrong, on one line, or None.
    """
    folder = manager.directory
    try:
        manager._saver.wait_until_finished()
        manifest.write(_unsealed(folder, step))
        _unsealed(folder, step).rename(folder / str(step))
    except Exception as error:
        problem = _line(error)
        _forget(manager)
        if say:
            _say_not_saved(manager, step, problem)
        return problem
    with contextlib.suppress(OSError):  # what cannot be deleted now, is after the next save
        for old in kept.obsolete(kept.listed(folder), manager.keep, manager.best):
            _retire(folder, old)
    _clean(folder)
    return None


def _retire(folder: pathlib.Path, step: int) -> None:
    """Takes a step away in one move, for `_clean` to delete it."""
    (folder / DELETED).mkdir(exist_ok=True)
    (folder / str(step)).rename(folder / DELETED / str(step))


def _settle(manager: Manager) -> str | None:
    """Waits for the save in progress; returns what went wrong, on one line, or None."""
    saving, manager._saving = manager._saving, None
    return saving.result() if saving is not None else None


def _forget(manager: Manager) -> None:
    """Deletes what a failed save left, and what its late threads still write."""
    gc.collect()  # its unfinished writes, whose warnings would come later, when they are heard
    for _ in range(20):
        _clean(manager.directory)
        time.sleep(0.05)
        with contextlib.suppress(OSError):
            if not _unfinished(manager.directory):
                break


def _say_not_saved(manager, step: int, problem: str) -> None:
    warn(
        f"checkpoint {manager.directory / str(step)} is not saved ({problem}); training goes on, "
        "and the next one is tried as usual"
    )


def _unfinished(folder: pathlib.Path) -> list[pathlib.Path]:
    """Half-written steps, and the folder of old ones."""
    return [*folder.glob(f"*{TEMPORARY}*"), *folder.glob(DELETED)]


def _clean(folder: pathlib.Path) -> None:
    """Deletes half-written and old steps; again where a failed save's thread still adds to one.

    What cannot be deleted now, is after the next save.
    """
    with contextlib.suppress(OSError):
        for left in _unfinished(folder):
            for _ in range(20):
                shutil.rmtree(left, ignore_errors=True)
                if not left.exists():
                    break
                time.sleep(0.05)


def _line(error: BaseException) -> str:
    """What went wrong, short: TensorStore wraps 'No space left on device' in a page of text."""
    text = " ".join(str(error).split())
    reasons = (os.strerror(number) for number in DISK_ERRORS)
    return next((r for r in reasons if r in text), f"{type(error).__name__}: {text[:200]}")
