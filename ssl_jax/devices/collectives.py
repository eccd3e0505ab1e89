"""Collectives: what the devices say to each other within a step. No other room calls `lax`'s but
`Context.keys` of the contract, which asks for the index of its device.

A step is written once, for the rows of one device, with the name of the device axis, or None. Every
collective here is the identity when the axis is None: the single device and the global view of
`jit` need none.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import flatten_util, lax


def pmean(x: Any, axis: str | None) -> Any:
    """Mean of a pytree over the devices; `x` itself when axis is None."""
    if axis is None:
        return x
    if _through_gloo() and {leaf.dtype for leaf in jax.tree.leaves(x)} == {jnp.dtype("float32")}:
        # A message for every array, two milliseconds each: one array, one message.
        flat, tree_of = flatten_util.ravel_pytree(x)
        return tree_of(lax.pmean(flat, axis))
    return lax.pmean(x, axis)


def mean_of(values: jax.Array, mask: jax.Array, axis: str | None) -> jax.Array:
    """The mean of some values over all devices, for a loss whose number of terms differs by row.

        Σ local values · mask / pmean(Σ local mask)

    averaged over the devices (as the step does) is Σ values · mask / Σ mask of the global batch. A
    mean over the local terms would weigh a device with few of them as much as one with many. Where
    nothing is masked in, it is 0.

    Args:
      values: floating [b, …].
      mask: bool or floating, the shape of `values` or one that broadcasts to it.
      axis: device axis or None.

    Returns:
      [] of the dtype of `values`.
    """
    mask = jnp.broadcast_to(mask, values.shape).astype(values.dtype)
    count = pmean(jnp.sum(mask), axis)
    return jnp.sum(values * mask) / jnp.where(count > 0, count, 1)


def psum(x: Any, axis: str | None) -> Any:
    """Sum of a pytree over the devices; `x` itself when axis is None."""
    return x if axis is None else lax.psum(x, axis)


def gather(x: Any, axis: str | None) -> Any:
    """Rows of all devices in device order: each leaf [b, …] -> [B, …].

    Differentiable: the transpose of a tiled all_gather is a psum_scatter, so the gradient of a
    global loss flows back to the rows of every device.
    """
    if axis is None:
        return x
    one = _gather_through_gloo if _through_gloo() else functools.partial(lax.all_gather, tiled=True)
    return jax.tree.map(lambda leaf: one(leaf, axis), x)


def _through_gloo() -> bool:
    """Whether collectives run between processes on CPU; docs/scaling.md has the measurements."""
    return jax.process_count() > 1 and jax.default_backend() == "cpu"


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gather_through_gloo(x: jax.Array, axis: str) -> jax.Array:
    """all_gather whose transpose is an all-reduce.

    Gloo's reduce-scatter keeps a limit of 30 s of its own (jax-ml/jax#40831), and after the first
    one every all-reduce of more than some 10 kB takes 70 to 100 ms instead of 2.
    """
    return lax.all_gather(x, axis, tiled=True)


def _gather_through_gloo_bwd(axis, b, dy):
    return (lax.dynamic_slice_in_dim(lax.psum(dy, axis), rank(axis) * b, b),)  # [B, …] -> [b, …]


_gather_through_gloo.defvjp(
    lambda x, axis: (_gather_through_gloo(x, axis), len(x)), _gather_through_gloo_bwd
)


def rank(axis: str | None) -> jax.Array | int:
    """Index of this device along the axis, int32 []; 0 when axis is None."""
    return 0 if axis is None else lax.axis_index(axis)


def size(axis: str | None) -> int:
    """Number of devices along the axis; 1 when axis is None."""
    return 1 if axis is None else lax.axis_size(axis)


def take(x: jax.Array, rows: jax.Array, axis: str | None) -> jax.Array:
    """Some rows of an array that is split over the devices, on all of them.

    What travels is the rows taken, never the array: each device gives those it has, and zeros.

    Args:
      x: [n / devices, …], the rows of this device, in device order.
      rows: int32 [b], of all n, the same on every device.
      axis: device axis, or None: x is whole.

    Returns:
      [b, …], the same on every device.
    """
    if axis is None:
        return x[rows]
    place = rows - rank(axis) * len(x)
    mine = (place >= 0) & (place < len(x))
    found = x[jnp.clip(place, 0, len(x) - 1)]  # [b, …]
    return psum(jnp.where(mine.reshape(-1, *[1] * (x.ndim - 1)), found, 0), axis)


def example_keys(key: jax.Array, b: int, axis: str | None) -> jax.Array:
    """One random key per example: fold_in(key, global row).

    The global row, not the device, names the noise: any device count draws the same.

    Args:
      key: typed key [].
      b: rows on this device.
      axis: device axis or None.

    Returns:
      typed keys [b].
    """
    rows = rank(axis) * b + jnp.arange(b)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(rows)
