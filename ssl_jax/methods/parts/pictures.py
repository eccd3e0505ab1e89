"""Pictures of what a method does to images, for `Show`. Pure, and to be traced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ssl_jax.augment import Policy

VIEWS = 6  # of each image, where they are drawn at random
GAP = 2  # pixels between the tiles of a puzzle


def of_views(views: jax.Array, policy: Policy) -> jax.Array:
    """Views without their normalisation.

    Args:
      views: float [..., C], (x − mean) / std.
      policy: that drew them.

    Returns:
      uint8 [..., C], round(255 · x), x cut off to [0, 1].
    """
    channels = views.shape[-1]
    x = views * per_channel(policy.std, channels) + per_channel(policy.mean, channels)
    return _bytes(x)


def of_patches(patches: jax.Array, patch: int, policy: Policy) -> jax.Array:
    """Pictures of patches, without their normalisation.

    Args:
      patches: float [b, N, p·p·C], as for `unpatchify`.
      patch: side of a patch p, pixels.
      policy: that drew the views.

    Returns:
      uint8 [b, s, s, C], s = √N · p.
    """
    return of_views(unpatchify(patches, patch, patches.shape[-1] // patch**2), policy)


def of_puzzles(tiles: jax.Array) -> jax.Array:
    """Puzzles as pictures: tiles side by side, black between them.

    Args:
      tiles: float [n, 9, t, t, C], each of mean 0 and deviation 1 (a blank one is 0): mid-grey is
        the mean, black and white are two deviations away.

    Returns:
      uint8 [n, s, s, C], s = 3 · t + 2 · GAP.
    """
    n, _, side, _, channels = tiles.shape
    shown = _bytes(0.5 + tiles / 4).reshape(n, 3, 3, side, side, channels)
    shown = jnp.pad(shown, ((0, 0), (0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)))
    whole = shown.transpose(0, 1, 3, 2, 4, 5).reshape(n, *(2 * [3 * (side + GAP)]), channels)
    return whole[:, :-GAP, :-GAP]


def unpatchify(patches: jax.Array, patch: int, channels: int) -> jax.Array:
    """The inverse of `vit.patchify` for square images.

    Args:
      patches: [b, N, p·p·C], N a square number, row by row.
      patch: side of a patch p, pixels.
      channels: C.

    Returns:
      [b, s, s, C], s = √N · p.
    """
    b, count, _ = patches.shape
    side = round(count**0.5)
    x = patches.reshape(b, side, side, patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, side * patch, side * patch, channels)


def per_channel(values: Sequence[float], channels: int) -> jax.Array:
    """Normalisation per channel, as augment/pipeline.py reads it: float32 [C]."""
    if len(values) != channels:
        values = (sum(values) / len(values),) * channels
    return jnp.asarray(tuple(values), jnp.float32)


def _bytes(x):
    return jnp.round(255 * jnp.clip(x, 0, 1)).astype(jnp.uint8)
