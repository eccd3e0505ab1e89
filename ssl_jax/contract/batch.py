"""Batches: named fields with rows in front, and their shapes, made in one place.

A batch is {'index': int32 [b], 'label': int32 [b], **fields}, every field of the source with a
leading b. `index` is the stable number of an example, `label` its class, −1 for none.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Rows that fill up a last batch: no example, no label, and zeros in other fields, unless their
# source says otherwise. (A token of −1 would wrap around in a look-up.)
PADDING = {"index": -1, "label": -1}


def image(size: int, channels: int) -> dict[str, jax.ShapeDtypeStruct]:
    """The fields of a source of square pictures: {'image': uint8 [size, size, channels]}."""
    return {"image": jax.ShapeDtypeStruct((size, size, channels), jnp.uint8)}


def specs(
    fields: Mapping[str, jax.ShapeDtypeStruct], *lead: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a batch.

    Args:
      fields: of one example, from `Source.fields`.
      *lead: the axes in front: (b,), or (k, b) for k micro-batches.

    Returns:
      {'index': int32 [*lead], 'label': int32 [*lead], field: [*lead, …]}.
    """
    row = jax.ShapeDtypeStruct(lead, jnp.int32)
    whole = {k: jax.ShapeDtypeStruct((*lead, *f.shape), f.dtype) for k, f in fields.items()}
    return {**whole, "index": row, "label": row}


def flat_specs(
    fields: Mapping[str, jax.ShapeDtypeStruct], n: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """As `specs` of n rows, every field flat, [n, …] -> [n, prod]: how a set lies on a device.

    (A TPU would pad a last axis of 3 to 128.)
    """
    row = jax.ShapeDtypeStruct((n,), jnp.int32)
    flat = {k: jax.ShapeDtypeStruct((n, math.prod(f.shape)), f.dtype) for k, f in fields.items()}
    return {**flat, "index": row, "label": row}


def size(fields: Mapping[str, jax.ShapeDtypeStruct]) -> int:
    """Bytes of the fields of one example."""
    return sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in fields.values())


def pad(rows: Mapping[str, np.ndarray], missing: int, padding: Mapping[str, Any]) -> dict[str, Any]:
    """A batch with `missing` rows after its own, filled with PADDING or `Source.padding`."""
    values = {**PADDING, **padding}
    return {
        name: np.concatenate([x, np.full((missing, *x.shape[1:]), values.get(name, 0), x.dtype)])
        for name, x in rows.items()
    }


def noun(fields: Iterable[str]) -> str:
    """What examples are called where people read: 'images', or 'examples' of anything else.

    Args:
      fields: names of the fields of an example.
    """
    return "images" if "image" in fields else "examples"


def described(fields: Mapping[str, jax.ShapeDtypeStruct]) -> str:
    """What one example is, for people: '28×28×1' of an image, else 'tokens 64, mask 64'."""
    sides = {k: "×".join(map(str, f.shape)) or "1" for k, f in fields.items()}
    if set(sides) == {"image"}:
        return sides["image"]
    return ", ".join(f"{name} {side}" for name, side in sides.items())
