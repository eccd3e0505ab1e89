"""PyTorch state dictionaries to the variables of our encoders and heads.

Pure functions of {name: numpy array}; nothing here needs PyTorch. Reading is strict: every entry
under `prefix` must be used or named in `drop`, and every variable must be given, in its shape.

Layouts: a convolution's weight is [o, c, k, k] there and [k, k, c, o] here, a linear layer's [o, c]
and [c, o].
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ssl_jax.errors import UserError
from ssl_jax.models.heads import MLP
from ssl_jax.models.positions import sincos
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.vit import ViT

State = Mapping[str, np.ndarray]
# Our path of a variable, 'params/…' -> name of the PyTorch entry.
Names = dict[str, str]


def _linear(path: str, name: str) -> Names:
    return {f"params/{path}/kernel": f"{name}.weight", f"params/{path}/bias": f"{name}.bias"}


def _layer_norm(path: str, name: str) -> Names:
    return {f"params/{path}/scale": f"{name}.weight", f"params/{path}/bias": f"{name}.bias"}


def _batch_norm(path: str, name: str) -> Names:
    return _layer_norm(path, name) | {
        f"batch_stats/{path}/mean": f"{name}.running_mean",
        f"batch_stats/{path}/var": f"{name}.running_var",
    }


def _convert(weight: np.ndarray) -> np.ndarray:
    """PyTorch's axes to ours, float32."""
    if weight.ndim == 4:
        weight = weight.transpose(2, 3, 1, 0)  # [o, c, k, k] -> [k, k, c, o]
    elif weight.ndim == 2:
        weight = weight.T  # [o, c] -> [c, o]
    return np.asarray(weight, np.float32)


def _select(state: State, prefix: str, drop: Sequence[str]) -> dict[str, np.ndarray]:
    """Entries under `prefix`, without it and without the dropped ones and BN's step counter."""
    under = {k[len(prefix) :]: np.asarray(v) for k, v in state.items() if k.startswith(prefix)}
    if not under:
        raise UserError(
            f"weights: nothing begins with {prefix!r}; the file has "
            f"{', '.join(sorted(state)[:3]) or 'no entry'} …"
        )
    return {
        k: v
        for k, v in under.items()
        if not k.endswith("num_batches_tracked") and not k.startswith(tuple(drop))
    }


def _list(names) -> str:
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _fill(expected: Any, names: Names, state: Mapping[str, np.ndarray]) -> Any:
    """Fills the tree `expected` (of shapes) from `state`, already in our axes.

    Raises:
      UserError: missing or left-over names, or a wrong shape.
    """
    shapes = traverse_util.flatten_dict(expected, sep="/")
    names = {path: name for path, name in names.items() if path in shapes}
    unnamed = set(shapes) - set(names)
    if unnamed:
        raise ValueError(f"no PyTorch name is known for {_list(unnamed)}")
    missing = set(names.values()) - set(state)
    left = set(state) - set(names.values())
    if missing or left:
        parts = []
        if missing:
            parts.append(f"missing: {_list(missing)}")
        if left:
            parts.append(f"not used: {_list(left)} (name them in `drop` if that is right)")
        raise UserError(f"weights do not fit the model; {'; '.join(parts)}")
    flat = {}
    for path, name in names.items():
        if state[name].shape != shapes[path].shape:
            raise UserError(
                f"weights: {name} gives {path} the shape {state[name].shape}, "
                f"the model has {shapes[path].shape}"
            )
        flat[path] = jnp.asarray(state[name])
    return traverse_util.unflatten_dict(flat, sep="/")


def _abstract(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """Shapes of the variables for an input of `shape`."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))


def resnet(net: ResNet, state: State, prefix: str = "", drop: Sequence[str] = ()) -> Any:
    """Variables of a ResNet from torchvision's layout (conv1, bn1, layer1.0.conv1 …).

    Args:
      net: the encoder, with the blocks, width and stem of the checkpoint.
      state: {name: array}.
      prefix: only entries that begin with it are read, e.g. 'module.encoder_q.'.
      drop: beginnings of names (after the prefix) to leave out, e.g. ('fc.',).

    Returns:
      {'params': …, 'batch_stats': …}, float32.

    Raises:
      UserError: missing or left-over names, or a wrong shape.
    """
    names = {"params/conv1/kernel": "conv1.weight"} | _batch_norm("bn1", "bn1")
    for i, count in enumerate(net.blocks):
        for j in range(count):
            ours, theirs = f"layer{i + 1}_{j}", f"layer{i + 1}.{j}"
            for k in range(1, 4 if net.bottleneck else 3):
                names[f"params/{ours}/conv{k}/kernel"] = f"{theirs}.conv{k}.weight"
                names |= _batch_norm(f"{ours}/bn{k}", f"{theirs}.bn{k}")
            names[f"params/{ours}/downsample_conv/kernel"] = f"{theirs}.downsample.0.weight"
            names |= _batch_norm(f"{ours}/downsample_bn", f"{theirs}.downsample.1")
    state = {k: _convert(v) for k, v in _select(state, prefix, drop).items()}
    channels = state["conv1.weight"].shape[2] if "conv1.weight" in state else 3
    return _fill(_abstract(net, (1, 64, 64, channels)), names, state)


def vit(net: ViT, state: State, prefix: str = "", drop: Sequence[str] = ()) -> Any:
    """Variables of a ViT from the layout of timm, DINO, MAE and MoCo v3.

    Positions in the file become the parameter where the net learns them; where they are fixed they
    must be the net's own table. MAE's fc_norm is our `norm` where pool is 'mean'.

    Args:
      net: the encoder, with the size, patch and positions of the checkpoint.
      state: {name: array}.
      prefix: only entries that begin with it are read, e.g. 'module.backbone.'.
      drop: beginnings of names (after the prefix) to leave out, e.g. ('head.',) or
        ('decoder_', 'mask_token').

    Returns:
      {'params': …}, float32.

    Raises:
      UserError: missing or left-over names, a wrong shape, or other fixed positions.
    """
    state = _select(state, prefix, drop)
    norm = "fc_norm" if net.pool == "mean" and "fc_norm.weight" in state else "norm"
    names = (
        {"params/class_token": "cls_token", "params/positions": "pos_embed"}
        | _linear("patch_embed", "patch_embed.proj")
        | _layer_norm("norm", norm)
    )
    for i in range(net.depth):
        ours, theirs = f"blocks_{i}", f"blocks.{i}"
        for part in ("norm1", "norm2"):
            names |= _layer_norm(f"{ours}/{part}", f"{theirs}.{part}")
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            path = part.replace("mlp.", "").replace(".", "/")
            names |= _linear(f"{ours}/{path}", f"{theirs}.{part}")
    converted = {k: _convert(v) for k, v in state.items()}
    channels = 3
    if "patch_embed.proj.weight" in converted:
        kernel = converted["patch_embed.proj.weight"]
        channels = kernel.shape[2]
        # [p, p, C, D] -> [p·p·C, D], the order of `patchify`.
        converted["patch_embed.proj.weight"] = kernel.reshape(-1, kernel.shape[-1])
    if "cls_token" in state:
        converted["cls_token"] = np.asarray(state["cls_token"], np.float32).reshape(-1)
    if "pos_embed" in state:
        converted["pos_embed"] = np.asarray(state["pos_embed"], np.float32)[0]
        if net.positions != "learned":
            table = sincos(net.width, net.size // net.patch, net.positions)
            table = np.pad(table, ((int(net.token), 0), (0, 0)))
            found = converted.pop("pos_embed")
            if found.shape != table.shape or not np.allclose(found, table, atol=1e-4):
                raise UserError(
                    f"weights: pos_embed is not the table of model.positions "
                    f"{net.positions!r}; the file's may be learned: positions='learned'"
                )
    return _fill(_abstract(net, (1, net.size, net.size, channels)), names, converted)


def mlp(
    net: MLP,
    state: State,
    linears: Sequence[str],
    norms: Sequence[str | None],
    prefix: str = "",
    drop: Sequence[str] = (),
) -> Any:
    """Variables of an MLP head from the entries of a torch.nn.Sequential.

    Args:
      net: the head.
      state: {name: array}.
      linears: name of every linear layer, e.g. ('0', '3').
      norms: name of every BatchNorm, None where there is none, e.g. ('1', None).
      prefix: only entries that begin with it are read, e.g. 'projection_head.'.
      drop: beginnings of names (after the prefix) to leave out.

    Returns:
      {'params': …} and, with BatchNorm, {'batch_stats': …}; float32.

    Raises:
      UserError: missing or left-over names, or a wrong shape.
    """
    names: Names = {}
    for i, (linear, norm) in enumerate(zip(linears, norms, strict=True)):
        names |= _linear(f"linear{i}", linear)
        if norm is not None:
            names |= _batch_norm(f"norm{i}", norm)
    state = {k: _convert(v) for k, v in _select(state, prefix, drop).items()}
    first = f"{linears[0]}.weight"
    width = state[first].shape[0] if first in state else net.widths[0]
    return _fill(_abstract(net, (1, width)), names, state)
