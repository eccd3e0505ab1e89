"""Convolution with PyTorch's explicit padding and, on CPU, a fast weight gradient.

The gradient with respect to a kernel is itself a convolution: the channels are its batch, the
images are what it sums over, and its window is the whole feature map. XLA on CPU computes it in one
piece and leaves the caches; over a few images at a time, as here, the same sum takes two thirds of
the time, and where there are many channels the product of the output's gradient with the patches
that the kernel saw takes less still (docs/performance.md). On every other backend XLA's own
gradient is used; the values are the same up to rounding.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ssl_jax.contract.precision import wide_dtype
from ssl_jax.devices import collectives, layout

# Products summed for one element of the gradient before the next images are taken, as measured:
# fewer make more calls, more leave the caches. For patches also at most so many values of a map.
CONTRACTION = 2048
CONTRACTION_OF_PATCHES, VALUES = 1024, 1024 * 256


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


@functools.partial(custom_partitioning, static_argnums=(2, 3, 4))
def _sum_of_few(x, dy, size, stride, padding):
    """The same sum over a few images at a time; for a 1×1 kernel as one matrix product.

    Returns:
      float32 [size, size, c, o].
    """
    b, h, w, c = x.shape
    _, oh, ow, o = dy.shape
    if size == 1 and padding == 0:
        seen = x[:, ::stride, ::stride]
        # [o, n] @ [n, c] -> [o, c]
        product = jnp.matmul(
            dy.reshape(-1, o).T, seen.reshape(-1, c), preferred_element_type=wide_dtype(x.dtype)
        )
        return product.T.reshape(1, 1, c, o)
    # As measured: few channels make narrow products, for which patches are not worth the copy.
    if c >= 32 and (stride > 1 or c * o > 64 * 64):
        rows = min(CONTRACTION_OF_PATCHES, VALUES // c)
        by_patches = functools.partial(_by_patches, size=size, stride=stride, padding=padding)
        total = _in_chunks(by_patches, x, dy, rows // (oh * ow))  # [o, size·size·c]
        return total.reshape(o, size, size, c).transpose(1, 2, 3, 0)
    by_convolution = functools.partial(_by_convolution, size=size, stride=stride, padding=padding)
    total = _in_chunks(by_convolution, x, dy, CONTRACTION // (oh * ow))  # [c, size, size, o]
    return total.transpose(1, 2, 0, 3)


def _in_chunks(product, x, dy, images):
    """Σ product(some images of x and dy), at most `images` at a time, one at least."""
    b = len(x)
    most = min(b, max(1, images))
    # A divisor of b where there is one; else images of zeros, which add nothing, fill the last
    # chunk, at the price of a copy of x and dy.
    images = next((n for n in range(most, most // 2, -1) if b % n == 0), most)
    chunks = -(-b // images)
    fill = ((0, chunks * images - b), (0, 0), (0, 0), (0, 0))
    # Chunk k is images k, k + chunks, …
    x, dy = (jnp.pad(y, fill).reshape(images, chunks, *y.shape[1:]) for y in (x, dy))

    def add(total, k):
        chunk = (lax.dynamic_index_in_dim(y, k, 1, keepdims=False) for y in (x, dy))
        return total + product(*chunk), None

    like = jax.eval_shape(product, x[:, 0], dy[:, 0])
    return lax.scan(add, jnp.zeros(like.shape, like.dtype), jnp.arange(chunks))[0]


def _by_convolution(x, dy, size, stride, padding):
    """[n, h, w, c] ⋆ [n, oh, ow, o] -> float32 [c, size, size, o]."""
    # Zeros behind the map, or fewer of its rows where the stride leaves some unread.
    after = [
        stride * (n_out - 1) + size - padding - n_in
        for n_out, n_in in zip(dy.shape[1:3], x.shape[1:3], strict=True)
    ]
    # Images are what is summed over, channels are the batch:
    # [c, h, w, n] ⋆ [oh, ow, n, o] -> [c, size, size, o], the window dilated by the stride.
    # (Transposed here: for dimension_numbers of that order XLA has no fast convolution.)
    return lax.conv_general_dilated(
        x.transpose(3, 1, 2, 0),
        dy.transpose(1, 2, 0, 3),
        window_strides=(1, 1),
        padding=((padding, after[0]), (padding, after[1])),
        rhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=wide_dtype(x.dtype),
    )


def _by_patches(x, dy, size, stride, padding):
    """[n, oh, ow, o]ᵀ times the patches of [n, h, w, c] -> float32 [o, size · size · c]."""
    _, oh, ow, o = dy.shape
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def seen(u, v):  # by kernel[u, v], at every output: [n, oh, ow, c]
        rows = slice(u, u + stride * (oh - 1) + 1, stride)
        return x[:, rows, v : v + stride * (ow - 1) + 1 : stride]

    patches = jnp.concatenate([seen(u, v) for u in range(size) for v in range(size)], -1)
    # [n·oh·ow, o] , [n·oh·ow, size·size·c] -> [o, size·size·c]
    return lax.dot_general(
        dy.reshape(-1, o),
        patches.reshape(-1, patches.shape[-1]),
        (((0,), (0,)), ((), ())),
        preferred_element_type=wide_dtype(x.dtype),
    )


def _on_each_device(size, stride, padding, mesh, arguments, result):
    """How `jit` splits `_sum_of_few` where it splits the batch: each device sums its own images.

    Then all devices are summed. Left to itself the partitioner sees a few images of a whole batch
    picked in a loop, and gathers the maps of all of them on every device.

    Under `shard_map`, and on one device, JAX takes the function as it stands. (The compilation
    cache does not see what is called here: it takes functions of other versions for equal.)
    """
    batch = arguments[1].sharding.spec[0]
    rows = NamedSharding(mesh, P(batch))

    def total(x, dy):
        return collectives.psum(_sum_of_few.fun(x, dy, size, stride, padding), batch)

    return mesh, total, layout.replicated(mesh), (rows, rows)


_sum_of_few.def_partition(
    _on_each_device,
    sharding_rule="b h w c, b i j o -> k l c o",
    reduction_factors=("b",),
    need_replication_factors=tuple("hwcijokl"),
)


def _weight_gradient_of_few(x, dy, size, stride, padding):
    """The gradient with respect to a [size, size, c, o] kernel by `_sum_of_few`."""
    # custom_partitioning has no rule for vmap.
    total = sequential_vmap(lambda x, dy: _sum_of_few(x, dy, size, stride, padding))(x, dy)
    return total.astype(x.dtype)


def _convolve_fwd(x, kernel, stride, padding):
    return _forward(x, kernel, stride, padding), (x, kernel)


def _input_gradient(x, kernel, dy, stride, padding):
    """XLA's own gradient with respect to the input."""
    return jax.vjp(lambda x: _forward(x, kernel, stride, padding), x)[1](dy)[0]


def _input_gradient_as_forward(x, kernel, dy, stride, padding):
    """The same as a convolution in the order of the forward one.

    XLA's has the kernel's channels in the other order. On CPU it turns that round in a program's
    entry alone; inside a loop (micro-batches, pieces of a batch, several steps a call) it leaves
    its fast path, and the quickstart's step took four times as long.
    """
    size = kernel.shape[0]
    spread = [stride * (n - 1) + 1 for n in dy.shape[1:3]]  # of dy with zeros between its values
    before = size - 1 - padding
    after = [n + padding - m for n, m in zip(x.shape[1:3], spread, strict=True)]
    # [b, oh, ow, o] ⋆ [size, size, o, c] -> [b, h, w, c]
    return lax.conv_general_dilated(
        dy,
        kernel[::-1, ::-1].swapaxes(2, 3),
        window_strides=(1, 1),
        padding=((before, after[0]), (before, after[1])),
        lhs_dilation=(stride, stride),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _convolve_bwd(stride, padding, saved, dy):
    x, kernel = saved

    def on_cpu(x, kernel, dy):
        dx = _input_gradient_as_forward(x, kernel, dy, stride, padding)
        return dx, _weight_gradient_of_few(x, dy, kernel.shape[0], stride, padding)

    def elsewhere(x, kernel, dy):
        dx = _input_gradient(x, kernel, dy, stride, padding)
        return dx, _weight_gradient_by_convolution(x, dy, kernel.shape[0], stride, padding)

    # Chosen when the program is lowered, so that one traced step can serve any backend.
    return lax.platform_dependent(x, kernel, dy, cpu=on_cpu, default=elsewhere)


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
            wide_dtype(self.dtype),
        )
        padding = (self.size - 1) // 2 if self.padding is None else self.padding
        return convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)
