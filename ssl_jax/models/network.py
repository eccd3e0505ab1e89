"""Variables of a network made, and a forward pass in training that hands its statistics on."""

from typing import Any

import flax.linen as nn
import jax


def create(module: nn.Module, key: jax.Array, x: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    """Initial variables of a network and what it makes of `x` with them.

    Args:
      module: an encoder of `models.make` or a head, axis None.
      key: typed key [].
      x: what goes in, [b, …].

    Returns:
      ({'params': …, 'batch_stats': … ({} where it has none)}, module(x) [b, d]).
    """
    variables = module.init(key, x, train=False)
    y = module.apply(variables, x, train=False)
    return {
        "params": variables.get("params", {}),
        "batch_stats": variables.get("batch_stats", {}),
    }, y


def forward(
    module: nn.Module, params: Any, stats: Any, x: jax.Array, axis: str | None, **more: Any
) -> tuple[jax.Array, Any]:
    """One pass in training mode.

    Args:
      module: as for `create`.
      params: its parameters.
      stats: its BN statistics, {} where it has none.
      x: [b, …], rows of this device.
      axis: device axis or None.
      **more: further arguments of the module (`keys` of a ViT).

    Returns:
      (module(x) [b, d], the statistics after this batch, equal on every device).
    """
    y, after = module.clone(axis=axis).apply(
        {"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"], **more
    )
    return y, after.get("batch_stats", {})
