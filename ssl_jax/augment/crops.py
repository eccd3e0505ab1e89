"""Several random views of every image."""

import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ssl_jax import parallel
from ssl_jax.augment import pipeline
from ssl_jax.augment.policies import Policy

LARGE = 32  # pixels; views from that size on are made one by one on CPU


def crops(
    policies: Sequence[Policy], key: jax.Array, image: jax.Array, axis: str | None
) -> jax.Array:
    """One view of every image by each policy.

    The views of an image stand side by side, so a row stays on its device when they are joined with
    `views.reshape(-1, …)`, also where `jit` splits the global batch.

    Args:
      policies: v of them, static, all of one size. Equal neighbours are drawn in one go.
      key: typed key [], the same on every device; fold in a constant for a second set of views.
      image: uint8 [b, H, W, C], rows of this device.
      axis: device axis or None.

    Returns:
      float32 [b, v, size, size, C], normalised.
    """
    b = len(image)
    keys = parallel.example_keys(key, b, axis)
    keys = jax.vmap(lambda k: jax.random.split(k, len(policies)))(keys)  # [b, v]
    drawn, first = [], 0
    for policy, same in itertools.groupby(policies):
        n = len(list(same))
        part = keys[:, first : first + n].reshape(-1)
        # A batch of axis None may be split by `jit`.
        one_by_one = axis is not None and policy.size >= LARGE
        views = pipeline.apply(policy, part, jnp.repeat(image, n, axis=0), one_by_one)
        drawn.append(views.reshape(b, n, *views.shape[1:]))  # [b·n, s, s, C] -> [b, n, s, s, C]
        first += n
    return drawn[0] if len(drawn) == 1 else jnp.concatenate(drawn, 1)
