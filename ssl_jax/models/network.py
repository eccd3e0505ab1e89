"""Variables of a network made, and a forward pass in training that hands its statistics on."""

from collections.abc import Callable
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
    module: nn.Module,
    params: Any,
    stats: Any,
    x: Any,
    axis: str | None,
    rows: int,
    draw: Callable[[Any], jax.Array] = lambda x: x,
    each: int = 1,
) -> tuple[jax.Array, Any]:
    """`forward` of `rows` views at a time, each piece computed again in the backward pass.

    A loss that compares all rows needs all embeddings, and no more: views and activations are those
    of one piece. For a network without BatchNorm value and gradients are those of `forward`;
    BatchNorm normalises each piece by its own rows (those of all devices) and moves its running
    statistics piece by piece, as with gradient accumulation. The price is one more forward pass.

    Args:
      module, params, stats, axis: as for `forward`.
      x: leaves [b, …], rows of this device, of which the views are made.
      rows: views of a piece on a device; 0, or b·each and more: all at once.
      draw: leaves [n, …] of x -> the views [n·each, …] that the module gets of these rows, those of
        a row side by side.
      each: views that `draw` makes of a row.

    Returns:
      (module(draw(x)) [b·each, d], the statistics after all pieces).

    Raises:
      UserError: pieces of `rows` views are not whole rows of x, or do not add up to all.

    Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under Memory Limited
    Setup" (GradCache). Its two passes are here one scan whose pieces are rematerialised.
    """
    total = each * len(jax.tree.leaves(x)[0])
    if not rows or rows >= total:
        return forward(module, params, stats, draw(x), axis)
    if rows < 0 or total % rows or rows % each:
        whole = f", and be a multiple of the {each} views of an image" if each > 1 else ""
        raise UserError(
            f"--config.method.encoder_rows is {rows}; it must divide the {total} views that a "
            f"device holds of a batch{whole}"
        )
    pieces = total // rows

    def take(leaf, p):
        # Piece p is rows p, p + pieces, …: where `jit` splits the rows over devices, every piece is
        # split alike. [b, …] -> [b / pieces, pieces, …] -> [b / pieces, …]
        leaf = leaf.reshape(-1, pieces, *leaf.shape[1:])
        return lax.dynamic_index_in_dim(leaf, p, 1, keepdims=False)

    def piece(stats, p):
        part = jax.tree.map(lambda leaf: take(leaf, p), x)
        y, stats = forward(module, params, stats, draw(part), axis)
        return stats, y

    stats, y = lax.scan(jax.checkpoint(piece, prevent_cse=False), stats, jnp.arange(pieces))
    y = y.reshape(pieces, -1, each * y.shape[-1])  # -> [pieces, b / pieces, each·d]
    return jnp.moveaxis(y, 0, 1).reshape(total, -1), stats


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
