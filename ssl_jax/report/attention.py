"""Where the class token of a ViT looks."""

from typing import Any

import jax
import numpy as np

from ssl_jax import augment
from ssl_jax.contract.encoder import Encoder
from ssl_jax.models.vit import ViT
from ssl_jax.report.contents import Attention


def draw(encoder: Encoder, variables: Any, images: np.ndarray) -> Attention | None:
    """Attention of the class token on the patches, in the last block, each head by itself.

    Caron et al. 2021 (DINO), figure 1; facebookresearch/dino visualize_attention.py.

    Args:
      encoder: of a method.
      variables: of the encoder.
      images: uint8 [n, H, W, C].

    Returns:
      the views of probing with the weights, which sum to 1 less what the token gives itself; None
      if the encoder is no ViT or has no class token.
    """
    model, view = encoder.network, encoder.view
    if not isinstance(model, ViT) or not model.token or view is None:
        return None

    def look(variables, images):
        x = augment.evaluate(images, *view)
        plain = augment.evaluate(images, *view._replace(mean=(0.0,), std=(1.0,)))
        weights = model.apply(variables, x, method="attention")[:, :, 0, 1:]  # [n, heads, N]
        return plain, weights.reshape(*weights.shape[:2], *(s // model.patch for s in x.shape[1:3]))

    plain, maps = jax.jit(look)(variables, images)
    return Attention(np.round(255 * np.clip(plain, 0, 1)).astype(np.uint8), np.asarray(maps))
