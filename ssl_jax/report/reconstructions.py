"""What a masked autoencoder makes of hidden patches."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax import augment
from ssl_jax.augment import masks
from ssl_jax.methods import mae
from ssl_jax.models.vit import patchify

GREY = 0.5  # of a hidden patch, in [0, 1]


def draw(
    config: ConfigDict, params: dict, images: np.ndarray, seed: int = 0
) -> dict[str, np.ndarray]:
    """Images, what the encoder sees of them, and what the decoder says of the rest.

    If the decoder predicts normalised pixels (`method.normalise_pixels`), a patch is given the mean
    and the deviation of the true one: what is shown is the structure within patches, and their
    level is not the decoder's doing.

    Args:
      config: of a run of MAE.
      params: its parameters.
      images: uint8 [n, H, W, C].
      seed: of the masks.

    Returns:
      'original', 'visible', 'prediction' (of every patch) and 'filled in' (its hidden ones, the
      visible ones as they are): uint8 [n, s, s, C].
    """
    encoder, decoder = mae.networks(config)
    m, view, channels = config.method, config.views.image, images.shape[-1]
    side = view.size // encoder.patch
    masking = masks.make(m.masking, side, m.ratio)
    keys = jax.random.split(jax.random.key(seed), len(images))

    def compute(params, images, keys):
        x = augment.evaluate(images, view.size, view.mean, view.std, 1.0)
        mask = masking.draw(keys)
        z = mae.latent(encoder, params, x, mask, masking.visible)
        return x, mask, decoder.apply({"params": params["decoder"]}, z, mask)

    x, mask, patches = jax.jit(compute)(params, images, keys)
    true = patchify(x, encoder.patch)  # [n, N, p·p·C]
    if m.normalise_pixels:
        deviation = jnp.sqrt(jnp.var(true, -1, keepdims=True, ddof=1) + 1e-6)
        patches = patches * deviation + jnp.mean(true, -1, keepdims=True)
    mean, std = (per_channel(v, channels) for v in (view.mean, view.std))
    hidden = np.asarray(mask)[..., None]  # [n, N, 1]

    def picture(patches):
        x = unpatchify(np.asarray(patches), encoder.patch, channels) * std + mean
        return np.round(255 * np.clip(x, 0, 1)).astype(np.uint8)

    grey = np.broadcast_to((GREY - mean) / std, (encoder.patch**2, channels)).reshape(-1)
    return {
        "original": picture(true),
        "visible": picture(np.where(hidden, grey, true)),
        "prediction": picture(patches),
        "filled in": picture(np.where(hidden, patches, true)),
    }


def unpatchify(patches: np.ndarray, patch: int, channels: int) -> np.ndarray:
    """The inverse of `vit.patchify` for square images.

    Args:
      patches: [b, N, p·p·C], N a square number, row by row.
      patch: side of a patch p, pixels.
      channels: C.

    Returns:
      [b, s, s, C], s = √N · p.
    """
    b, count, _ = patches.shape
    side = round(count**0.5)
    x = patches.reshape(b, side, side, patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, side * patch, side * patch, channels)


def per_channel(values: Sequence[float], channels: int) -> np.ndarray:
    """Normalisation per channel, as augment/pipeline.py reads it: float32 [C]."""
    values = np.asarray(values, np.float32)
    return values if len(values) == channels else np.full(channels, values.mean())
