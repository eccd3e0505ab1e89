"""Jigsaw puzzles: an image cut into 3 × 3 tiles, and the orders to put them in."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ssl_jax.errors import UserError

SIDE = 3
TILES = SIDE * SIDE


@functools.lru_cache(maxsize=4)
def permutations(count: int, seed: int) -> np.ndarray:
    """Orders of nine tiles that are far from each other: greedily of largest mean Hamming distance.

    The first is drawn; each next one is, of those left, the farthest on average from all chosen so
    far. The mean, in paper and code, not the minimum: some pairs may differ in two places only.

    Many are equally far. The official script takes the one with the largest floating-point mean,
    and of equal ones the first in lexicographic order. The same sums are made here in the same
    order, so the choice is the script's after `np.random.seed(seed)`.

    Args:
      count: how many, from 1 to 9!.
      seed: of the first.

    Returns:
      int32 [count, 9], not writable: row k says which tile (row-major) comes to each place.

    Raises:
      UserError: count is not in that range.

    Source: Noroozi & Favaro 2016, algorithm 1; bbrattoli/JigsawPuzzlePytorch
    select_permutations.py, selection 'max'.
    """
    if not 1 <= count <= math.factorial(TILES):
        raise UserError(
            f"--config.method.permutations is {count}; nine tiles have 1 to "
            f"{math.factorial(TILES):,} orders"
        )
    every = np.array(list(itertools.permutations(range(TILES))), np.uint8)  # lexicographic
    places = np.ascontiguousarray(every.T)  # [9, 9!]
    total = np.zeros(len(every))  # sum of the distances to the chosen ones; −∞ once chosen
    chosen = [np.random.RandomState(seed).randint(len(every))]
    while len(chosen) < count:
        last = chosen[-1]
        differing = sum((row != row[last]).view(np.uint8) for row in places)
        total += differing / TILES
        total[last] = -np.inf
        chosen.append(int(np.argmax(total / len(chosen))))
    result = every[chosen].astype(np.int32)
    result.setflags(write=False)
    return result


def cut(images: jax.Array, offsets: jax.Array, tile: int, jitter: int) -> jax.Array:
    """Cuts one tile out of each of the 3 × 3 cells of every image.

    Cell n has its corner at (⌊n/3⌋, n mod 3) · ⌊s/3⌋, row by row (JigsawPuzzlePytorch under the
    Python 2 that it was written for, and PyContrast; VISSL goes by columns). Tile n begins
    offsets[n] further down and right. Beyond the image there is 0, as Pillow's crop has it.

    Between two neighbours ⌊s/3⌋ − tile − jitter pixels are left out at least. (Matrices of ones
    and zeros copy the pixels: batched matmuls, no gather.)

    Args:
      images: float32 [b, s, s, C].
      offsets: int [b, 9, 2] from 0 to `jitter`: rows, columns.
      tile: side of a tile t, pixels.
      jitter: largest offset, static.

    Returns:
      float32 [b, 9, t, t, C].
    """
    cell, reach = images.shape[1] // SIDE, tile + jitter
    images = jnp.pad(images, ((0, 0), (0, reach), (0, reach), (0, 0)))
    corners = [(cell * i, cell * j) for i, j in itertools.product(range(SIDE), repeat=2)]
    windows = [images[:, i : i + reach, j : j + reach] for i, j in corners]
    # [b, 9, 2, t, r]: does pixel i of the tile come from place j of its window?
    places = offsets[..., None, None] + jnp.arange(tile)[:, None]
    take = (places == jnp.arange(reach)).astype(images.dtype)
    exact = lax.Precision.HIGHEST
    x = jnp.einsum("bntr,bnrqc->bntqc", take[:, :, 0], jnp.stack(windows, 1), precision=exact)
    return jnp.einsum("bnuq,bntqc->bntuc", take[:, :, 1], x, precision=exact)


def normalise(tiles: jax.Array) -> jax.Array:
    """Every tile with mean 0 and deviation 1 in each channel, so that no tile tells its neighbour's
    brightness or colour.

    The deviation is the unbiased one (÷ n − 1); where it is 0, the tile becomes 0.

    Args:
      tiles: float32 [..., t, t, C], t ≥ 2.

    Returns:
      float32 [..., t, t, C].

    Source: bbrattoli/JigsawPuzzlePytorch Dataset/JigsawImageLoader.py. (It also adds up to two
    levels to each channel of a tile, which this takes away again, and it has the deviation at 1
    where it is 0.)
    """
    mean = jnp.mean(tiles, (-3, -2), keepdims=True)
    variance = jnp.var(tiles, (-3, -2), keepdims=True, ddof=1)
    return (tiles - mean) * lax.rsqrt(jnp.where(variance > 0, variance, 1.0))


def shuffle(tiles: jax.Array, orders: jax.Array) -> jax.Array:
    """Puts tile orders[t] at place t.

    Args:
      tiles: [b, 9, …].
      orders: int [b, 9], a permutation in each row.

    Returns:
      [b, 9, …].
    """
    return jax.vmap(lambda x, order: x[order])(tiles, orders)
