"""Position embeddings of vision transformers: fixed sine and cosine, and resampling."""

import math

import jax
import jax.numpy as jnp
import numpy as np

POSITIONS = ("sincos_mae", "sincos_mocov3", "learned")


def sincos(dim: int, grid: int, order: str) -> np.ndarray:
    """Fixed two-dimensional sine and cosine positions.

    Each axis takes half of the channels, [sin(p·ω), cos(p·ω)] with
    ω_i = 10000^(−i / (dim/4)), i = 0 … dim/4 − 1 (not interleaved).

    Args:
      dim: channels D, a multiple of 4.
      grid: patches along a side n; tokens are row by row.
      order: which axis comes first. 'sincos_mae': the column, then the row (util/pos_embed.py,
        where the variable is called emb_h); 'sincos_mocov3': the row, then the column (vits.py,
        whose meshgrid is 'ij'). They differ by swapping the halves.

    Returns:
      float32 [n·n, D] (computed in float64).

    Raises:
      ValueError: dim is not a multiple of 4, or the order is unknown.
    """
    if dim % 4:
        raise ValueError(f"sincos: dim is {dim}; it must be a multiple of 4")
    if order not in POSITIONS[:2]:
        raise ValueError(f"sincos: order is {order!r}; known: {POSITIONS[:2]}")
    omega = 10000.0 ** (-np.arange(dim // 4) / (dim / 4))
    row, column = np.divmod(np.arange(grid * grid), grid)
    axes = (column, row) if order == "sincos_mae" else (row, column)
    halves = []
    for p in axes:
        angle = np.outer(p, omega)  # [n·n, D/4]
        halves += [np.sin(angle), np.cos(angle)]
    return np.concatenate(halves, 1).astype(np.float32)


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic kernel with a = −0.75, as PyTorch's bicubic."""
    a, x = -0.75, np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _cubic_matrix(source: int, target: int) -> np.ndarray:
    """[target, source]: weights of DINO's interpolation along one axis."""
    # DINO passes scale_factor (target + 0.1) / source (its issue 8: a plain ratio may round down),
    # and PyTorch then samples with that factor: not the same as resizing to the exact size.
    scale = source / (target + 0.1)
    centre = (np.arange(target) + 0.5) * scale - 0.5
    matrix = np.zeros((target, source))
    for tap in range(-1, 3):
        index = np.floor(centre).astype(int) + tap
        # Beyond the border the nearest pixel is repeated.
        column = np.clip(index, 0, source - 1)
        np.add.at(matrix, (np.arange(target), column), _cubic(centre - index))
    return matrix


def resample(positions: jax.Array, height: int, width: int) -> jax.Array:
    """Positions of a square grid at another grid (DINO's interpolate_pos_encoding).

    Bicubic with a = −0.75, no antialiasing; unchanged where the grids are equal.

    Args:
      positions: [n·n, D], row by row.
      height: rows of the wanted grid.
      width: columns of the wanted grid.

    Returns:
      [height·width, D], row by row.
    """
    tokens, dim = positions.shape
    n = math.isqrt(tokens)
    if (height, width) == (n, n):
        return positions
    rows = jnp.asarray(_cubic_matrix(n, height), positions.dtype)
    columns = jnp.asarray(_cubic_matrix(n, width), positions.dtype)
    # [h, n] · [n, n, D] · [w, n] -> [h, w, D]
    grid = jnp.einsum("hi,wj,ijd->hwd", rows, columns, positions.reshape(n, n, dim))
    return grid.reshape(height * width, dim)
