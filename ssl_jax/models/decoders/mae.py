"""The decoder of masked autoencoders: from the visible tokens to the pixels of every patch."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.contract.precision import wide, wide_dtype
from ssl_jax.errors import UserError
from ssl_jax.models.linear import Linear
from ssl_jax.models.positions import sincos
from ssl_jax.models.vit import Block, layer_norm


class Decoder(nn.Module):
    """Tokens to pixels: narrower, mask tokens where nothing was seen, positions, blocks, linear.

    It is there for training alone (He et al. 2021, MAE; models_mae.py, forward_decoder). Positions
    are fixed sines and cosines in MAE's order, the class token's is 0.

    Attributes:
      out: values of a patch d = p·p·C.
      width: channels.
      depth: blocks.
      heads: attention heads; must divide `width`.
      mlp: hidden width of the blocks' mlp as a multiple of `width`.
      token: a class token comes before the patches.
      dtype: of the blocks' computation; what they add to, the last norm and layer, and the
        parameters are float32.
      remat: the backward pass computes every block again from its input, which is all it keeps.
      axis: unused (no BatchNorm).
    """

    out: int
    width: int = 512
    depth: int = 8
    heads: int = 16
    mlp: float = 4.0
    token: bool = True
    dtype: Any = jnp.float32
    remat: bool = False
    axis: str | None = None

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, train: bool = False) -> jax.Array:
        """Predicts all patches, the visible ones as well.

        Args:
          tokens: [b, t + V, D], normalised: the class token (t is 1 or 0), then the V visible
            patches, row by row. Or [b, t + N, D], all of them: then there is no mask token here.
          mask: bool [b, N], true where hidden; each row has V patches that are not.
          train: unused (no dropout).

        Returns:
          float32 [b, N, out], patches row by row.

        Raises:
          UserError: `heads` does not divide `width`, or it is no multiple of 4.
        """
        if self.width % self.heads or self.width % 4:
            raise UserError(
                f"method.decoder: width {self.width} must be a multiple of 4 and of the "
                f"heads, {self.heads}"
            )
        first, patches, kind = int(self.token), mask.shape[1], wide_dtype(self.dtype)
        tokens = wide(Linear(self.width, initial="xavier", dtype=self.dtype, name="embed")(tokens))
        if tokens.shape[1] < first + patches:
            mask_token = self.param("mask_token", nn.initializers.normal(0.02), (self.width,), kind)
            # A visible patch is the k-th token, k the number of visible patches before it.
            place = first + jnp.maximum(jnp.cumsum(~mask, 1) - 1, 0)  # [b, N]
            seen = jnp.take_along_axis(tokens, place[..., None], 1)  # [b, N, width]
            filled = jnp.where(mask[..., None], mask_token, seen)
            tokens = jnp.concatenate([tokens[:, :first], filled], 1)
        positions = sincos(self.width, math.isqrt(patches), "sincos_mae")
        tokens = tokens + jnp.pad(positions, ((first, 0), (0, 0)))
        make = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            block = make(self.width, self.heads, self.mlp, dtype=self.dtype, name=f"blocks_{i}")
            tokens = block(tokens)
        tokens = layer_norm(kind, name="norm")(tokens)
        # What is compared with the pixels is float32.
        return Linear(self.out, initial="xavier", dtype=kind, name="predict")(tokens[:, first:])
