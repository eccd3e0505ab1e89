"""VICReg (Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for
Self-Supervised Learning", algorithm 1; facebookresearch/vicreg main_vicreg.py).

    two views of every image → encoder → projector → alike, spread out, decorrelated
"""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.losses import redundancy
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder, values
from ssl_jax.models import heads, network

PROJECTOR = {
    "widths": (8192, 8192, 8192),
    "norms": ("affine", "affine", "none"),
    "biases": (True, True, False),
}
FIELDS = (
    Field("invariance", 25.0, "weight of the distance of the two views"),
    Field("variance", 25.0, "weight of the deviations below 1"),
    Field("covariance", 1.0, "weight of the covariances of two features"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`vicreg` of a config: `config.method` has FIELDS, `config.views` the augmentations `first`
    and `second`.
    """
    m, encoder = config.method, models.make(config.model)
    return vicreg(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        tuple(augment.make("none", **config.views[name]) for name in ("first", "second")),
        augment.fixed(config.evaluate),
        invariance=m.invariance,
        variance=m.variance,
        covariance=m.covariance,
    )


def vicreg(
    encoder: nn.Module,
    projector: nn.Module,
    policies: tuple[augment.Policy, augment.Policy],
    view: augment.Fixed,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> Method:
    """VICReg.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      policies: the augmentations of the two views.
      view: the fixed view of probing.
      invariance, variance, covariance: weights of the three terms of `redundancy.vicreg` (sim, std
        and cov in the official code).

    Raises:
      UserError: a number that cannot be.
    """
    weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
    values.not_negative(**weights)

    def views(key, batch, ctx):
        return augment.crops(policies, key, batch["image"], ctx.axis)  # [b, 2, s, s, C]

    def init(key, views):
        encoder_key, projector_key = jax.random.split(key)
        f, h = network.create(encoder, encoder_key, views[:, 0])
        g, _ = network.create(projector, projector_key, h)
        params = {"encoder": f["params"], "projector": g["params"]}
        return params, {"encoder": f["batch_stats"], "projector": g["batch_stats"]}

    def loss(params, state, views, ctx):
        f, g = state["encoder"], state["projector"]
        z = []
        for view in (0, 1):  # one after the other: each has its own BatchNorm statistics
            h, f = network.forward(encoder, params["encoder"], f, views[:, view], ctx.axis)
            y, g = network.forward(projector, params["projector"], g, h, ctx.axis)
            z.append(y)
        terms = redundancy.vicreg(*z, ctx.axis)
        value = sum(weight * terms[term] for term, weight in weights.items())
        metrics = terms | spread(z[0], ctx.axis)
        return value, ({"encoder": f, "projector": g}, metrics)

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_one(encoder, projector, view),
    )
