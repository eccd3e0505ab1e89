"""Pytrees of a state: the names of their leaves, their shapes, their fingerprint."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def name(path) -> str:
    """'params/encoder/stem/kernel' from a key path, the same for tuples, dicts and fields."""
    keys = (getattr(k, "key", getattr(k, "name", getattr(k, "idx", k))) for k in path)
    return "/".join(map(str, keys))


def shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every leaf; of a random key, that of its data, as it is stored."""

    def shape(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.eval_shape(jax.random.key_data, leaf)
        return tuple(leaf.shape)

    return {name(p): shape(x) for p, x in jax.tree_util.tree_leaves_with_path(tree)}


def difference(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> str | None:
    """The first leaf that is not in both, or of another shape; None where all are the same."""
    for leaf in sorted({*stored, *wanted}):
        if leaf not in stored:
            return f"it has no {leaf}"
        if leaf not in wanted:
            return f"it has {leaf}, which the config's model has not"
        if stored[leaf] != wanted[leaf]:
            return f"its {leaf} is {stored[leaf]}, the config's {wanted[leaf]}"
    return None


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
        digest.update(f"{name(path)} {host.dtype} {host.shape}\n".encode())
        digest.update(np.ascontiguousarray(host).tobytes())
    return digest.hexdigest()
