"""Which patches are hidden from the encoder: the masks of masked image modelling.

A mask is bool [b, N], True where a patch is hidden, N = side² patches row by row. All examples show
equally many patches, so the visible ones of a batch are an array, and a mean over the hidden ones
weighs every example alike. The noise of an example comes from its own key.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.errors import UserError, near_misses

MASKINGS = ("random", "block", "grid")
TRIES = 50  # blocks proposed for an image; some 95% of the masks are complete by then
ASPECT = (0.3, 1 / 0.3)  # of a block, height / width


class Masking(NamedTuple):
    """A way to hide patches.

    Attributes:
      draw: typed keys [b] -> bool [b, N], True where hidden.
      visible: patches that stay, of every example.
    """

    draw: Callable[[jax.Array], jax.Array]
    visible: int


def make(name: str, side: int, ratio: float) -> Masking:
    """The masking of that name on a grid of side × side patches.

    'random' (MAE) and 'block' (BEiT) show int(N·(1 − ratio)) patches. 'grid' shows one of s²
    with ratio = 1 − 1/s²: rows and columns s apart; where s does not divide `side`, as many as fit
    wherever the grid begins, ⌊side/s⌋².

    Args:
      name: one of MASKINGS.
      side: patches along a side n.
      ratio: share of the patches that is hidden, in (0, 1).

    Raises:
      UserError: unknown name, or a ratio that this grid cannot have.
    """
    if name not in MASKINGS:
        raise UserError(f"--config.method.masking is {name!r}.{near_misses(name, MASKINGS)}")
    if not 0 < ratio < 1:
        raise UserError(
            f"--config.method.ratio is {ratio}; it is a share of the patches, between 0 and 1"
        )
    if name == "grid":
        stride = round((1 - ratio) ** -0.5)
        if not 2 <= stride <= side or abs(1 - 1 / stride**2 - ratio) > 0.01:
            raise UserError(
                f"--config.method.ratio is {ratio}; 'grid' shows one of s × s patches: 0.75, "
                f"0.889, … (s up to {side})"
            )
        draw = functools.partial(grid, side=side, stride=stride)
        return Masking(draw, (side // stride) ** 2)
    visible = int(side * side * (1 - ratio))  # truncated, as models_mae.py
    if not 0 < visible < side * side:
        raise UserError(
            f"--config.method.ratio is {ratio}: of {side * side} patches {visible} would be "
            f"visible; some must be, and some must not"
        )
    draw = {"random": random, "block": block}[name]
    return Masking(functools.partial(draw, side=side, visible=visible), visible)


def smallest(noise: jax.Array, visible: int) -> jax.Array:
    """Hides all but the `visible` patches of smallest noise.

    Args:
      noise: float [b, N]; of equal numbers the first is the smaller.
      visible: patches that stay.

    Returns:
      bool [b, N], N − visible of each row true.

    Source: facebookresearch/mae models_mae.py, random_masking.
    """
    rank = jnp.argsort(jnp.argsort(noise, 1), 1)
    return rank >= visible


def random(keys: jax.Array, side: int, visible: int) -> jax.Array:
    """Visible patches drawn without replacement, all alike (MAE).

    Args:
      keys: typed keys [b].
      side: patches along a side.
      visible: patches that stay.

    Returns:
      bool [b, side²].
    """
    noise = jax.vmap(lambda key: jax.random.uniform(key, (side * side,)))(keys)
    return smallest(noise, visible)


def block(keys: jax.Array, side: int, visible: int) -> jax.Array:
    """Rectangles of hidden patches, one over the other, until enough are hidden (BEiT).

    A block has an area ~ U(m, patches still to hide), log(h/w) ~ U(log ASPECT), both sides rounded
    and shorter than the image's, at a uniform place; it is laid if it hides something new and not
    too much. m is N // 12, BEiT's 16 of 196. Two things differ from BEiT, whose masks vary in size:
    an image gets TRIES proposals, however many were laid (there: up to ten more after each), and
    what is then still to hide is drawn at random (as DINOv2 does).

    Args, returns: as `random`.

    Source: Bao et al. 2021 (BEiT), algorithm 1; microsoft/unilm beit/masking_generator.py.
    """
    least = max(side * side // 12, 1)
    places = jnp.arange(side)

    def propose(mask, u):
        """mask bool [side, side], u float32 [4] in [0, 1)."""
        missing = side * side - visible - jnp.sum(mask)
        area = least + (missing - least) * u[0]
        aspect = jnp.exp(math.log(ASPECT[0]) + math.log(ASPECT[1] / ASPECT[0]) * u[1])
        h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        top, left = jnp.floor(u[2] * (side - h + 1)), jnp.floor(u[3] * (side - w + 1))
        rows = (places >= top) & (places < top + h)
        columns = (places >= left) & (places < left + w)
        inside = rows[:, None] & columns
        new = jnp.sum(inside & ~mask)
        fits = (h < side) & (w < side) & (new > 0) & (new <= missing)
        return mask | (inside & fits), None

    def one(key):
        block_key, rest_key = jax.random.split(key)
        u = jax.random.uniform(block_key, (TRIES, 4))
        mask, _ = lax.scan(propose, jnp.zeros((side, side), bool), u)
        return jnp.where(mask.reshape(-1), 1.0, jax.random.uniform(rest_key, (side * side,)))

    return smallest(jax.vmap(one)(keys), visible)


def grid(keys: jax.Array, side: int, stride: int) -> jax.Array:
    """All hidden but one patch in `stride`², on a regular grid with a random beginning.

    The MAE paper (section 4.1) has "one of every four patches" and no code. Here the first visible
    row and column are drawn, from all that leave room for ⌊side/stride⌋ of them.

    Args:
      keys: typed keys [b].
      side: patches along a side.
      stride: patches from one visible row to the next s.

    Returns:
      bool [b, side²].
    """
    count = side // stride
    first = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, side - stride * (count - 1)))(
        keys
    )  # [b, 2]
    steps = jnp.arange(side) - first[..., None]  # [b, 2, side]
    shown = (steps >= 0) & (steps % stride == 0) & (steps < stride * count)
    return ~(shown[:, 0, :, None] & shown[:, 1, None, :]).reshape(len(keys), -1)
