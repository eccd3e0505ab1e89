"""Several random views of every image."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.augment import pipeline
from ssl_jax.augment.policies import Policy
from ssl_jax.devices import collectives

LARGE = 32  # pixels; views from that size on are made one by one on CPU


class Undrawn(NamedTuple):
    """Images whose views are still to be drawn, in one go or some rows at a time.

    Attributes:
      image: uint8 [b, H, W, C].
      keys: typed keys [b, v], one for each view of every image.
    """

    image: jax.Array
    keys: jax.Array


def undrawn(v: int, key: jax.Array, image: jax.Array, axis: str | None) -> Undrawn:
    """What v views of every image are drawn from: `draw` makes of any rows of it their views.

    Args:
      v: views of an image.
      key, image, axis: as for `crops`.
    """
    keys = collectives.example_keys(key, len(image), axis)
    return Undrawn(image, jax.vmap(lambda k: jax.random.split(k, v))(keys))


def draw(policies: Sequence[Policy], views: Undrawn | jax.Array, axis: str | None) -> jax.Array:
    """One view of every image by each policy.

    Args:
      policies: v of them, static, all of one size. Equal neighbours are drawn in one go.
      views: b rows, v keys each. Or [b, v, …], drawn already: they come back as they are.
      axis: device axis or None.

    Returns:
      float32 [b, v, size, size, C], normalised.
    """
    if not isinstance(views, Undrawn):
        return views
    image, keys = views
    b, drawn, first = len(image), [], 0
    for policy, same in itertools.groupby(policies):
        n = len(list(same))
        part = keys[:, first : first + n].reshape(-1)
        # A batch of axis None may be split by `jit`.
        one_by_one = axis is not None and policy.size >= LARGE
        x = pipeline.apply(policy, part, jnp.repeat(image, n, axis=0), one_by_one)
        drawn.append(x.reshape(b, n, *x.shape[1:]))  # [b·n, s, s, C] -> [b, n, s, s, C]
        first += n
    return drawn[0] if len(drawn) == 1 else jnp.concatenate(drawn, 1)


def crops(
    policies: Sequence[Policy], key: jax.Array, image: jax.Array, axis: str | None
) -> jax.Array:
    """One view of every image by each policy.

    The views of an image stand side by side, so a row stays on its device when they are joined with
    `views.reshape(-1, …)`, also where `jit` splits the global batch.

    Args:
      policies: v of them, static, all of one size.
      key: typed key [], the same on every device; fold in a constant for a second set of views.
      image: uint8 [b, H, W, C], rows of this device.
      axis: device axis or None.

    Returns:
      float32 [b, v, size, size, C], normalised.
    """
    return draw(policies, undrawn(len(policies), key, image, axis), axis)
