"""SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations", algorithm 1; google-research/simclr tf2/objective.py and tf2/model.py).

    two views of every image → encoder → projector → NT-Xent against all other views
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import augment, models, parallel
from ssl_jax.losses import contrastive
from ssl_jax.methods.protocol import Method, Run
from ssl_jax.models import heads


def make(config: ConfigDict, run: Run) -> Method:
    """SimCLR.

    Args:
      config: `config.method` holds
          temperature: τ;
          projector: fields of `heads.MLP`;
          loss_scale: factor on the mean NT-Xent over the 2B rows (the paper's equation 1). The
            official code sums the two directions, which is 2;
          chunk: candidates that the loss handles at a time, 0 for all at once;
        `config.views.both` the augmentation of both views, `config.model` the encoder.
      run: not used.
    """
    encoder = models.make(config.model)
    projector = heads.MLP(**config.method.projector, dtype=encoder.dtype)
    policy = augment.make("none", **config.views.both)
    temperature, scale, chunk = (config.method[k] for k in ("temperature", "loss_scale", "chunk"))
    chunk = chunk or None

    def views(key, batch, ctx):
        image = batch["image"]
        b = len(image)
        keys = parallel.example_keys(key, b, ctx.axis)
        keys = jax.vmap(lambda k: jax.random.split(k, 2))(keys)  # [b, 2]
        # Both views of an image stand side by side: a row stays on its device when they are
        # joined, also where `jit` splits the global batch.
        twice = jnp.repeat(image, 2, axis=0)  # [2b, H, W, C]
        drawn = augment.apply(policy, keys.reshape(-1), twice)
        return drawn.reshape(b, 2, *drawn.shape[1:])

    def init(key, views):
        x = views[:, 0]
        encoder_key, projector_key = jax.random.split(key)
        at_encoder = encoder.init(encoder_key, x, train=False)
        h = encoder.apply(at_encoder, x, train=False)
        at_projector = projector.init(projector_key, h, train=False)
        params = {"encoder": at_encoder["params"], "projector": at_projector["params"]}
        state = {
            "encoder": at_encoder.get("batch_stats", {}),
            "projector": at_projector.get("batch_stats", {}),
        }
        return params, state

    def loss(params, state, views, ctx):
        x = views.reshape(-1, *views.shape[2:])  # [b, 2, h, w, C] -> [2b, h, w, C]
        f, g = encoder.clone(axis=ctx.axis), projector.clone(axis=ctx.axis)
        h, after_f = f.apply(
            {"params": params["encoder"], "batch_stats": state["encoder"]},
            x,
            train=True,
            mutable=["batch_stats"],
        )
        z, after_g = g.apply(
            {"params": params["projector"], "batch_stats": state["projector"]},
            h,
            train=True,
            mutable=["batch_stats"],
        )
        z = z.reshape(-1, 2, z.shape[-1])  # [2b, d] -> [b, 2, d]
        z1, z2 = z[:, 0], z[:, 1]
        value, metrics = contrastive.ntxent_metrics(z1, z2, temperature, ctx.axis, chunk)
        state = {
            "encoder": after_f.get("batch_stats", {}),
            "projector": after_g.get("batch_stats", {}),
        }
        return scale * value, (state, metrics)

    return Method(
        views=views,
        init=init,
        loss=loss,
        after_step=lambda params, state, ctx: (params, state),
        labels=lambda params: jax.tree.map(lambda _: "default", params),
        encoder=lambda params, state: {
            "params": params["encoder"],
            "batch_stats": state["encoder"],
        },
    )
