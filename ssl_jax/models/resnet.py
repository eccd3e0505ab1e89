"""Residual networks in torchvision's layout (He et al. 2015; stride in the 3×3, "v1.5")."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.contract.precision import wide_dtype
from ssl_jax.errors import UserError, near_misses
from ssl_jax.models.conv import Conv
from ssl_jax.models.norm import BatchNorm

# Stem: (side of the kernel, stride, max pooling).
STEMS = {"imagenet": (7, 2, True), "cifar": (3, 1, False), "small": (3, 2, False)}


class BasicBlock(nn.Module):
    """relu(shortcut(x) + bn(conv3×3(relu(bn(conv3×3(x)))))).

    Attributes:
      planes: output channels.
      stride: of the first convolution and of the shortcut.
      norm: makes a BatchNorm.
      last_scale: initial scale of the last norm.
      dtype: of the computation.
    """

    planes: int
    stride: int
    norm: Any
    last_scale: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h/stride, w/stride, planes]."""
        y = Conv(self.planes, 3, self.stride, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = Conv(self.planes, 3, dtype=self.dtype, name="conv2")(y)
        y = self.norm(name="bn2", scale_init=self.last_scale)(y, train)
        if self.stride != 1 or x.shape[-1] != self.planes:
            x = Conv(self.planes, 1, self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class Bottleneck(nn.Module):
    """relu(shortcut(x) + bn(conv1×1(relu(bn(conv3×3(relu(bn(conv1×1(x)))))))).

    Attributes:
      planes: a quarter of the output channels.
      stride: of the 3×3 convolution and of the shortcut.
      inner: channels of the 3×3 convolution.
      norm, last_scale, dtype: as BasicBlock.
    """

    planes: int
    stride: int
    inner: int
    norm: Any
    last_scale: Any
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """[b, h, w, c] -> [b, h/stride, w/stride, 4·planes]."""
        out = 4 * self.planes
        y = Conv(self.inner, 1, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(self.norm(name="bn1")(y, train))
        y = Conv(self.inner, 3, self.stride, dtype=self.dtype, name="conv2")(y)
        y = nn.relu(self.norm(name="bn2")(y, train))
        y = Conv(out, 1, dtype=self.dtype, name="conv3")(y)
        y = self.norm(name="bn3", scale_init=self.last_scale)(y, train)
        if self.stride != 1 or x.shape[-1] != out:
            x = Conv(out, 1, self.stride, dtype=self.dtype, name="downsample_conv")(x)
            x = self.norm(name="downsample_bn")(x, train)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """ResNet without classifier; features are the global average pool of the last stage.

    Attributes:
      blocks: residual blocks of each stage; every stage after the first halves the map.
      bottleneck: bottleneck blocks (ResNet-50 and up) instead of basic ones.
      width: channels of the stem and `planes` of the first stage, doubled at every stage. 128 is
        the "2×" network of SimCLR, BYOL and SwAV.
      inner: width of a bottleneck's 3×3 as a fraction of `planes` (torchvision's width_per_group /
        64; 2.0 is wide_resnet50_2).
      stem: 'imagenet' (7×7 stride 2, 3×3 max pooling stride 2), 'cifar' (3×3), 'small' (3×3
        stride 2).
      zero_init_residual: the last norm of each block starts at scale 0 (SimSiam, Barlow Twins,
        VICReg).
      group, momentum, epsilon, unbiased: of every BatchNorm.
      dtype: of the computation; parameters and statistics are float32.
      remat: the backward pass computes every block again from its input, which is all it keeps.
      axis: device axis for BatchNorm; `net.clone(axis=ctx.axis)`.
    """

    blocks: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64
    inner: float = 1.0
    stem: str = "imagenet"
    zero_init_residual: bool = False
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    dtype: Any = jnp.float32
    remat: bool = False
    axis: str | None = None

    @property
    def features(self) -> int:
        """Width d of the features."""
        return self.width * 2 ** (len(self.blocks) - 1) * (4 if self.bottleneck else 1)

    @nn.compact
    def stages(self, x: jax.Array, train: bool) -> tuple[jax.Array, ...]:
        """The feature map after every stage.

        Args:
          x: float [b, h, w, C].
          train: BatchNorm by the batch; `batch_stats` must be mutable.

        Returns:
          tuple of [b, h_i, w_i, c_i] of `dtype`, one per stage.

        Raises:
          UserError: unknown stem.
        """
        if self.stem not in STEMS:
            raise UserError(f"model.stem: unknown {self.stem!r}.{near_misses(self.stem, STEMS)}")
        norm = functools.partial(
            BatchNorm,
            axis=self.axis,
            group=self.group,
            momentum=self.momentum,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            dtype=self.dtype,
        )
        last_scale = nn.initializers.zeros if self.zero_init_residual else nn.initializers.ones
        size, stride, pool = STEMS[self.stem]
        x = Conv(self.width, size, stride, dtype=self.dtype, name="conv1")(x)
        x = nn.relu(norm(name="bn1")(x, train))
        if pool:
            # Padded by −∞ on all sides, as torch.nn.MaxPool2d(3, 2, 1).
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        make = Bottleneck if self.bottleneck else BasicBlock
        if self.remat:
            make = nn.remat(make, static_argnums=(2,))  # train
        maps = []
        for i, count in enumerate(self.blocks):
            planes = self.width * 2**i
            for j in range(count):
                shared = {
                    "planes": planes,
                    "stride": 2 if i > 0 and j == 0 else 1,
                    "norm": norm,
                    "last_scale": last_scale,
                    "dtype": self.dtype,
                    "name": f"layer{i + 1}_{j}",
                }
                if self.bottleneck:
                    shared["inner"] = int(planes * self.inner)
                x = make(**shared)(x, train)
            maps.append(x)
        return tuple(maps)

    def __call__(
        self, x: jax.Array, train: bool = False, keys: jax.Array | None = None
    ) -> jax.Array:
        """Images to features.

        Args:
          x: float [b, h, w, C], C any.
          train: BatchNorm by the batch; `batch_stats` must be mutable.
          keys: unused (a ResNet draws nothing); every encoder takes the same arguments.

        Returns:
          float32 [b, features], the mean of the last map over its pixels.
        """
        return jnp.mean(self.stages(x, train)[-1], (1, 2), dtype=wide_dtype(self.dtype))
