"""SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations", algorithm 1; google-research/simclr tf2/objective.py and tf2/model.py).

    two views of every image → encoder → projector → NT-Xent against all other views
"""

import jax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.losses import contrastive
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder
from ssl_jax.models import heads, network


def make(config: ConfigDict, run: Run) -> Method:
    """SimCLR.

    Args:
      config: `config.method` holds
          temperature: τ;
          projector: fields of `heads.MLP`;
          loss_scale: factor on the mean NT-Xent over the 2B rows (the paper's equation 1). The
            official code sums the two directions, which is 2;
          chunk: candidates that the loss handles at a time, 0 for all at once;
          encoder_rows: views that are drawn and go through the encoder at a time on a device, 0 for
            all at once, see `network.forward_in_pieces`;
        `config.views.both` the augmentation of both views, `config.model` the encoder.
      run: not used.
    """
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**config.method.projector, dtype=encoder.dtype)
    policy, rows = augment.make("none", **config.views.both), config.method.encoder_rows
    temperature, scale, chunk = (config.method[k] for k in ("temperature", "loss_scale", "chunk"))
    chunk = chunk or None

    def views(key, batch, ctx):
        both = augment.undrawn(2, key, batch["image"], ctx.axis)
        # With `encoder_rows` the loss draws them, those of a piece at a time.
        return both if rows else draw(both, ctx.axis)

    def draw(views, axis):
        return augment.draw((policy, policy), views, axis)  # [b, 2, s, s, C]

    def init(key, views):
        encoder_key, projector_key = jax.random.split(key)
        f, h = network.create(encoder, encoder_key, draw(views, None)[:, 0])
        g, _ = network.create(projector, projector_key, h)
        params = {"encoder": f["params"], "projector": g["params"]}
        return params, {"encoder": f["batch_stats"], "projector": g["batch_stats"]}

    def loss(params, state, views, ctx):
        def joined(views):
            x = draw(views, ctx.axis)
            return x.reshape(-1, *x.shape[2:])  # [b, 2, s, s, C] -> [2b, s, s, C]

        f, stats = params["encoder"], state["encoder"]
        h, f = network.forward_in_pieces(encoder, f, stats, views, ctx.axis, rows, joined, each=2)
        z, g = network.forward(projector, params["projector"], state["projector"], h, ctx.axis)
        z = z.reshape(-1, 2, z.shape[-1])  # [2b, d] -> [b, 2, d]
        value, metrics = contrastive.ntxent_metrics(z[:, 0], z[:, 1], temperature, ctx.axis, chunk)
        metrics |= spread(z, ctx.axis)
        return scale * value, ({"encoder": f, "projector": g}, metrics)

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_one(encoder, projector, view),
    )
