"""Batch normalisation: over the global batch, or over groups of a fixed number of rows."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from ssl_jax.contract.precision import wide_dtype
from ssl_jax.devices import collectives


class BatchNorm(nn.Module):
    """y = (x − mean) / √(var + epsilon) · scale + bias, per channel (Ioffe & Szegedy 2015).

    Two fields answer two questions. `axis`: is there a device axis, and what is its name? `group`:
    whose rows share their statistics?

    - group None: the whole batch over all devices (SyncBN). With axis None the local rows are the
      whole batch (a single device, or the global view of jit).
    - group g: each run of g consecutive rows on its own, whatever the device count ("local" BN of
      MoCo v1/v2, with g the rows of one GPU of the original). No collective in the forward pass.

    Running statistics follow running ← momentum·running + (1 − momentum)·batch. With groups,
    `batch` is the mean of the groups' statistics; it is averaged over `axis` in every case, so
    that the state leaves equal on every device.

    Statistics are float32 whatever `dtype` is, and biased (÷ n) for normalising. They come from one
    pass: m and q, the mean and mean square of x − r, with r the running mean (a constant to the
    gradient); then mean = r + m and var = q − m². That difference is wrong by some 1e-7·m²; without
    the shift, 1e-7·mean², it would drown the variance where |mean| ≫ std. With r near the mean the
    error stays below epsilon, even if the features collapse. (At the first step r = 0.) r is the
    same on every device, so m and q are averaged by a single collective.

    Variables: params `scale`, `bias` [C]; batch_stats `mean`, `var` [C]; all float32. Names and
    meaning as `flax.linen.BatchNorm`.

    Attributes:
      axis: name of the device axis, or None.
      group: rows that share statistics, or None for all. Must divide the local batch.
      momentum: weight of the old running value (PyTorch's 0.1 is 0.9 here).
      epsilon: added to the variance.
      use_scale: learn `scale`.
      use_bias: learn `bias`.
      scale_init: initial scale; zeros for the last norm of a residual branch.
      unbiased: the running variance is n/(n−1) times the batch's, as PyTorch; False: as it is, as
        TensorFlow and Haiku (SimCLR, BYOL).
      dtype: of the result.
    """

    axis: str | None = None
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    use_bias: bool = True
    scale_init: Callable[..., jax.Array] = nn.initializers.ones
    unbiased: bool = True
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """Normalises by the batch (train) or by the running statistics.

        Args:
          x: [b, …, C].
          train: also updates `batch_stats`, which must then be mutable.

        Returns:
          [b, …, C] of `dtype`.

        Raises:
          ValueError: `group` does not divide b.
        """
        channels, kind = x.shape[-1], wide_dtype(self.dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), kind)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), kind)
        scale = bias = None
        if self.use_scale:
            scale = self.param("scale", self.scale_init, (channels,), kind)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), kind)

        shape = x.shape
        x = x.astype(kind)
        if not train:
            mean, var = running_mean.value, running_var.value
            y = _affine(x, mean, var, scale, bias, self.epsilon)
        else:
            # Creating the variables needs no other device and leaves the statistics untouched.
            axis = None if self.is_initializing() else self.axis
            reduced = tuple(range(x.ndim - 1))
            if self.group is not None:
                if shape[0] % self.group:
                    raise ValueError(
                        f"BatchNorm: {shape[0]} local rows are not whole groups of {self.group}"
                    )
                # [b, …, C] -> [b/g, g, …, C]
                x = x.reshape(shape[0] // self.group, self.group, *shape[1:])
                reduced = tuple(range(1, x.ndim - 1))
            sharing = axis if self.group is None else None
            y, mean, var = normalise(
                x, running_mean.value, scale, bias, self.epsilon, reduced, sharing
            )
            if not self.is_initializing():
                count = _count(x, reduced, sharing)
                correction = count / max(count - 1, 1) if self.unbiased else 1.0
                batch = (
                    jnp.mean(mean.reshape(-1, channels), 0),  # [groups, C] -> [C]
                    jnp.mean(var.reshape(-1, channels), 0) * correction,
                )
                if self.group is not None:
                    batch = collectives.pmean(batch, axis)
                for running, new in zip((running_mean, running_var), batch, strict=True):
                    running.value = self.momentum * running.value + (
                        1 - self.momentum
                    ) * lax.stop_gradient(new)

        return y.reshape(shape).astype(self.dtype)


def _affine(x, mean, var, scale, bias, epsilon):
    """(x − mean) / √(var + epsilon) · scale + bias; a scale or bias of None is left out."""
    factor = lax.rsqrt(var + epsilon)
    y = (x - mean) * (factor if scale is None else factor * scale)
    return y if bias is None else y + bias


def _count(x, reduced, axis):
    """Values that one statistic is of, over all devices that share it."""
    return math.prod(x.shape[i] for i in reduced) * collectives.size(axis)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def normalise(
    x: jax.Array,
    shift: jax.Array,
    scale: jax.Array | None,
    bias: jax.Array | None,
    epsilon: float,
    reduced: tuple[int, ...],
    axis: str | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalises by the statistics of the batch.

        y = x̂ · scale + bias,  x̂ = (x − mean) / √(var + epsilon)

    The gradient is written out (Ioffe & Szegedy 2015, section 3), with s = 1 / √(var + epsilon) and
    means over what shares the statistics:

        ∂x = scale · s · (∂y − mean(∂y) − x̂ · mean(∂y · x̂))
        ∂scale = Σ ∂y · x̂,  ∂bias = Σ ∂y

    So x is all that is kept for it; JAX's own derivative asks for x − mean as well and, on CPU,
    takes a third more time (docs/performance.md). (Where rounding alone makes var 0, the derivative
    of the maximum that holds it there is 0; this one goes on.)

    Args:
      x: float32 [b, …, C], or in groups [groups, g, …, C].
      shift: [C], close to the mean (BatchNorm says why); no gradient.
      scale, bias: [C], or None: none.
      epsilon: added to the variance.
      reduced: axes that a statistic is taken over.
      axis: name of the device axis that shares statistics, or None.

    Returns:
      y as x; mean and var float32 [1 or groups, 1, …, C], which carry no gradient.
    """
    return _normalise_fwd(x, shift, scale, bias, epsilon, reduced, axis)[0]


def _normalise_fwd(x, shift, scale, bias, epsilon, reduced, axis):
    m = jnp.mean(x, reduced, keepdims=True) - shift
    q = jnp.mean(jnp.square(x - shift), reduced, keepdims=True)
    m, q = collectives.pmean((m, q), axis)
    mean, var = shift + m, jnp.maximum(q - jnp.square(m), 0.0)
    y = _affine(x, mean, var, scale, bias, epsilon)
    return (y, mean, var), (x, mean, var, shift, scale, bias)


def _normalise_bwd(epsilon, reduced, axis, saved, cotangents):
    x, mean, var, shift, scale, bias = saved
    dy = cotangents[0]
    factor = lax.rsqrt(var + epsilon)
    others = tuple(range(x.ndim - 1))
    sum_dy = jnp.sum(dy, reduced, keepdims=True)
    sum_product = jnp.sum(dy * (x - mean), reduced, keepdims=True) * factor  # Σ ∂y · x̂
    n = _count(x, reduced, None)
    mean_dy, mean_product = collectives.pmean((sum_dy / n, sum_product / n), axis)
    dx = dy - mean_dy - (x - mean) * (factor * mean_product)
    return (
        dx * (factor if scale is None else factor * scale),
        jnp.zeros_like(shift),
        None if scale is None else jnp.sum(sum_product, others),
        None if bias is None else jnp.sum(sum_dy, others),
    )


normalise.defvjp(_normalise_fwd, _normalise_bwd)
