"""How many examples each prototype is given: one, if clustering has collapsed."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ssl_jax.contract.method import Prototypes


def usage(prototypes: Prototypes, variables: Any, features: np.ndarray) -> dict[str, np.ndarray]:
    """Examples whose highest score is that of each prototype, one count for every head.

    Args:
      prototypes: of a method.
      variables: from `prototypes.variables`.
      features: float [n, d] of the first encoder, in evaluation mode.

    Returns:
      name of the head -> int64 [K], which sums to n.
    """
    scores = prototypes.scores(variables, jnp.asarray(features, jnp.float32))
    return {
        head: np.bincount(np.asarray(jnp.argmax(s, 1)), minlength=s.shape[1])
        for head, s in scores.items()
    }


def perplexity(counts: np.ndarray) -> float:
    """exp(−Σ_k p_k log p_k), p_k = counts_k / Σ counts: prototypes that are used, effectively.

    Args:
      counts: int [K], not all 0.
    """
    p = counts[counts > 0] / counts.sum()
    return float(np.exp(-np.sum(p * np.log(p))))
