"""Vision transformers (Dosovitskiy et al. 2020) as MAE, MoCo v3 and DINO build them."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.precision import wide, wide_dtype
from ssl_jax.errors import UserError, near_misses
from ssl_jax.models.linear import Linear
from ssl_jax.models.positions import POSITIONS, resample, sincos

# Initial values: (patch embedding, qkv, the other linear layers, std of the class token).
# MAE leaves the bias of its patch convolution at PyTorch's U(±1/√fan_in); it is 0 here.
INITS = {
    "mae": ("xavier", "xavier", "xavier", 0.02),
    "mocov3": ("xavier", "xavier_qkv", "xavier", 1e-6),
    "dino": ("torch", "normal", "normal", 0.02),
}
POOLS = ("token", "mean")


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """Images to vectors, patches row by row, each in the order (row, column, channel), as MAE.

    Args:
      x: [b, h, w, C]; h and w multiples of `patch`.
      patch: side of a patch p, pixels.

    Returns:
      [b, (h/p)·(w/p), p·p·C].

    Raises:
      ValueError: h or w is not a multiple of p.
    """
    b, h, w, c = x.shape
    if h % patch or w % patch:
        raise ValueError(f"patchify: an image of {h}×{w} is not whole patches of {patch}")
    x = x.reshape(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, -1, patch * patch * c)


def drop_path(x: jax.Array, keys: jax.Array, rate: float) -> jax.Array:
    """Sets whole examples to 0 with probability `rate`, the others to x / (1 − rate).

    Stochastic depth (Huang et al. 2016). One key per example, so any device count drops the same.

    Args:
      x: [b, …], the output of a residual branch.
      keys: typed keys [b].
      rate: in [0, 1).
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)
    keep = keep.reshape(-1, *[1] * (x.ndim - 1))
    return jnp.where(keep, x / (1 - rate), jnp.zeros_like(x))


def _fold(keys: jax.Array | None, data: int) -> jax.Array | None:
    """A new key per example, or None."""
    return None if keys is None else jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)


def layer_norm(dtype: Any, name: str | None = None) -> nn.Module:
    """The LayerNorm of these transformers, over the last axis; its parameters are float32."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, param_dtype=wide_dtype(dtype), name=name)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √(D/heads)) v; the softmax in float32.

    Attributes:
      width: channels D.
      heads: must divide D.
      initial: key of INITS.
      dtype: of the computation.
    """

    width: int
    heads: int
    initial: str
    dtype: Any

    def setup(self):
        _, qkv, other, _ = INITS[self.initial]
        self.qkv = Linear(3 * self.width, initial=qkv, dtype=self.dtype)
        self.proj = Linear(self.width, initial=other, dtype=self.dtype)

    def attend(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[b, T, D] -> (weights float32 [b, heads, T, T], rows sum to 1; v [b, T, heads, e])."""
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        # [b, T, h, e] · [b, S, h, e] -> [b, h, T, S]
        logits = jnp.einsum("bthe,bshe->bhts", q, k, preferred_element_type=wide_dtype(self.dtype))
        return nn.softmax(logits / math.sqrt(d // self.heads)), v

    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, T, D] -> [b, T, D]."""
        weights, v = self.attend(x)
        # [b, h, T, S] · [b, S, h, e] -> [b, T, h, e] -> [b, T, D]
        return self.proj(jnp.einsum("bhts,bshe->bthe", weights.astype(v.dtype), v).reshape(x.shape))


class Block(nn.Module):
    """x ← x + attention(norm(x)); x ← x + mlp(norm(x)), the mlp with GELU (erf).

    The sum x is float32 whatever `dtype` is, as under PyTorch's autocast: in bfloat16 a deep
    network's branches would be rounded away beside it.

    Attributes:
      width: channels D.
      heads: attention heads; must divide D.
      mlp: hidden width of the mlp as a multiple of D.
      rate: DropPath of both branches.
      initial: key of INITS.
      dtype: of the computation.
    """

    width: int
    heads: int
    mlp: float = 4.0
    rate: float = 0.0
    initial: str = "mae"
    dtype: Any = jnp.float32

    def setup(self):
        other = INITS[self.initial][2]
        self.norm1 = layer_norm(self.dtype)
        self.attn = Attention(self.width, self.heads, self.initial, self.dtype)
        self.norm2 = layer_norm(self.dtype)
        self.fc1 = Linear(int(self.width * self.mlp), initial=other, dtype=self.dtype)
        self.fc2 = Linear(self.width, initial=other, dtype=self.dtype)

    def attention(self, x: jax.Array) -> jax.Array:
        """[b, T, D] -> the attention weights, float32 [b, heads, T, T]."""
        return self.attn.attend(self.norm1(x))[0]

    def __call__(self, x: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """float32 [b, T, D] -> float32 [b, T, D]; keys: typed keys [b] for DropPath, or None."""
        drop = keys is not None and self.rate > 0
        y = self.attn(self.norm1(x))
        x = x + (drop_path(y, _fold(keys, 0), self.rate) if drop else y)
        y = self.fc2(nn.gelu(self.fc1(self.norm2(x)), approximate=False))
        return x + (drop_path(y, _fold(keys, 1), self.rate) if drop else y)


class ViT(nn.Module):
    """Pre-norm vision transformer without classifier.

    `__call__` is pool(encode(embed(x), keys)); the parts are methods of their own, so that MAE can
    drop tokens between `embed` and `encode`:

        net.apply(variables, x, method=lambda net, x: net.normalise(net.encode(keep(net.embed(x)))))

    Attributes:
      size: side of the images that `positions` are made for, pixels. Other sizes work: the
        positions are resampled as DINO does.
      patch: side of a patch p, pixels.
      width: channels D.
      depth: blocks.
      heads: attention heads; must divide D. (MoCo v3's ViT-S has 12, the usual one 6.)
      mlp: hidden width of the mlp as a multiple of D.
      positions: 'sincos_mae', 'sincos_mocov3' (both fixed) or 'learned'.
      token: put a class token before the patches. Its fixed position is 0.
      pool: 'token': norm, then the class token. 'mean': the mean of the patch tokens, then norm
        (MAE's global_pool, whose fc_norm is the one `norm` here).
      drop_path: DropPath rate of the last block; it grows linearly from 0 at the first.
      freeze_patch: no gradient into the patch embedding (MoCo v3's stop_grad_conv1). The optimizer
        must also leave it alone: weight decay needs no gradient.
      initial: 'mae', 'mocov3' or 'dino': initial values as that code.
      dtype: of the blocks' computation; the sum that they add to, the final norm and the
        parameters are float32.
      remat: the backward pass computes every block again from its input, which is all it keeps.
      axis: unused (no BatchNorm); every encoder has it, for `net.clone(axis=ctx.axis)`.
    """

    size: int = 224
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp: float = 4.0
    positions: str = "sincos_mae"
    token: bool = True
    pool: str = "token"
    drop_path: float = 0.0
    freeze_patch: bool = False
    initial: str = "mae"
    dtype: Any = jnp.float32
    remat: bool = False
    axis: str | None = None

    @property
    def features(self) -> int:
        """Width d of the features."""
        return self.width

    def setup(self):
        self._check()
        kind = wide_dtype(self.dtype)
        self.patch_embed = Linear(self.width, initial=INITS[self.initial][0], dtype=self.dtype)
        if self.token:
            token_init = nn.initializers.normal(INITS[self.initial][3])
            self.class_token = self.param("class_token", token_init, (self.width,), kind)
        grid = self.size // self.patch
        if self.positions == "learned":
            shape = (self.token + grid * grid, self.width)
            self.table = self.param("positions", nn.initializers.normal(0.02), shape, kind)
        else:
            table = sincos(self.width, grid, self.positions)
            self.table = jnp.pad(table, ((int(self.token), 0), (0, 0)))
        rate = self.drop_path / max(self.depth - 1, 1)
        make = nn.remat(Block) if self.remat else Block
        self.blocks = [
            make(self.width, self.heads, self.mlp, rate * i, self.initial, self.dtype)
            for i in range(self.depth)
        ]
        self.norm = layer_norm(kind)

    def _check(self):
        for field, known in (("positions", POSITIONS), ("pool", POOLS), ("initial", INITS)):
            value = getattr(self, field)
            if value not in known:
                raise UserError(f"model.{field}: unknown {value!r}.{near_misses(value, known)}")
        if self.size % self.patch:
            raise UserError(f"model.size {self.size} is no multiple of model.patch {self.patch}")
        if self.width % self.heads:
            raise UserError(f"model.heads {self.heads} does not divide model.width {self.width}")
        if self.positions != "learned" and self.width % 4:
            raise UserError(f"model.width {self.width}: sine positions need a multiple of 4")
        if self.pool == "token" and not self.token:
            raise UserError("model.pool 'token' needs model.token True; or choose pool 'mean'")

    def embed(
        self, x: jax.Array, mask: jax.Array | None = None, mask_token: jax.Array | None = None
    ) -> jax.Array:
        """Patch tokens with their positions, without the class token.

        Args:
          x: float [b, h, w, C].
          mask: bool [b, N]; where true, `mask_token` stands in for the patch, at its position
            (BEiT, SimMIM). None: nowhere.
          mask_token: [D].

        Returns:
          float32 [b, N, D], N = (h/p)·(w/p), row by row.
        """
        height, width = x.shape[1] // self.patch, x.shape[2] // self.patch
        tokens = wide(self.patch_embed(patchify(x, self.patch)))  # [b, N, p·p·C] -> [b, N, D]
        if self.freeze_patch:
            tokens = lax.stop_gradient(tokens)
        if mask is not None:
            tokens = jnp.where(mask[..., None], mask_token, tokens)
        return tokens + resample(self.table[int(self.token) :], height, width)

    def _with_token(self, tokens: jax.Array) -> jax.Array:
        """[b, n, D] -> [b, 1 + n, D], or as it is where there is no class token."""
        if not self.token:
            return tokens
        token = self.class_token + self.table[0]
        return jnp.concatenate([jnp.broadcast_to(token, (len(tokens), 1, self.width)), tokens], 1)

    def encode(self, tokens: jax.Array, keys: jax.Array | None = None) -> jax.Array:
        """Puts the class token in front and runs the blocks; no final norm.

        Args:
          tokens: [b, n, D]: `embed`'s, or some of them.
          keys: typed keys [b] for DropPath, or None: no DropPath.

        Returns:
          float32 [b, 1 + n, D] ([b, n, D] without class token).
        """
        tokens = self._with_token(tokens)
        for i, block in enumerate(self.blocks):
            tokens = block(tokens, _fold(keys, i))
        return tokens

    def normalise(self, tokens: jax.Array) -> jax.Array:
        """The final LayerNorm, over the last axis."""
        return self.norm(tokens)

    def summarise(self, tokens: jax.Array) -> jax.Array:
        """`encode`'s tokens [b, T, D] to features, float32 [b, D], as `pool` says."""
        if self.pool == "token":
            return self.norm(tokens[:, 0])
        return self.norm(jnp.mean(tokens[:, int(self.token) :], 1))

    def __call__(
        self, x: jax.Array, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Images to features.

        Args:
          x: float [b, h, w, C]; h and w multiples of `patch`.
          train: DropPath is on.
          keys: typed keys [b], one per example (`collectives.example_keys`); only for DropPath.

        Returns:
          float32 [b, D].

        Raises:
          UserError: train with drop_path > 0 and no keys.
        """
        if train and self.drop_path > 0 and keys is None:
            raise UserError(
                f"model.drop_path is {self.drop_path:g}, but this method drops no paths (DINO's "
                "student and MAE's encoder do); set it to 0"
            )
        return self.summarise(self.encode(self.embed(x), keys if train else None))

    def intermediate(self, x: jax.Array, count: int) -> tuple[jax.Array, ...]:
        """Normalised tokens after each of the last `count` blocks (DINO's linear evaluation).

        Args:
          x: float [b, h, w, C].
          count: number of blocks, ≥ 1.

        Returns:
          `count` arrays, float32 [b, T, D], the last block's last.
        """
        tokens, kept = self._with_token(self.embed(x)), []
        for i, block in enumerate(self.blocks):
            tokens = block(tokens)
            if i >= self.depth - count:
                kept.append(self.norm(tokens))
        return tuple(kept)

    def last_blocks(self, x: jax.Array, n: int) -> tuple[jax.Array | None, jax.Array]:
        """Normalised tokens of the last `n` blocks, class tokens apart from patch tokens.

        Args:
          x: float [b, h, w, C].
          n: number of blocks, from 1 to `depth`.

        Returns:
          class tokens [b, n, D] (None for a ViT without one) and patch tokens [b, n, N, D] on the
          grid row by row, float32, the last block's last.

        Raises:
          UserError: n is not from 1 to `depth`.
        """
        if not 1 <= n <= self.depth:
            raise UserError(f"{n} last blocks of a ViT with {self.depth}: it takes 1 to them all")
        tokens = jnp.stack(self.intermediate(x, n), 1)  # n × [b, T, D] -> [b, n, T, D]
        return (tokens[:, :, 0] if self.token else None), tokens[:, :, int(self.token) :]

    def attention(self, x: jax.Array) -> jax.Array:
        """Attention weights of the last block, float32 [b, heads, T, T], rows sum to 1.

        With a class token, [:, :, 0, 1:] is what DINO's pictures show, on the grid of patches.
        """
        tokens = self._with_token(self.embed(x))
        for block in self.blocks[:-1]:
            tokens = block(tokens)
        return self.blocks[-1].attention(tokens)
