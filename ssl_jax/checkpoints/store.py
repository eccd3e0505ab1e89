"""Checkpoints: the whole training state, and reading back the encoder alone (Orbax).

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
import functools
import gc
import hashlib
import logging
import os
import pathlib
import re
import shutil
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import v1

from ssl_jax.checkpoints import kept, manifest, verify
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
        stack.enter_context(_orbax_is_silent())
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


def restore(manager: Manager, step: int, like: Any) -> Any:
    """Reads the whole state of one step, onto the devices that `like` names.

    Args:
      manager: from `open_manager`.
      step: one of `manager.all_steps()`.
      like: pytree of arrays or ShapeDtypeStructs with shardings.

    Raises:
      UserError: the checkpoint is of another model or cannot be read.
    """
    path = manager.directory / str(step)
    target = abstract(like)
    try:
        with _reading():
            stored = _shapes(v1.metadata(path, checkpointable_name=STATE).metadata)
            problem = _difference(stored, _shapes(target))
            if problem is None:
                return _load(path, target)
    except Exception as error:
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        problem, cause = f"{type(error).__name__}: {first}", error
    else:
        cause = None
    raise UserError(
        f"checkpoint {path} does not hold this model's state ({problem}); use another --workdir, "
        "or the config that made it"
    ) from cause


def restore_part(manager: Manager, step: int, like: Any, select: Callable[[Any], Any]) -> Any:
    """Reads only the leaves that `select` picks: probing needs the encoder, not the optimizer.

    Args:
      manager: from `open_manager`.
      step: one of `manager.all_steps()`.
      like: the state, abstract (`jax.eval_shape`), with shardings; only what is picked is
        compared with the checkpoint.
      select: whole state -> pytree of some of its leaves.

    Returns:
      what `select` returns, with arrays for leaves.

    Raises:
      UserError: a leaf is missing or has another shape: another model made the checkpoint.
    """
    target = abstract(like)
    wanted = select(target)
    picked = {id(leaf) for leaf in jax.tree.leaves(wanted)}
    names = {
        id(leaf): _name(p)
        for p, leaf in jax.tree_util.tree_leaves_with_path(target)
        if id(leaf) in picked
    }
    path = manager.directory / str(step)
    with _reading(partial=True):
        stored = v1.metadata(path, checkpointable_name=STATE).metadata
        shapes = _shapes(stored)
        for leaf in jax.tree.leaves(wanted):
            name = names[id(leaf)]
            if name not in shapes:
                raise UserError(f"checkpoint {path} is of another model: it has no {name}")
            if shapes[name] != tuple(leaf.shape):
                raise UserError(
                    f"checkpoint {path} is of another model: its {name} is "
                    f"{shapes[name]}, the config's {tuple(leaf.shape)}"
                )
        part: dict[str, Any] = {}  # the picked leaves alone, as nested dictionaries
        for leaf in jax.tree.leaves(wanted):
            *folders, last = names[id(leaf)].split("/")
            inner = functools.reduce(lambda d, k: d.setdefault(k, {}), folders, part)
            inner[last] = leaf
        read = _load(path, part)
    return jax.tree.map(
        lambda leaf: functools.reduce(lambda d, k: d[k], names[id(leaf)].split("/"), read), wanted
    )


def _load(path: pathlib.Path, like: Any) -> Any:
    """Orbax's `load`. Where it fails, the reads that it breaks off end here, while they are silent.

    Else Python would name each of them when it collects them, much later.
    """
    try:
        return v1.load(path, like, checkpointable_name=STATE)
    except Exception as error:
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        raise


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every leaf; of a random key, that of its data, as it is stored."""

    def shape(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(leaf.shape)

    return {_name(p): shape(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def _difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first leaf that is not in both, or of another shape; None where all are the same."""
    for name in sorted({*stored, *wanted}):
        if name not in stored:
            return f"it has no {name}"
        if name not in wanted:
            return f"it has {name}, which the config's model has not"
        if stored[name] != wanted[name]:
            return f"its {name} is {stored[name]}, the config's {wanted[name]}"
    return None


def _reading(*, partial: bool = False) -> v1.Context:
    """Orbax's options for reading on this process, as if there were no others.

    Args:
      partial: only the leaves that are asked for. One that is not there would be passed over.
    """
    alone = _alone()
    context = v1.Context()
    context.multiprocessing.primary_host = alone.primary_host
    context.multiprocessing.active_processes = alone.active_processes
    context.multiprocessing.barrier_sync_key_prefix = alone.barrier_sync_key_prefix
    context.pytree.loading.partial_load = partial
    return context


def _alone() -> ocp.options.MultiprocessingOptions:
    """This process as if there were no others.

    With Orbax's barriers the others would wait 20 minutes where process 0 cannot write.
    """
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=None,  # no process waits for, or checks, what another one wrote
        active_processes={me},
        barrier_sync_key_prefix=f"process{me}",
    )


def _saver() -> ocp.AsyncCheckpointer:
    """What writes the items 'state' and 'metrics' of a checkpoint."""
    alone = _alone()
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
    if not folder.is_dir():
        # Not made anew: where a mount is lost, its empty mount point would fill up instead.
        return f"{folder} is gone"
    if step in manager.all_steps():
        return None
    items = {STATE: ocp.args.PyTreeSave(state)}
    if numbers := kept.numbers(metrics):
        items[METRICS] = ocp.args.JsonSave(numbers)
    try:
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
    """Deletes half-written and old steps; again where a failed save's thread still adds to one."""
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


@contextlib.contextmanager
def _orbax_is_silent():
    """Within it Orbax and TensorStore print nothing: their errors are raised besides."""

    def others(record):
        return "/orbax/" not in record.pathname

    def hook(seen):  # TensorStore's other reads and writes, when one has failed
        code = getattr(seen.object, "cr_code", None)
        ours = code is None or "/orbax/" not in code.co_filename
        if ours and str(seen.exc_value) != "Event loop is closed":
            before(seen)

    logger, before = logging.getLogger("absl"), sys.unraisablehook
    logger.addFilter(others)
    logging.getLogger("asyncio").addFilter(_of_no_save)  # stays
    sys.unraisablehook = hook
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        logger.removeFilter(others)
        sys.unraisablehook = before


def _of_no_save(record: logging.LogRecord) -> bool:
    """False for what asyncio says, late, of the tasks of a failed save or read.

    They are Orbax's, or await TensorStore, which has no frames in Python: its messages name the
    driver of an array ("zarr") and the database around it (OCDBT).
    """
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    theirs = any("/orbax/" in frame.f_code.co_filename for frame, _ in frames)
    return not theirs and not re.search(r'"zarr" driver|OCDBT', str(error))


def abstract(tree: Any) -> Any:
    """Shapes, dtypes and shardings of a pytree of arrays, one new object a leaf."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
    )


def fingerprint(state: Any) -> str:
    """SHA-256 over every leaf: name, dtype, shape and bytes, in tree order.

    Args:
      state: pytree of arrays (typed keys by their data), whole on this process.

    Returns:
      64 hexadecimal digits. Equal means equal to the last bit.
    """
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        host = np.asarray(leaf)
        digest.update(f"{_name(path)} {host.dtype} {host.shape}\n".encode())
        digest.update(np.ascontiguousarray(host).tobytes())
    return digest.hexdigest()


def _name(path) -> str:
    """'params/encoder/stem/kernel' from a key path, the same for tuples, dicts and fields."""
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(map(str, keys))
