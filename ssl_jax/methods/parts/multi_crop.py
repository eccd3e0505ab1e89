"""Two global crops of an image and some small local ones, as SwAV and DINO have them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from ssl_jax import augment
from ssl_jax.contract.method import Context
from ssl_jax.errors import UserError
from ssl_jax.methods.parts import values
from ssl_jax.models import heads, network


class Crops(NamedTuple):
    """The policy of every crop.

    Attributes:
      big: of the two global ones.
      small: of the local ones, () where there are none.
    """

    big: tuple[augment.Policy, ...]
    small: tuple[augment.Policy, ...]


def policies(
    big: Sequence[augment.Policy], local: augment.Policy | None, local_crops: int
) -> Crops:
    """The policies of all crops.

    Args:
      big: of the two global crops.
      local: of a local crop, or None.
      local_crops: how many there are.

    Raises:
      UserError: fewer than 0, or some without a policy.
    """
    values.count(0, local_crops=local_crops)
    if local_crops and local is None:
        raise UserError(
            f"--config.method.local_crops is {local_crops}, but there is no views.local; "
            f"set local_crops to 0 or give views.local"
        )
    return Crops(tuple(big), (local,) * local_crops)


def local(views: Mapping[str, Any]) -> augment.Policy | None:
    """The policy of `config.views.local`, None where there is none."""
    return augment.make("none", **views["local"]) if "local" in views else None


def draw(crops: Crops, key: jax.Array, image: jax.Array, ctx: Context) -> dict[str, jax.Array]:
    """The crops of every image.

    Args:
      crops: of `policies`.
      key, image: as for `augment.crops`.
      ctx: of the step; its key is not used.

    Returns:
      'global' float32 [b, 2, S, S, C] and, where there are any, 'local' [b, k, s, s, C].
    """
    drawn = {"global": augment.crops(crops.big, key, image, ctx.axis)}
    if crops.small:
        local_key = ctx._replace(key=key).stream("local crops")
        drawn["local"] = augment.crops(crops.small, local_key, image, ctx.axis)
    return drawn


def together(views: Mapping[str, jax.Array]) -> list[jax.Array]:
    """The crops of `draw` by their size, the global ones first."""
    return [views[name] for name in ("global", "local") if name in views]


def embed(
    encoder: nn.Module,
    projector: nn.Module,
    params: Mapping[str, Any],
    stats: Mapping[str, Any],
    views: Mapping[str, jax.Array],
    axis: str | None,
) -> tuple[jax.Array, dict[str, Any]]:
    """Embeddings of all crops: those of one size go through the encoder together.

    Args:
      encoder, projector: networks.
      params, stats: with 'encoder' and 'projector', parameters and running statistics.
      views: of `draw`.
      axis: device axis or None.

    Returns:
      float32 [b, V, d] of unit length, the global crops first, and the statistics after them.
    """
    crops = together(views)
    h, f = network.forward_crops(encoder, params["encoder"], stats["encoder"], crops, axis)
    z = h.reshape(-1, h.shape[-1])  # [b, V, features] -> [b·V, features]
    z, g = network.forward(projector, params["projector"], stats["projector"], z, axis)
    return heads.unit(z).reshape(*h.shape[:2], -1), {"encoder": f, "projector": g}
