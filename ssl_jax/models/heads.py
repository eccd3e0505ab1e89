"""Projectors, predictors and prototypes.

What the published heads are, in the fields of `MLP` (h: hidden, o: output; a: 'affine', p: 'plain',
s: 'scale', n: 'none'; T, F: bias of the linear layer):

    SimCLR v1 (2 layers)  widths (h, o)      norms (a, s)     biases (F, F)     initial 'simclr'
    SimCLR v2 (3 layers)  widths (h, h, o)   norms (a, a, s)  biases (F, F, F)  initial 'simclr'
    MoCo v2, ReSSL        widths (h, o)      norms (n, n)     biases (T, T)
    BYOL (both heads)     widths (h, o)      norms (a, n)     biases (T, F)     initial 'haiku'
    SimSiam projector     widths (h, h, o)   norms (a, a, p)  biases (F, F, T)  last bias frozen
    SimSiam predictor     widths (h, o)      norms (a, n)     biases (F, T)
    MoCo v3 projector     widths (h, o) or (h, h, o) for ViT; norms (a, …, p), biases all F
    MoCo v3 predictor     widths (h, o)      norms (a, n), ViT (a, p); biases (F, F)
    Barlow Twins          widths (h, h, o)   norms (a, a, n)  biases (F, F, F)
    VICReg                widths (h, h, o)   norms (a, a, n)  biases (T, T, F)
    SwAV                  widths (h, o)      norms (a, n)     biases (T, T)

SimCLR's last norm has a scale and no bias (`center=use_bias`), on every version. A bias before a
BatchNorm has no effect on the output, but it is a parameter: it counts in a layer-wise optimizer.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.contract.precision import wide, wide_dtype
from ssl_jax.errors import UserError, near_misses
from ssl_jax.models.linear import INITS, Linear
from ssl_jax.models.norm import BatchNorm

# name -> (use_scale, use_bias) of the BatchNorm.
NORMS = {"none": None, "affine": (True, True), "scale": (True, False), "plain": (False, False)}
ACTIVATIONS = {"relu": nn.relu, "gelu": lambda x: nn.gelu(x, approximate=False)}


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
    """x / max(‖x‖₂, 1e-12) along `axis`, in float32 (torch.nn.functional.normalize).

    The gradient at x = 0 is finite.
    """
    x = wide(x)
    square = jnp.sum(jnp.square(x), axis, keepdims=True)
    # √max(‖x‖², 1e-24) = max(‖x‖, 1e-12), without the infinite slope of √ at 0.
    return x * jax.lax.rsqrt(jnp.maximum(square, 1e-24))


class MLP(nn.Module):
    """Linear → norm → activation, …, Linear → norm: no activation after the last layer.

    Attributes:
      widths: output width of every linear layer.
      norms: after every linear layer: 'none', 'affine' (BatchNorm with scale and bias), 'scale'
        (with scale alone) or 'plain' (BatchNorm without parameters).
      biases: whether every linear layer has a bias.
      activation: 'relu' or 'gelu' (erf).
      initial: of the linear layers, see `linear.initializers`.
      group, momentum, epsilon, unbiased, axis: of every BatchNorm.
      dtype: of the computation; parameters and statistics are float32.

    Parameters are named linear0, norm0, linear1, …
    """

    widths: tuple[int, ...]
    norms: tuple[str, ...]
    biases: tuple[bool, ...]
    activation: str = "relu"
    initial: str = "torch"
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[b, d] -> float32 [b, widths[-1]].

        Args:
          x: [b, d].
          train: BatchNorm by the batch; `batch_stats` must be mutable if there is any norm.

        Raises:
          UserError: an unknown norm or activation.
          ValueError: widths, norms and biases are not equally long.
        """
        if not len(self.widths) == len(self.norms) == len(self.biases):
            raise ValueError("MLP: widths, norms and biases must have one entry per layer")
        if self.activation not in ACTIVATIONS:
            near = near_misses(self.activation, ACTIVATIONS)
            raise UserError(f"activation: unknown {self.activation!r}.{near}")
        kind = wide_dtype(self.dtype)
        layers = zip(self.widths, self.norms, self.biases, strict=True)
        for i, (width, norm, bias) in enumerate(layers):
            if norm not in NORMS:
                raise UserError(f"norms: unknown {norm!r}.{near_misses(norm, NORMS)}")
            if i > 0:
                x = ACTIVATIONS[self.activation](x)
            x = Linear(width, bias, self.initial, self.dtype, name=f"linear{i}")(x)
            if norm != "none":
                use_scale, use_bias = NORMS[norm]
                x = BatchNorm(
                    axis=self.axis,
                    group=self.group,
                    momentum=self.momentum,
                    epsilon=self.epsilon,
                    use_scale=use_scale,
                    use_bias=use_bias,
                    unbiased=self.unbiased,
                    # What leaves the head is float32; do not round it on the way.
                    dtype=self.dtype if i + 1 < len(self.widths) else kind,
                    name=f"norm{i}",
                )(x, train)
        return x.astype(kind)


def make(fields: Mapping[str, Any], where: str, **more: Any) -> MLP:
    """The `MLP` that a configuration describes.

    Args:
      fields: of `MLP`, as a dict or ConfigDict.
      where: name of the field that holds them, for messages.
      more: fields that the configuration does not say: dtype, group.

    Raises:
      UserError: an unknown field or name, or not one entry a layer, of at least one layer.
    """
    given = {key: fields[key] for key in fields}
    names = {f.name for f in dataclasses.fields(MLP)} - {"parent", "name", "axis", *more}
    for key, value in given.items():
        if key not in names:
            raise UserError(f"{where} has no field {key}.{near_misses(key, names)}")
        if isinstance(value, list):
            given[key] = tuple(value)
    layers = {key: given.get(key, ()) for key in ("widths", "norms", "biases")}
    if not layers["widths"] or len({len(values) for values in layers.values()}) > 1:
        lengths = ", ".join(f"{len(values)} {key}" for key, values in layers.items())
        raise UserError(f"{where} has {lengths}; it must have one of each for every layer")
    for width in layers["widths"]:
        if width < 1:
            raise UserError(f"{where}.widths has {width}; widths must be at least 1")
    initial, activation = (given.get(key, getattr(MLP, key)) for key in ("initial", "activation"))
    for field, values, known in (
        ("norms", layers["norms"], NORMS),
        ("initial", (initial,), INITS),
        ("activation", (activation,), ACTIVATIONS),
    ):
        for value in values:
            if value not in known:
                raise UserError(f"{where}.{field} has {value!r}.{near_misses(value, known)}")
    return MLP(**given, **more)


def check_ends(predictor: MLP, projector: MLP) -> None:
    """Checks that a prediction is as wide as what it predicts.

    Raises:
      UserError: it is not.
    """
    ends = [head.widths[-1] for head in (predictor, projector)]
    if ends[0] != ends[1]:
        raise UserError(
            f"--config.method.predictor.widths ends with {ends[0]}; "
            f"the projector ends with {ends[1]}"
        )


class DINOHead(nn.Module):
    """DINO's head: an MLP to a bottleneck, unit length, then a weight-normed linear layer.

    y = unit(mlp(x)) @ w, the columns of w = g · v / ‖v‖ (Caron et al. 2021, vision_transformer.py
    DINOHead). Without `norm_last` the lengths g [out] are learned, from 1; with it they stay 1 and
    there is no such parameter (the official code keeps a frozen one).

    Attributes:
      out: prototypes K.
      hidden: width of the hidden layers.
      bottleneck: width of the last layer of the MLP.
      layers: linear layers of the MLP, the bottleneck's included.
      norm: BatchNorm after the hidden layers.
      norm_last: g = 1.
      group, momentum, epsilon, unbiased, axis: of every BatchNorm.
      dtype: of the computation; parameters are float32.
    """

    out: int = 65536
    hidden: int = 2048
    bottleneck: int = 256
    layers: int = 3
    norm: bool = False
    norm_last: bool = True
    group: int | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    unbiased: bool = True
    dtype: Any = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """[b, d] -> logits float32 [b, out], in [−1, 1] where norm_last."""
        hidden = self.layers - 1
        x = MLP(
            widths=(self.hidden,) * hidden + (self.bottleneck,),
            norms=("affine" if self.norm else "none",) * hidden + ("none",),
            biases=(True,) * self.layers,
            activation="gelu",
            initial="normal",
            group=self.group,
            momentum=self.momentum,
            epsilon=self.epsilon,
            unbiased=self.unbiased,
            dtype=self.dtype,
            axis=self.axis,
            name="mlp",
        )(x, train)
        limit, kind = self.bottleneck**-0.5, wide_dtype(self.dtype)
        v = self.param(
            "v",
            lambda key, shape: jax.random.uniform(key, shape, kind, -limit, limit),
            (self.bottleneck, self.out),
        )
        w = unit(v, 0)
        if not self.norm_last:
            w = w * self.param("g", nn.initializers.ones, (self.out,), kind)
        # [b, bottleneck] @ [bottleneck, out]
        x, w = unit(x).astype(self.dtype), w.astype(self.dtype)
        return jnp.matmul(x, w, preferred_element_type=wide_dtype(x.dtype))


class Prototypes(nn.Module):
    """scores = x @ kernel, without bias: cosines where x and the columns have unit length (SwAV).

    Give it unit(x). SwAV sets the columns to unit length before every step: `unit(kernel, 0)`.

    Attributes:
      count: prototypes K.

    Parameters: `kernel` [d, K], float32, initially U(±1/√d).
    """

    count: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[b, d] -> float32 [b, count]."""
        x = wide(x)
        limit, kind = x.shape[-1] ** -0.5, x.dtype
        kernel = self.param(
            "kernel",
            lambda key, shape: jax.random.uniform(key, shape, kind, -limit, limit),
            (x.shape[-1], self.count),
        )
        return x @ kernel
