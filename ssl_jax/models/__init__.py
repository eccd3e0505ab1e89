"""Encoders by name.

Every encoder is a `flax.linen.Module` with

- `__call__(x float [b, h, w, C], train=False, keys=None) -> float32 [b, d]`,
- the property `features`, d,
- the field `axis`: `net.clone(axis=ctx.axis)` for statistics over all devices.

Variables are {'params': …} and, with BatchNorm, {'batch_stats': …}.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError, near_misses
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.vit import ViT

MODELS = {
    "resnet": ResNet,
    "resnet18": functools.partial(ResNet, blocks=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, blocks=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, blocks=(3, 4, 6, 3), bottleneck=True),
    "vit": ViT,
    "vit_tiny": functools.partial(ViT, width=192, depth=12, heads=3),
    "vit_small": functools.partial(ViT, width=384, depth=12, heads=6),
    "vit_base": functools.partial(ViT, width=768, depth=12, heads=12),
    "vit_large": functools.partial(ViT, width=1024, depth=24, heads=16),
}
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def make(config: Mapping[str, Any]) -> nn.Module:
    """The encoder that a configuration describes.

    Args:
      config: dict or ConfigDict: 'name', a key of MODELS; 'dtype', 'float32' (default),
        'bfloat16' or, for tests of equality, 'float64': the type of the computation; and any field
        of the module, see `ResNet` and `ViT`. A field given here wins over the one that the name
        implies.

    Returns:
      an unbound module, axis None.

    Raises:
      UserError: no or an unknown name, field or dtype.
    """
    fields = {key: config[key] for key in config}
    name = fields.pop("name", None)
    if name not in MODELS:
        raise UserError(f"model.name: unknown {name!r}.{near_misses(name, MODELS)}")
    constructor = MODELS[name]
    module = getattr(constructor, "func", constructor)
    known = {f.name for f in dataclasses.fields(module)} - {"parent", "name", "axis"}
    for key, value in fields.items():
        if key not in known:
            raise UserError(f"model.{key}: {name} has no such field.{near_misses(key, known)}")
        if isinstance(value, list):
            fields[key] = tuple(value)
    check_sizes(fields)
    return constructor(**{**fields, "dtype": dtype_of(fields.get("dtype", "float32"))})


def check_sizes(fields: Mapping[str, Any]) -> None:
    """Checks the numbers that a network is made of.

    Raises:
      UserError: one that is no whole number from 1 on.
    """
    for name in ("width", "depth", "heads", "size", "patch", "blocks"):
        value = fields.get(name, 1)
        parts = value if name == "blocks" and isinstance(value, tuple) else (value,)
        if not parts or not all(type(part) is int and part >= 1 for part in parts):
            what = "whole numbers from 1 on" if name == "blocks" else "a whole number from 1 on"
            raise UserError(f"--config.model.{name} is {value!r}; it must be {what}")


def dtype_of(name: str, field: str = "model.dtype") -> Any:
    """The dtype that `config.<field>` names.

    Raises:
      UserError: an unknown one, or 'float64' where JAX has none.
    """
    if name == "float64":  # for tests of equality
        if not jax.config.jax_enable_x64:
            raise UserError(
                f"--config.{field} is 'float64', which needs JAX_ENABLE_X64=1 in the "
                "environment; set that, or choose float32 or bfloat16"
            )
        return jnp.float64
    if name not in DTYPES:
        raise UserError(f"{field}: unknown {name!r}.{near_misses(name, DTYPES)}")
    return DTYPES[name]
