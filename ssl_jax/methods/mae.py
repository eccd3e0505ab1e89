"""MAE (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", section 3;
facebookresearch/mae models_mae.py).

    patches of a view, most of them hidden → encoder on the visible ones → decoder → pixels of the
    hidden ones

There is no state: neither running statistics nor a target.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.augment import masks
from ssl_jax.contract.method import Field, Method, Run, Show
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses import reconstruction
from ssl_jax.methods.parts import image_encoder, pictures, values
from ssl_jax.models import network
from ssl_jax.models.decoders.mae import Decoder
from ssl_jax.models.vit import ViT, patchify

GREY = 0.5  # of a hidden patch in pictures, in [0, 1]
SHOWN = (
    "Hidden patches are grey; the decoder tells them from the visible ones. Where it predicts "
    "patches of mean 0 and variance 1 (normalise_pixels), each is shown with the mean and the "
    "deviation of the true one."
)


FIELDS = (
    Field("masking", "random", "random, block or grid: which patches are hidden"),
    Field("ratio", 0.75, "share of the patches that is hidden"),
    Field("encoder_mask_tokens", False, "the encoder sees mask tokens for hidden patches"),
    Field("normalise_pixels", True, "the target is each patch with mean 0 and variance 1"),
    Field(
        "decoder",
        {"width": 512, "depth": 8, "heads": 16, "mlp": 4.0},
        "fields of decoders.mae.Decoder",
    ),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`mae` of a config: `config.method` has FIELDS, `config.views.image` is the augmentation."""
    m = config.method
    return mae(
        *networks(config),
        augment.make("none", **config.views.image),
        augment.fixed(config.evaluate),
        masking=m.masking,
        ratio=m.ratio,
        encoder_mask_tokens=m.encoder_mask_tokens,
        normalise_pixels=m.normalise_pixels,
    )


def networks(config: ConfigDict) -> tuple[ViT, Decoder]:
    """The encoder and the decoder that a config describes; `model.remat` is the decoder's as well.

    Raises:
      UserError: the model is no ViT, or the decoder has no such field.
    """
    encoder = _vit(models.make(config.model))
    values.fields(Decoder, decoder=config.method.decoder)
    return encoder, Decoder(
        out=encoder.patch**2 * config.data.channels,
        token=encoder.token,
        dtype=encoder.dtype,
        remat=encoder.remat,
        **config.method.decoder,
    )


def mae(
    encoder: ViT,
    decoder: Decoder,
    policy: augment.Policy,
    view: augment.Fixed,
    *,
    masking: str = "random",
    ratio: float = 0.75,
    encoder_mask_tokens: bool = False,
    normalise_pixels: bool = True,
) -> Method:
    """MAE.

    Args:
      encoder: a ViT, whose `pool` says what probing reads of it.
      decoder: from its tokens to the p·p·C pixels of a patch, its `out`; `token` as the encoder's.
      policy: the augmentation of the image.
      view: the fixed view of probing.
      masking: 'random' (the paper's choice), 'block' or 'grid', see `masks.make`.
      ratio: share of the patches that is hidden, between 0 and 1.
      encoder_mask_tokens: False (the paper's choice): the encoder sees the visible patches alone.
        True: it sees all, with a mask token in place of the hidden ones (table 1c).
      normalise_pixels: the target is each patch with mean 0 and variance 1, not the pixels.

    Raises:
      UserError: a value that cannot be.
    """
    _vit(encoder)
    if policy.size % encoder.patch:
        raise UserError(
            f"--config.views.image.size {policy.size} is no multiple of {encoder.patch}, "
            f"--config.model.patch"
        )
    width, heads = decoder.width, decoder.heads
    values.count(1, **{"decoder.width": width, "decoder.heads": heads})
    values.count(0, **{"decoder.depth": decoder.depth})
    values.positive(**{"decoder.mlp": decoder.mlp})
    if width % heads or width % 4:
        raise UserError(
            f"--config.method.decoder.width is {width}; it must be a multiple of 4 and of "
            f"--config.method.decoder.heads, {heads}"
        )
    masked = masks.make(masking, policy.size // encoder.patch, ratio)

    def views(key, batch, ctx):
        image_key, mask_key = jax.random.split(key)
        image = augment.crops((policy,), image_key, batch["image"], ctx.axis)[:, 0]
        mask = masked.draw(collectives.example_keys(mask_key, len(image), ctx.axis))
        return {"image": image, "mask": mask}  # [b, s, s, C], bool [b, N]

    def init(key, views):
        encoder_key, decoder_key, token_key = jax.random.split(key, 3)
        f, _ = network.create(encoder, encoder_key, views["image"])
        params = {"encoder": f["params"]}
        if encoder_mask_tokens:
            params["mask_token"] = 0.02 * jax.random.normal(token_key, (encoder.width,))
        z = latent(encoder, params, views["image"], views["mask"], masked.visible)
        decoded = decoder.init(decoder_key, z, views["mask"])
        return {**params, "decoder": decoded["params"]}, {}

    def loss(params, state, views, ctx):
        keys = ctx.keys("drop path", len(views["image"]))  # if the model drops any
        z = latent(encoder, params, views["image"], views["mask"], masked.visible, keys)
        prediction = decoder.apply({"params": params["decoder"]}, z, views["mask"])  # [b, N, p·p·C]
        target = patchify(views["image"], encoder.patch)
        if normalise_pixels:
            target = reconstruction.normalised_patches(target)
        value = reconstruction.masked_mse(prediction, target, views["mask"], ctx.axis)
        share = reconstruction.explained(value, target, views["mask"], ctx.axis)
        return value, (state, {"explained": share})

    def reconstruct(params, batch, key):
        """Images, what the encoder sees of them, and what the decoder says of the rest.

        Where the decoder predicts normalised pixels, a patch is given the mean and the deviation of
        the true one: what is shown is the structure within patches, and their level is not the
        decoder's doing.
        """
        images = batch["image"]
        x = augment.evaluate(images, policy.size, policy.mean, policy.std, 1.0)
        mask = masked.draw(jax.random.split(key, len(images)))
        z = latent(encoder, params, x, mask, masked.visible)
        patches = decoder.apply({"params": params["decoder"]}, z, mask)
        true = patchify(x, encoder.patch)  # [n, N, p·p·C]
        if normalise_pixels:
            deviation = jnp.sqrt(jnp.var(true, -1, keepdims=True, ddof=1) + 1e-6)
            patches = patches * deviation + jnp.mean(true, -1, keepdims=True)
        mean, std = (pictures.per_channel(v, x.shape[-1]) for v in (policy.mean, policy.std))
        grey = jnp.tile((GREY - mean) / std, encoder.patch**2)
        hidden = mask[..., None]  # [n, N, 1]
        shown = {
            "original": true,
            "visible": jnp.where(hidden, grey, true),
            "prediction": patches,  # of every patch
            "filled in": jnp.where(hidden, patches, true),
        }
        return {k: pictures.of_patches(v, encoder.patch, policy) for k, v in shown.items()}

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders={
            "encoder": image_encoder.image_encoder(encoder, image_encoder.online("encoder"), view)
        },
        show={"reconstructions": Show(lambda params, state: params, reconstruct, SHOWN)},
        least_rows=1,
    )


def _vit(encoder: nn.Module) -> ViT:
    if not isinstance(encoder, ViT):
        raise UserError(
            f"--config.model.name is that of a {type(encoder).__name__}; mae hides the patches of "
            f"a vit: choose vit, vit_tiny, vit_small, vit_base or vit_large"
        )
    return encoder


def latent(
    encoder: ViT,
    params: dict,
    image: jax.Array,
    mask: jax.Array,
    visible: int,
    keys: jax.Array | None = None,
) -> jax.Array:
    """Normalised tokens of what the encoder sees of an image, for the decoder.

    Args:
      encoder: as for `mae`.
      params: with 'encoder' and, if the encoder sees mask tokens, 'mask_token' [D].
      image: float [b, s, s, C].
      mask: bool [b, N], true where a patch is hidden.
      visible: patches of each image that are not, V.
      keys: typed keys [b] for DropPath, or None.

    Returns:
      [b, t + V, D] of the encoder's dtype (t: 1 with a class token); [b, t + N, D] with mask
      tokens.
    """

    def encode(net):
        if "mask_token" in params:
            tokens = net.embed(image, mask, params["mask_token"])  # [b, N, D]
        else:
            # Where the mask is false, row by row; the official order is that of the noise, which
            # a transformer does not see.
            seen = jnp.argsort(mask, 1)[:, :visible]
            tokens = jnp.take_along_axis(net.embed(image), seen[..., None], 1)  # [b, V, D]
        return net.normalise(net.encode(tokens, keys))

    return encoder.apply({"params": params["encoder"]}, method=encode)
