"""Checkpoints: the whole training state, and reading back the encoder alone (Orbax).

A checkpoint gets its name when all of it is on disk, with a manifest of checksums (`manifest.py`)
that is verified before anything is read (`verify.py`). Only process 0 saves: the state is whole on
every process. A save that fails costs no more than that checkpoint: training goes on and tries
again.
"""

import asyncio
import contextlib
import errno
import functools
import gc
import hashlib
import logging
import os
import pathlib
import shutil
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.metadata import array_metadata_store
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ssl_jax.checkpoints import manifest, verify
from ssl_jax.errors import UserError, warn
from ssl_jax.processes import insist

TEMPORARY = ocp.path.atomicity.TMP_DIR_SUFFIX  # in the name of a step until it is whole
DELETED = (
    "deleted"  # folder that old steps are moved to, at once, before they are deleted bit by bit
)
DISK_ERRORS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOENT),
)


class Sealed(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A step's folder until it gets its name: Orbax's, and then a manifest is written.

    A class because that is Orbax's hook (`CheckpointManagerOptions.temporary_path_class`). Its
    callback comes before Orbax's own last two files, which the manifest would not cover.
    """

    async def finalize(self) -> None:
        if TEMPORARY in self.get_final().parent.name:  # an item of a step, not the step
            return await super().finalize()
        sealing = self.get().with_name(f"{self.get().name}-sealing")  # still a temporary name
        whole = ocp.path.atomicity.AtomicRenameTemporaryPath(
            self.get(), sealing, checkpoint_metadata_store=self._checkpoint_metadata_store
        )
        await whole.finalize()
        await asyncio.to_thread(manifest.write, pathlib.Path(sealing))
        await asyncio.to_thread(sealing.rename, self.get_final())


@contextlib.contextmanager
def open_manager(folder: pathlib.Path, keep: int, *, read_only: bool = False):
    """Opens the checkpoints of a run: the newest `keep`, and the best by kNN.

    Half-written and half-deleted ones are deleted. A context manager: leaving it waits for the
    last save.

    Args:
      folder: `<workdir>/checkpoints`.
      keep: how many of the newest stay. (Orbax's own `max_to_keep` with `best_fn` would delete
        the newest.)
      read_only: for probing, also of a run that goes on: nothing in the folder is changed.

    Yields:
      an orbax CheckpointManager that saves in the background.

    Raises:
      UserError: the folder cannot be made, or, on leaving, the last save failed.
    """
    folder = folder.absolute()
    me = jax.process_index()
    read_only = read_only or me > 0
    policy = preservation_policy.AnyPreservationPolicy(
        [
            preservation_policy.LatestN(keep),
            preservation_policy.BestN(
                get_metric_fn=lambda metrics: metrics["knn_top1"],
                n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policy,
        best_fn=lambda metrics: metrics["knn_top1"],  # without it Orbax forgets them on a restart
        create=False,
        read_only=read_only,
        lightweight_initialize=read_only,  # probing needs no metrics
        temporary_path_class=Sealed,
        todelete_subdir=DELETED,
        # At once: made in the background, they are waited for by signals that do not come where a
        # process is on its own, or where one cannot be made.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        # Each process on its own, without Orbax's barriers: where process 0 cannot write, the
        # others would wait 20 minutes at them.
        multiprocessing_options=_alone(),
    )
    if not read_only:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"cannot make {folder}: {error.strerror}; choose another --workdir"
            ) from error
        _clean(folder)
        # Orbax reads the metrics of every step at once, and damaged ones would stop it.
        for step in verify.steps(folder):
            problem = verify.damage(folder / str(step), "metrics")
            if problem:
                verify.set_aside(folder / str(step), problem)
    with _orbax_is_silent():
        manager = ocp.CheckpointManager(folder, options=options, handler_registry=_handlers())
        try:
            yield manager
        except BaseException:
            problem = _settle(manager)
            if problem:
                warn(f"a checkpoint could not be saved in {folder} ({problem})")
            _close(manager, read_only)
            raise
        problem = _settle(manager)
        _close(manager, read_only)
        if problem:
            raise UserError(f"the last checkpoint could not be saved in {folder} ({problem})")


def save(manager, state: Any, knn_top1: float | None = None) -> None:
    """Starts saving `state` under its step, in the background, on process 0.

    What goes wrong (a full disk, a folder that is gone) is said on one line; nothing is raised, and
    the next call tries again.

    Args:
      manager: from `open_manager`.
      state: TrainState.
      knn_top1: the newest kNN accuracy in [0, 1], by which the best checkpoint is kept.
    """
    if jax.process_index() > 0:
        return
    step = int(state.step)
    _settle(manager)  # what failed before was said when it did
    problem = _start(manager, state, step, knn_top1)
    if problem:
        _say_not_saved(manager, step, problem)
    else:
        name = _watch_name(manager)
        threading.Thread(target=_watch, args=(manager, step), name=name, daemon=True).start()


def save_last(manager, state: Any, knn_top1: float | None = None) -> None:
    """Saves `state` and returns when it is on disk; every process calls it.

    Where that fails it is tried again for ten minutes (`patience.insist`): at the end of a run, or
    when it is asked to stop, there is no later save.

    Args:
      manager, state, knn_top1: as for `save`.

    Raises:
      UserError: it could not be saved in all that time.
    """
    step = int(state.step)

    def attempt() -> str | None:
        _settle(manager)
        return _start(manager, state, step, knn_top1) or _settle(manager)

    insist.insist(
        attempt,
        f"checkpoint {manager.directory / str(step)}",
        "when it can, the same command continues from the checkpoint before",
    )


def restore(manager, step: int, like: Any) -> Any:
    """Reads the whole state of one step, onto the devices that `like` names.

    Args:
      manager: from `open_manager`.
      step: one of `manager.all_steps()`.
      like: pytree of arrays or ShapeDtypeStructs with shardings.

    Raises:
      UserError: the checkpoint is of another model or cannot be read.
    """
    target = abstract(like)
    try:
        arguments = ocp.args.PyTreeRestore(
            item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
        )
        read = ocp.args.Composite(state=arguments)
        return manager.restore(step, args=read).state
    except Exception as error:
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
        raise UserError(
            f"checkpoint {manager.directory / str(step)} does not hold this model's state "
            f"({type(error).__name__}: {first}); use another --workdir, or the config that made it"
        ) from error


def restore_part(manager, step: int, like: Any, select: Callable[[Any], Any]) -> Any:
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
    path = manager.directory / str(step) / "state"
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=_alone())
    with ocp.Checkpointer(handler, multiprocessing_options=_alone()) as reader:
        stored = reader.metadata(path).item_metadata.tree
        shapes = {_name(p): tuple(m.shape) for p, m in jax.tree_util.tree_leaves_with_path(stored)}
        for leaf in jax.tree.leaves(wanted):
            name = names[id(leaf)]
            if name not in shapes:
                raise UserError(f"checkpoint {path.parent} is of another model: it has no {name}")
            if shapes[name] != tuple(leaf.shape):
                raise UserError(
                    f"checkpoint {path.parent} is of another model: its {name} is "
                    f"{shapes[name]}, the config's {tuple(leaf.shape)}"
                )
        part: dict[str, Any] = {}  # the picked leaves alone, as nested dictionaries
        for leaf in jax.tree.leaves(wanted):
            *folders, last = names[id(leaf)].split("/")
            inner = functools.reduce(lambda d, k: d.setdefault(k, {}), folders, part)
            inner[last] = leaf
        arguments = ocp.args.PyTreeRestore(
            item=part,
            restore_args=ocp.checkpoint_utils.construct_restore_args(part),
            partial_restore=True,
        )
        read = reader.restore(path, args=arguments)
    return jax.tree.map(
        lambda leaf: functools.reduce(lambda d, k: d[k], names[id(leaf)].split("/"), read), wanted
    )


def _alone() -> ocp.options.MultiprocessingOptions:
    """This process as if there were no others."""
    me = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=None,  # no process waits for, or checks, what another one wrote
        active_processes={me},
        barrier_sync_key_prefix=f"process{me}",
    )


def _handlers() -> ocp.handlers.DefaultCheckpointHandlerRegistry:
    """How the item 'state' of a checkpoint is written and read."""
    arrays = ocp.type_handlers.ArrayHandler(
        primary_host=None,
        use_replica_parallel=False,  # else every process would have to write a part
        array_metadata_store=array_metadata_store.Store(),  # as Orbax has it: kinds of random keys
    )
    state = ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((jax.Array, arrays)),
        multiprocessing_options=_alone(),
    )
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    registry.add("state", ocp.args.PyTreeSave, state)
    registry.add("state", ocp.args.PyTreeRestore, state)
    return registry


def _start(manager, state: Any, step: int, knn_top1: float | None) -> str | None:
    """Starts a save; returns what went wrong already, on one line, or None."""
    folder = pathlib.Path(manager.directory)
    if not folder.is_dir():
        # Not made anew: where a mount is lost, its empty mount point would fill up instead.
        return f"{folder} is gone"
    if step in manager.all_steps():
        return None
    metrics = None if knn_top1 is None else {"knn_top1": knn_top1}
    arguments = ocp.args.Composite(state=ocp.args.PyTreeSave(state))
    try:
        manager.save(step, args=arguments, metrics=metrics, custom_metadata=verify.MARK, force=True)
    except Exception as error:
        _forget(manager)
        return _line(error)
    return None


def _settle(manager) -> str | None:
    """Waits for the save in progress; returns what went wrong, on one line, or None."""
    problem = None
    try:
        manager.wait_until_finished()
    except Exception as error:
        problem = _line(error)
    for thread in threading.enumerate():  # before another save writes where it deletes
        if thread.name == _watch_name(manager):
            thread.join()
    if problem:
        _forget(manager)
    return problem


def _close(manager, read_only: bool) -> None:
    """Ends the manager; what a late thread of a failed save has written since is deleted."""
    manager.close()
    if not read_only:
        _clean(pathlib.Path(manager.directory))


def _forget(manager) -> None:
    """Deletes what a failed save left, and lets Orbax look again which steps there are."""
    gc.collect()  # its unfinished writes, whose warnings would come later, when they are heard
    _clean(pathlib.Path(manager.directory))
    with contextlib.suppress(Exception):
        manager.reload()


def _watch(manager, step: int) -> None:
    """Waits for a save, in a thread of its own, and frees the disk; says at once if it fails."""
    problem = None
    try:
        manager.wait_until_finished()
    except Exception as error:
        problem = _line(error)
    _clean(pathlib.Path(manager.directory))
    if problem:
        _say_not_saved(manager, step, problem)


def _watch_name(manager) -> str:
    return f"watch {manager.directory}"


def _say_not_saved(manager, step: int, problem: str) -> None:
    warn(
        f"checkpoint {manager.directory / str(step)} is not saved ({problem}); training goes on, "
        "and the next one is tried as usual"
    )


def _clean(folder: pathlib.Path) -> None:
    """Deletes half-written and old steps; again where a failed save's thread still adds to one."""
    for left in (*folder.glob(f"*{TEMPORARY}*"), *folder.glob(DELETED)):
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

    def hook(seen):  # TensorStore's other writes, when one has failed
        if str(seen.exc_value) != "Event loop is closed":
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
    """False for what asyncio says of a failed save's tasks, which Python may collect much later."""
    error = record.exc_info[1] if record.exc_info else None
    frames = traceback.walk_tb(error.__traceback__ if error else None)
    return not any("/orbax/" in frame.f_code.co_filename for frame, _ in frames)


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
