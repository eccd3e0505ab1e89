"""Reading checkpoints: the whole state, or some of its leaves, compared with what is expected.

By Orbax's v1 API; nothing of another shape or name is passed over or fitted.
"""

import functools
import gc
import pathlib
import traceback
from collections.abc import Callable
from typing import Any

import jax
from orbax.checkpoint import v1

from ssl_jax.checkpoints import orbax, tree
from ssl_jax.checkpoints.store import STATE, Manager
from ssl_jax.errors import UserError


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
    target = tree.abstract(like)
    try:
        with _reading():
            stored = tree.shapes(v1.metadata(path, checkpointable_name=STATE).metadata)
            problem = tree.difference(stored, tree.shapes(target))
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
    target = tree.abstract(like)
    wanted = select(target)
    picked = {id(leaf) for leaf in jax.tree.leaves(wanted)}
    names = {
        id(leaf): tree.name(p)
        for p, leaf in jax.tree_util.tree_leaves_with_path(target)
        if id(leaf) in picked
    }
    path = manager.directory / str(step)
    with _reading(partial=True):
        stored = v1.metadata(path, checkpointable_name=STATE).metadata
        shapes = tree.shapes(stored)
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


def _reading(*, partial: bool = False) -> v1.Context:
    """Orbax's options for reading on this process, as if there were no others.

    Args:
      partial: only the leaves that are asked for. One that is not there would be passed over.
    """
    alone = orbax.alone()
    context = v1.Context()
    context.multiprocessing.primary_host = alone.primary_host
    context.multiprocessing.active_processes = alone.active_processes
    context.multiprocessing.barrier_sync_key_prefix = alone.barrier_sync_key_prefix
    context.pytree.loading.partial_load = partial
    return context
