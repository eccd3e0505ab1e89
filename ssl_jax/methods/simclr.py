"""SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
Representations", algorithm 1; google-research/simclr tf2/objective.py and tf2/model.py).

    two views of every image → encoder → projector → NT-Xent against all other views
"""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.losses import contrastive
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder, values
from ssl_jax.models import heads, network

# BatchNorm stands after every layer, the last one without a bias (tf2/model.py).
PROJECTOR = {
    "widths": (2048, 2048, 128),
    "norms": ("affine", "affine", "scale"),
    "biases": (False, False, False),
    "initial": "simclr",
    "unbiased": False,
}
FIELDS = (
    Field("temperature", 0.1, "τ of NT-Xent"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("loss_scale", 1.0, "factor on the mean over the 2B rows; the official code's is 2"),
    Field("chunk", 0, "candidates that the loss handles at a time; 0: all at once"),
    Field("encoder_rows", 0, "views that the encoder handles at a time on a device; 0: all"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`simclr` of a config: `config.method` has FIELDS, `config.views.both` is the augmentation."""
    m, encoder = config.method, models.make(config.model)
    return simclr(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        augment.make("none", **config.views.both),
        augment.fixed(config.evaluate),
        temperature=m.temperature,
        loss_scale=m.loss_scale,
        chunk=m.chunk,
        encoder_rows=m.encoder_rows,
    )


def simclr(
    encoder: nn.Module,
    projector: nn.Module,
    policy: augment.Policy,
    view: augment.Fixed,
    *,
    temperature: float = 0.1,
    loss_scale: float = 1.0,
    chunk: int = 0,
    encoder_rows: int = 0,
) -> Method:
    """SimCLR.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      policy: the augmentation of both views.
      view: the fixed view of probing.
      temperature: τ.
      loss_scale: factor on the mean NT-Xent over the 2B rows (the paper's equation 1). The official
        code sums the two directions, which is 2.
      chunk: candidates that the loss handles at a time, 0 for all at once.
      encoder_rows: views that are drawn and go through the encoder at a time on a device, 0 for all
        at once, see `network.forward_in_pieces`.

    Raises:
      UserError: a number that cannot be.
    """
    values.positive(temperature=temperature, loss_scale=loss_scale)
    values.count(0, chunk=chunk, encoder_rows=encoder_rows)

    def views(key, batch, ctx):
        both = augment.undrawn(2, key, batch["image"], ctx.axis)
        # With `encoder_rows` the loss draws them, those of a piece at a time.
        return both if encoder_rows else draw(both, ctx.axis)

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
        h, f = network.forward_in_pieces(
            encoder, f, stats, views, ctx.axis, encoder_rows, joined, each=2
        )
        z, g = network.forward(projector, params["projector"], state["projector"], h, ctx.axis)
        z = z.reshape(-1, 2, z.shape[-1])  # [2b, d] -> [b, 2, d]
        value, metrics = contrastive.ntxent_metrics(
            z[:, 0], z[:, 1], temperature, ctx.axis, chunk or None
        )
        metrics |= spread(z, ctx.axis)
        return loss_scale * value, ({"encoder": f, "projector": g}, metrics)

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_one(encoder, projector, view),
    )
