"""Encoders of images, as methods name them: a network on the fixed view, or its projector too."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax import augment
from ssl_jax.contract.encoder import Encoder

Select = Callable[[Any, Any], Any]


def online(name: str) -> Select:
    """(params, state) -> variables of the learned network `name`."""
    return lambda params, state: {"params": params[name], "batch_stats": state.get(name, {})}


def target(name: str) -> Select:
    """(params, state) -> variables of its moving average, with the statistics of its own."""
    return lambda params, state: {
        "params": state["target"][name],
        "batch_stats": state["target_stats"][name],
    }


def image_encoder(network: nn.Module, variables: Select, view: augment.Fixed) -> Encoder:
    """What a network makes of the fixed view of an image.

    Args:
      network: an encoder of `models.make`, axis None.
      variables: (params, state) -> {'params', 'batch_stats'} of it.
      view: the fixed view.
    """

    def embed(variables, x):
        return network.apply(variables, x, train=False)

    return on_view(variables, embed, view)._replace(network=network)


def projected(
    network: nn.Module, projector: nn.Module, encoder: Select, head: Select, view: augment.Fixed
) -> Encoder:
    """The embeddings that a loss compares: the projector behind an encoder, on the fixed view.

    Args:
      network: as for `image_encoder`.
      projector: on its features.
      encoder, head: (params, state) -> variables of the two.
      view: the fixed view.
    """

    def variables(params, state):
        return {"encoder": encoder(params, state), "projector": head(params, state)}

    def embed(variables, x):
        h = network.apply(variables["encoder"], x, train=False)
        return projector.apply(variables["projector"], h, train=False)

    return on_view(variables, embed, view)


def on_view(
    variables: Select, embed: Callable[[Any, jax.Array], jax.Array], view: augment.Fixed
) -> Encoder:
    """An encoder of images from what embeds views of them: (variables, [b, s, s, C]) -> [b, d]."""

    def features(variables, batch):
        return embed(variables, augment.evaluate(batch["image"], *view)).astype(jnp.float32)

    return Encoder(variables, features, embed=embed, view=view)


def of_one(network: nn.Module, projector: nn.Module, view: augment.Fixed) -> dict[str, Encoder]:
    """The encoders of a method that learns one network with a projector behind it.

    Returns:
      'encoder', which is probed, and 'projector', the embeddings.
    """
    encoder, head = online("encoder"), online("projector")
    return {
        "encoder": image_encoder(network, encoder, view),
        "projector": projected(network, projector, encoder, head, view),
    }


def of_two(
    network: nn.Module, projector: nn.Module, view: augment.Fixed, probed: str
) -> dict[str, Encoder]:
    """The encoders of a method with a target, the moving average of the learned network.

    Args:
      network, projector, view: as for `projected`.
      probed: 'online' or 'target', which comes first.

    Returns:
      both, and 'projector', the embeddings of the one that is probed.
    """
    of = {"online": online, "target": target}
    first = of[probed]
    found = {
        name: image_encoder(network, select("encoder"), view)
        for name, select in sorted(of.items(), key=lambda item: item[0] != probed)
    }
    head = projected(network, projector, first("encoder"), first("projector"), view)
    return {**found, "projector": head}
