"""A linear layer whose initial values are named after the code that a recipe comes from."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.contract.precision import wide_dtype
from ssl_jax.errors import UserError, near_misses

INITS = ("torch", "normal", "xavier", "xavier_qkv", "simclr", "haiku")


def _uniform(limit: float):
    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -limit, limit)

    return init


def initializers(name: str, fan_in: int, features: int):
    """(kernel, bias) initializers of a linear layer fan_in -> features.

    - 'torch': U(±1/√fan_in) for both, nn.Linear's default.
    - 'normal': N(0, 0.02²), bias 0 (DINO, timm). Their trunc_normal_ cuts at ±2, not at two
      standard deviations: a hundred σ away, so it cuts nothing.
    - 'xavier': U(±√(6/(fan_in + features))), bias 0 (MAE).
    - 'xavier_qkv': the same with a third of `features`: q, k and v are three layers that happen to
      be stored as one (MoCo v3, vits.py; MAE takes the joint matrix).
    - 'simclr': N(0, 0.01²), bias 0 (SimCLR's linear_layer, TensorFlow).
    - 'haiku': N(0, 1/fan_in) cut at two standard deviations, bias 0 (BYOL; Haiku does not restore
      the variance that the cut takes away, so the standard deviation is 0.88/√fan_in).

    Raises:
      UserError: unknown name.
    """
    zeros = nn.initializers.zeros
    if name == "torch":
        return _uniform(1 / math.sqrt(fan_in)), _uniform(1 / math.sqrt(fan_in))
    if name == "normal":
        return nn.initializers.normal(0.02), zeros
    if name == "xavier":
        return _uniform(math.sqrt(6 / (fan_in + features))), zeros
    if name == "xavier_qkv":
        return _uniform(math.sqrt(6 / (fan_in + features // 3))), zeros
    if name == "simclr":
        return nn.initializers.normal(0.01), zeros
    if name == "haiku":
        return nn.initializers.truncated_normal(1 / math.sqrt(fan_in)), zeros
    raise UserError(f"initial: unknown name {name!r}.{near_misses(name, INITS)}")


class Linear(nn.Module):
    """y = x @ kernel + bias, as `nn.Dense`.

    Attributes:
      features: output width.
      use_bias: learn `bias` [features].
      initial: see `initializers`.
      dtype: of the computation and the result; `kernel` [in, features] and `bias` are float32.
    """

    features: int
    use_bias: bool = True
    initial: str = "torch"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[…, in] -> […, features] of `dtype`."""
        fan_in = x.shape[-1]
        kernel_init, bias_init = initializers(self.initial, fan_in, self.features)
        kind = wide_dtype(self.dtype)
        kernel = self.param("kernel", kernel_init, (fan_in, self.features), kind)
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)  # […, in] @ [in, features]
        if self.use_bias:
            bias = self.param("bias", bias_init, (self.features,), kind)
            y = y + bias.astype(self.dtype)
        return y
