"""DCL and DCLW (Yeh et al. 2022, "Decoupled Contrastive Learning", equations 5 to 7;
raminnakhli/Decoupled-Contrastive-Learning loss/dcl.py).

    two views of every image → encoder → projector → attract the positive | repel all other images

SimCLR in everything but the loss, whose denominator leaves the positive out.
"""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.losses import decoupled
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder, values
from ssl_jax.models import heads, network

# SimCLR's (tf2/model.py).
PROJECTOR = {
    "widths": (2048, 2048, 128),
    "norms": ("affine", "affine", "scale"),
    "biases": (False, False, False),
    "initial": "simclr",
    "unbiased": False,
}
FIELDS = (
    Field("temperature", 0.1, "τ"),
    Field("weighted", False, "DCLW: positives weighted by how little they agree yet"),
    Field("sigma", 0.5, "σ of those weights"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("loss_scale", 1.0, "factor on the mean over the 2B rows; the code's is 2"),
    Field("encoder_rows", 0, "views that the encoder handles at a time on a device; 0: all"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`dcl` of a config: `config.method` has FIELDS, `config.views.both` is the augmentation."""
    m, encoder = config.method, models.make(config.model)
    return dcl(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        augment.make("none", **config.views.both),
        augment.fixed(config.evaluate),
        temperature=m.temperature,
        weighted=m.weighted,
        sigma=m.sigma,
        loss_scale=m.loss_scale,
        encoder_rows=m.encoder_rows,
    )


def dcl(
    encoder: nn.Module,
    projector: nn.Module,
    policy: augment.Policy,
    view: augment.Fixed,
    *,
    temperature: float = 0.1,
    weighted: bool = False,
    sigma: float = 0.5,
    loss_scale: float = 1.0,
    encoder_rows: int = 0,
) -> Method:
    """DCL, or DCLW.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      policy: the augmentation of both views.
      view: the fixed view of probing.
      temperature: τ.
      weighted: True for DCLW: positives weighted by how little they agree yet.
      sigma: σ of those weights, 0.5 in the paper.
      loss_scale: factor on the mean over the 2B rows. The code sums the two directions, which is 2.
      encoder_rows: views that are drawn and go through the encoder at a time on a device, 0 for all
        at once, see `network.forward_in_pieces`.

    Raises:
      UserError: a number that cannot be.
    """
    values.positive(temperature=temperature, sigma=sigma, loss_scale=loss_scale)
    values.count(0, encoder_rows=encoder_rows)
    weights = sigma if weighted else None

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
        value, metrics = decoupled.dcl(z[:, 0], z[:, 1], temperature, weights, ctx.axis)
        metrics |= spread(z, ctx.axis)
        return loss_scale * value, ({"encoder": f, "projector": g}, metrics)

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_one(encoder, projector, view),
    )
