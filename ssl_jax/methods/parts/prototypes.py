"""How near features are to prototypes, for `Method.prototypes`."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssl_jax.contract.method import Prototypes
from ssl_jax.methods.parts.image_encoder import Select


def behind(
    projector: nn.Module, head: Select, kernels: Callable[[Any, Any], Sequence[jax.Array]]
) -> Prototypes:
    """Prototypes that are compared with what a projector makes of the features.

    The embeddings keep their length here, which says nothing about which prototype is the nearest.

    Args:
      projector: on the features of the first encoder.
      head: (params, state) -> its variables.
      kernels: (params, state) -> prototypes [e, K] of every head, leaves of the two.
    """

    def variables(params, state):
        return {"projector": head(params, state), "kernels": list(kernels(params, state))}

    def scores(variables, features):
        z = projector.apply(variables["projector"], _float32(features), train=False)
        found = [z @ kernel for kernel in variables["kernels"]]
        if len(found) == 1:
            return {"prototypes": found[0]}
        return {f"head {h + 1}": x for h, x in enumerate(found)}

    return Prototypes(variables, scores)


def outputs(
    projector: nn.Module, head: Select, centre: Callable[[Any, Any], jax.Array] | None
) -> Prototypes:
    """Prototypes that are the outputs of a projector.

    Args:
      projector, head: as for `behind`.
      centre: (params, state) -> [K], which is taken off the outputs; None: nothing is.
    """

    def variables(params, state):
        found = {"projector": head(params, state)}
        return found if centre is None else {**found, "centre": centre(params, state)}

    def scores(variables, features):
        x = projector.apply(variables["projector"], _float32(features), train=False)
        return {"prototypes": x - variables["centre"] if "centre" in variables else x}

    return Prototypes(variables, scores)


def _float32(features):
    return jnp.asarray(features, jnp.float32)
