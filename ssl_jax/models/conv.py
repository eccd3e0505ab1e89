"""Convolution with PyTorch's explicit padding and, on CPU, a fast weight gradient.

XLA on CPU computes the weight gradient of a convolution as another convolution whose window is the
whole feature map, several times slower than the same sum written as one matrix product per few
images: 12 % of the time of a ResNet-18 step (32 px, batch 128, 2 cores). On every other backend
XLA's own gradient is used; the values are the same up to rounding.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

# Elements of the patch matrix built at once (2 MiB in float32): about what a core caches.
PATCH_ELEMENTS = 2**19


def _forward(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Two-dimensional cross-correlation, zero padding on all four sides as torch.nn.Conv2d.

    y[b, i, j, o] = Σ_{u,v,c} x[b, i·stride + u − padding, j·stride + v − padding, c]
                    · kernel[u, v, c, o]

    ('SAME' pads a stride of 2 on one side only; features would be shifted against PyTorch's.)
    Reverse mode, once: no forward mode, no second derivatives.

    Args:
      x: [b, h, w, c].
      kernel: [k, k, c, o], the dtype of x.
      stride: pixels.
      padding: pixels of zeros on every side.

    Returns:
      [b, (h + 2·padding − k) // stride + 1, …, o], the dtype of x.
    """
    return _forward(x, kernel, stride, padding)


def _weight_gradient_by_convolution(x, dy, size, stride, padding):
    """XLA's own gradient with respect to a [size, size, c, o] kernel."""
    kernel = jnp.zeros((size, size, x.shape[-1], dy.shape[-1]), x.dtype)
    return jax.vjp(lambda k: _forward(x, k, stride, padding), kernel)[1](dy)[0]


def _weight_gradient_by_matmul(x, dy, size, stride, padding):
    """The same sum as dyᵀ [o, n] @ patches [n, k·k·c], a few images at a time."""
    b, h, w, c = x.shape
    _, oh, ow, o = dy.shape
    images = max(1, PATCH_ELEMENTS // (oh * ow * size * size * c))
    chunks = -(-b // images)
    images = -(-b // chunks)
    # Images of zeros fill the last chunk: they add nothing to the sum.
    fill = ((0, chunks * images - b), (0, 0), (0, 0), (0, 0))
    x, dy = jnp.pad(x, fill), jnp.pad(dy, fill)
    border = ((0, 0), (padding, padding), (padding, padding), (0, 0))

    def add(total, chunk):
        x, dy = chunk
        x = jnp.pad(x, border)
        shifted = [
            x[:, u : u + stride * (oh - 1) + 1 : stride, v : v + stride * (ow - 1) + 1 : stride]
            for u in range(size)
            for v in range(size)
        ]
        patches = jnp.concatenate(shifted, -1).reshape(-1, size * size * c)
        # [o, n] @ [n, k·k·c]: about 1.4 times as fast as its transpose on the machines measured.
        product = jnp.matmul(dy.reshape(-1, o).T, patches, preferred_element_type=jnp.float32)
        return total + product, None

    total, _ = lax.scan(
        add,
        jnp.zeros((o, size * size * c), jnp.float32),
        (x.reshape(chunks, images, h, w, c), dy.reshape(chunks, images, oh, ow, o)),
    )
    return total.T.reshape(size, size, c, o).astype(x.dtype)


def _convolve_fwd(x, kernel, stride, padding):
    return _forward(x, kernel, stride, padding), (x, kernel)


def _convolve_bwd(stride, padding, saved, dy):
    x, kernel = saved
    dx = jax.vjp(lambda x: _forward(x, kernel, stride, padding), x)[1](dy)[0]
    static = {"size": kernel.shape[0], "stride": stride, "padding": padding}
    # Chosen when the program is lowered, so that one traced step can serve any backend.
    dkernel = lax.platform_dependent(
        x,
        dy,
        cpu=functools.partial(_weight_gradient_by_matmul, **static),
        default=functools.partial(_weight_gradient_by_convolution, **static),
    )
    return dx, dkernel


convolve.defvjp(_convolve_fwd, _convolve_bwd)


class Conv(nn.Module):
    """`nn.Conv` without bias, with a square kernel and explicit padding; the same parameter.

    Attributes:
      features: output channels o.
      size: side k of the kernel, pixels.
      stride: pixels.
      padding: pixels of zeros on every side; None: (k − 1) // 2.
      dtype: of the computation; the parameter `kernel` [k, k, c, o] is float32.

    The initial kernel is Kaiming's normal, variance 2 / (k·k·o) (fan_out), as torchvision's ResNet.
    """

    features: int
    size: int
    stride: int = 1
    padding: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, h, w, c] -> [b, h', w', features] of `dtype`."""
        kernel = self.param(
            "kernel",
            nn.initializers.variance_scaling(2.0, "fan_out", "normal"),
            (self.size, self.size, x.shape[-1], self.features),
            jnp.float32,
        )
        padding = (self.size - 1) // 2 if self.padding is None else self.padding
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)
