"""Variables of a network made, and a forward pass in training that hands its statistics on."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.errors import UserError


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


def forward_in_pieces(
    module: nn.Module, params: Any, stats: Any, x: jax.Array, axis: str | None, rows: int
) -> tuple[jax.Array, Any]:
    """`forward` of `rows` rows at a time, each piece computed again in the backward pass.

    A loss that compares all rows needs all embeddings, and no more: activations are those of one
    piece. For a network without BatchNorm value and gradients are those of `forward`; BatchNorm
    normalises each piece by its own rows (those of all devices) and moves its running statistics
    piece by piece, as with gradient accumulation. The price is one more forward pass.

    Args:
      module, params, stats, axis: as for `forward`.
      x: [b, …], rows of this device.
      rows: of a piece on a device; 0, or b and more: all at once.

    Returns:
      as `forward`.

    Raises:
      UserError: `rows` does not divide b.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup" (GradCache). Its two passes are here one scan whose pieces are rematerialised.
    """
    b = len(x)
    if not rows or rows >= b:
        return forward(module, params, stats, x, axis)
    if rows < 0 or b % rows:
        raise UserError(
            f"--config.method.encoder_rows is {rows}; it must divide the {b} views that a device "
            "holds of a batch"
        )
    pieces = b // rows

    def piece(stats, x):
        y, stats = forward(module, params, stats, x, axis)
        return stats, y

    # Piece p is rows p, p + pieces, …: where `jit` splits the rows over devices, every piece is
    # split alike. [b, …] -> [rows, pieces, …] -> [pieces, rows, …]
    split = jnp.moveaxis(x.reshape(rows, pieces, *x.shape[1:]), 1, 0)
    stats, y = lax.scan(jax.checkpoint(piece, prevent_cse=False), stats, split)
    return jnp.moveaxis(y, 0, 1).reshape(b, -1), stats  # [pieces, rows, d] -> [b, d]


def forward_crops(
    module: nn.Module,
    params: Any,
    stats: Any,
    crops: list[jax.Array],
    axis: str | None,
    keys: jax.Array | None = None,
) -> tuple[jax.Array, Any]:
    """One pass in training mode for each size of crop (multi-crop of SwAV and DINO).

    Crops of one size that follow each other go through together and share BatchNorm statistics, as
    in the official codes (MultiCropWrapper in dino/utils.py, forward in swav/src/resnet50.py).

    Args:
      module, params, stats, axis: as for `forward`.
      crops: [b, v_i, s_i, s_i, C] each, V = Σ v_i crops of every image.
      keys: typed keys [b, V] for the module's own noise (DropPath), or None.

    Returns:
      (features [b, V, d], the statistics after all of them).
    """
    joined = []
    for x in crops:
        if joined and joined[-1].shape[2:] == x.shape[2:]:
            joined[-1] = jnp.concatenate([joined[-1], x], 1)
        else:
            joined.append(x)
    features, first = [], 0
    for x in joined:
        b, v = x.shape[:2]
        more = {} if keys is None else {"keys": keys[:, first : first + v].reshape(-1)}
        # [b, v, s, s, C] -> [b·v, s, s, C]
        y, stats = forward(module, params, stats, x.reshape(-1, *x.shape[2:]), axis, **more)
        features.append(y.reshape(b, v, -1))
        first += v
    return jnp.concatenate(features, 1), stats
