"""Layer-wise learning-rate decay: the nearer a layer is to the image, the slower it learns.

The updates of a parameter in layer i of n are multiplied by decay^(n − i). The layers of a ViT are
those of MAE's fine-tuning, util/lr_decay.py (after ELECTRA and BEiT): 0 is the patch embedding with
class token and positions, i + 1 is block i, and n = depth + 1 is everything after the blocks, the
classifier with it. No official recipe says what the layers of a ResNet are. Here they are its
stages: 0 the stem, i stage i, n = stages + 1 the classifier.
"""

import re
from typing import Any

import jax
import optax

from ssl_jax.optim import rules

_BLOCK = re.compile(r"^encoder/blocks_(\d+)/")
_STAGE = re.compile(r"^encoder/layer(\d+)_\d+/")
_FIRST = re.compile(r"^encoder/(class_token|positions|patch_embed|conv1|bn1)(/|$)")


def layer_ids(params: Any) -> tuple[Any, int]:
    """The layer that every parameter belongs to.

    Args:
      params: {'encoder': of a ViT or ResNet, …: everything else}; only paths are read.

    Returns:
      (pytree of int like `params`, the last layer n).

    Raises:
      ValueError: the encoder has neither blocks nor stages.
    """
    paths = [rules.name_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(params)]
    inner = [i for i in map(_inner, paths) if i is not None]
    if not inner:
        raise ValueError("layer decay: the encoder has neither blocks_i nor layeri_j")
    last = max(inner) + 1

    def layer(path, _):
        name = rules.name_of(path)
        within = _inner(name)
        if within is not None:
            return within
        return 0 if _FIRST.search(name) else last

    return jax.tree_util.tree_map_with_path(layer, params), last


def scales(params: Any, decay: float) -> Any:
    """decay^(n − layer) of every parameter: a pytree of float like `params`.

    Args:
      params: as for `layer_ids`.
      decay: in (0, 1]; 1 leaves every layer alone.
    """
    ids, last = layer_ids(params)
    return jax.tree.map(lambda i: float(decay) ** (last - i), ids)


def scale_by_layer(factors: Any) -> optax.GradientTransformation:
    """Multiplies updates by a pytree of numbers. Put it after the optimizer.

    There it is what PyTorch's parameter groups of different rates are: the step and, in AdamW, the
    weight decay are both proportional to the rate.
    """
    return optax.stateless(
        lambda updates, params: jax.tree.map(lambda u, s: u * s, updates, factors)
    )


def _inner(name: str) -> int | None:
    """Layer of a parameter inside a block or stage."""
    if found := _BLOCK.search(name):
        return int(found[1]) + 1
    if found := _STAGE.search(name):
        return int(found[1])
    return None
