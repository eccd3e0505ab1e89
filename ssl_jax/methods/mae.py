"""MAE (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", section 3;
facebookresearch/mae models_mae.py).

    patches of a view, most of them hidden → encoder on the visible ones → decoder → pixels of the
    hidden ones

There is no state: neither running statistics nor a target.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import augment, models, parallel
from ssl_jax.augment import masks
from ssl_jax.errors import UserError
from ssl_jax.losses import reconstruction
from ssl_jax.methods.protocol import Method, Run
from ssl_jax.models import network
from ssl_jax.models.mae_decoder import Decoder
from ssl_jax.models.vit import ViT, patchify


def make(config: ConfigDict, run: Run) -> Method:
    """MAE.

    Args:
      config: `config.method` holds
          masking: 'random' (the paper's choice), 'block' or 'grid', see `masks.make`;
          ratio: share of the patches that is hidden;
          encoder_mask_tokens: False (the paper's choice): the encoder sees the visible patches
            alone. True: it sees all, with a mask token in place of the hidden ones (table 1c);
          normalise_pixels: True: the target is each patch with mean 0 and variance 1;
          decoder: fields of `Decoder`, without `out`;
        `config.views.image` the augmentation of the image, `config.model` a ViT, whose `pool` says
        what probing reads of it.
      run: not used.
    """
    encoder = models.make(config.model)
    if not isinstance(encoder, ViT):
        raise UserError(f"model.name is {config.model.name!r}; mae hides the patches of a vit")
    policy = augment.make("none", **config.views.image)
    if policy.size % encoder.patch:
        raise UserError(f"views.image.size {policy.size} is no multiple of {encoder.patch}")
    masking = masks.make(config.method.masking, policy.size // encoder.patch, config.method.ratio)
    tokens_for_hidden = config.method.encoder_mask_tokens
    normalise = config.method.normalise_pixels
    values = encoder.patch**2 * config.data.channels
    decoder = Decoder(out=values, token=encoder.token, dtype=encoder.dtype, **config.method.decoder)

    def views(key, batch, ctx):
        image_key, mask_key = jax.random.split(key)
        image = augment.crops((policy,), image_key, batch["image"], ctx.axis)[:, 0]
        mask = masking.draw(parallel.example_keys(mask_key, len(image), ctx.axis))
        return {"image": image, "mask": mask}  # [b, s, s, C], bool [b, N]

    def encode(net, image, mask, mask_token, keys):
        if tokens_for_hidden:
            tokens = net.embed(image, mask, mask_token)  # [b, N, D]
        else:
            # Where the mask is false, row by row; the official order is that of the noise, which
            # a transformer does not see.
            visible = jnp.argsort(mask, 1)[:, : masking.visible]
            tokens = jnp.take_along_axis(net.embed(image), visible[..., None], 1)  # [b, V, D]
        return net.normalise(net.encode(tokens, keys))

    def latent(params, views, keys=None):
        variables, token = {"params": params["encoder"]}, params.get("mask_token")
        return encoder.apply(variables, views["image"], views["mask"], token, keys, method=encode)

    def init(key, views):
        encoder_key, decoder_key, token_key = jax.random.split(key, 3)
        f, _ = network.create(encoder, encoder_key, views["image"])
        params = {"encoder": f["params"]}
        if tokens_for_hidden:
            params["mask_token"] = 0.02 * jax.random.normal(token_key, (encoder.width,))
        decoded = decoder.init(decoder_key, latent(params, views), views["mask"])
        return {**params, "decoder": decoded["params"]}, {}

    def loss(params, state, views, ctx):
        # For DropPath, if the model has any. (`views` took the children 0 and 1 of this key.)
        keys = jax.random.fold_in(ctx.key, 2)
        keys = parallel.example_keys(keys, len(views["image"]), ctx.axis)
        z = latent(params, views, keys)  # [b, t + V, D], t: the class token
        prediction = decoder.apply({"params": params["decoder"]}, z, views["mask"])  # [b, N, p·p·C]
        target = patchify(views["image"], encoder.patch)
        if normalise:
            target = reconstruction.normalised_patches(target)
        value = reconstruction.masked_mse(prediction, target, views["mask"], ctx.axis)
        share = reconstruction.explained(value, target, views["mask"], ctx.axis)
        return value, (state, {"explained": share})

    return Method(
        views=views,
        init=init,
        loss=loss,
        after_step=lambda params, state, ctx: (params, state),
        labels=lambda params: jax.tree.map(lambda _: "default", params),
        encoder=lambda params, state: {"params": params["encoder"], "batch_stats": {}},
    )
