"""Checkpoints: the whole training state, and reading back the encoder alone (Orbax)."""

import functools
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from ssl_jax.errors import UserError


def open_manager(folder: pathlib.Path, keep: int, *, read_only: bool = False):
    """Opens the checkpoints of a run: the newest `keep`, and the best by kNN.

    Args:
      folder: `<workdir>/checkpoints`.
      keep: how many of the newest stay. (Orbax's own `max_to_keep` with `best_fn` would delete
        the newest.)
      read_only: for probing; the folder must exist.

    Returns:
      an orbax CheckpointManager that saves in the background; close it.
    """
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
        preservation_policy=policy, create=not read_only, read_only=read_only
    )
    return ocp.CheckpointManager(folder.absolute(), options=options)


def save(manager, state: Any, knn_top1: float | None = None) -> None:
    """Starts saving `state` under its step, in the background.

    Args:
      manager: from `open_manager`.
      state: TrainState.
      knn_top1: the newest kNN accuracy in [0, 1], by which the best checkpoint is kept.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    metrics = None if knn_top1 is None else {"knn_top1": knn_top1}
    arguments = ocp.args.Composite(state=ocp.args.StandardSave(state))
    manager.save(step, args=arguments, metrics=metrics)


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
        read = ocp.args.Composite(state=ocp.args.StandardRestore(target))
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
    with ocp.PyTreeCheckpointer() as reader:
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
