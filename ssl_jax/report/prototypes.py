"""How many images each prototype is given: one, if clustering has collapsed."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.models import heads


class Prototypes(NamedTuple):
    """What leads from the probed features to the scores of prototypes.

    Attributes:
      projector: its variables.
      kernels: float32 [e, K] of every head; empty where the projector's output are the scores.
      centre: float32 [K], taken off the scores before the largest is looked for; None: nothing.
    """

    projector: Any
    kernels: tuple[Any, ...]
    centre: Any


def select(config: ConfigDict, params: Any, state: Any) -> Prototypes | None:
    """Picks them from a training state; None for a method that has none.

    For DINO these are the outputs of the network that is probed, which is the teacher unless
    `method.encoder` says otherwise.

    Args:
      config: of the run.
      params, state: of its TrainState, arrays or shapes.
    """
    name = config.method.name
    if name == "dino":
        teacher = config.method.encoder == "target"
        weights, stats = (state["target"], state["target_stats"]) if teacher else (params, state)
        centre = state["centre"] if teacher else None
        return Prototypes(_variables(weights, stats), (), centre)
    kernels: tuple[Any, ...]
    if name == "swav":
        kernels = (params["prototypes"]["kernel"],)
    elif name == "sela_v2":
        learned = params["prototypes"]
        kernels = tuple(learned[f"head{h}"]["kernel"] for h in range(len(learned)))
    elif name == "deepcluster_v2":
        kernels = tuple(state["prototypes"])
    else:
        return None
    return Prototypes(_variables(params, state), kernels, None)


def usage(config: ConfigDict, p: Prototypes, features: np.ndarray) -> dict[str, np.ndarray]:
    """Images whose highest score is that of each prototype, one count for every head.

    Args:
      config: of the run.
      p: from `select`.
      features: float [n, d] of the probed encoder, in evaluation mode.

    Returns:
      name of the head -> int64 [K], which sums to n.
    """
    kind = heads.DINOHead if config.method.name == "dino" else heads.MLP
    dtype = models.make(config.model).dtype
    projector = kind(**config.method.projector, dtype=dtype)

    def best(p, x):
        z = projector.apply(p.projector, x, train=False)  # [n, d] -> [n, e] or scores [n, K]
        if p.centre is not None:
            z = z - p.centre
        # The length of z does not change which cosine is the largest.
        scores = [z @ kernel for kernel in p.kernels] or [z]
        return [(jnp.argmax(s, 1), s.shape[1]) for s in scores]

    found = best(p, jnp.asarray(features, jnp.float32))
    names = ["prototypes"] if len(found) == 1 else [f"head {h + 1}" for h in range(len(found))]
    return {
        name: np.bincount(np.asarray(rows), minlength=k)
        for name, (rows, k) in zip(names, found, strict=True)
    }


def perplexity(counts: np.ndarray) -> float:
    """exp(−Σ_k p_k log p_k), p_k = counts_k / Σ counts: prototypes that are used, effectively.

    Args:
      counts: int [K], not all 0.
    """
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(p * np.log(p))))


def _variables(params, stats):
    """Variables of the projector. (Leaves stay what they are, for `checkpoint.restore_part`.)"""
    return {"params": params["projector"], "batch_stats": stats["projector"]}
