"""VICReg (Bardes et al. 2022, "VICReg: Variance-Invariance-Covariance Regularization for
Self-Supervised Learning", algorithm 1; facebookresearch/vicreg main_vicreg.py).

    two views of every image → encoder → projector → alike, spread out, decorrelated
"""

import jax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.losses import redundancy
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder
from ssl_jax.models import heads, network


def make(config: ConfigDict, run: Run) -> Method:
    """VICReg.

    Args:
      config: `config.method` holds
          invariance, variance, covariance: weights of the three terms of `redundancy.vicreg` (sim,
            std and cov in the official code: 25, 25, 1);
          projector: fields of `heads.MLP`;
        `config.views.first` and `.second` the augmentations, `config.model` the encoder.
      run: not used.
    """
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**config.method.projector, dtype=encoder.dtype)
    policies = [augment.make("none", **config.views[name]) for name in ("first", "second")]
    weights = {term: config.method[term] for term in ("invariance", "variance", "covariance")}

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
