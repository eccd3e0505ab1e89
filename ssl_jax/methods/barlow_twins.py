"""Barlow Twins (Zbontar et al. 2021, "Barlow Twins: Self-Supervised Learning via Redundancy
Reduction", algorithm 1; facebookresearch/barlowtwins main.py).

    two views of every image → encoder → projector → correlations of their features → identity
"""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.losses import redundancy as losses
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder, values
from ssl_jax.models import heads, network

PROJECTOR = {
    "widths": (8192, 8192, 8192),
    "norms": ("affine", "affine", "none"),
    "biases": (False, False, False),
}
FIELDS = (
    Field("invariance", 1.0, "weight of Σ (1 − c_ii)²; 0: redundancy alone"),
    Field("redundancy", 0.0051, "λ, weight of Σ c_ij² off the diagonal; 0: invariance alone"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`barlow_twins` of a config: `config.method` has FIELDS, `config.views` the augmentations
    `first` and `second`.
    """
    m, encoder = config.method, models.make(config.model)
    return barlow_twins(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        tuple(augment.make("none", **config.views[name]) for name in ("first", "second")),
        augment.fixed(config.evaluate),
        invariance=m.invariance,
        redundancy=m.redundancy,
    )


def barlow_twins(
    encoder: nn.Module,
    projector: nn.Module,
    policies: tuple[augment.Policy, augment.Policy],
    view: augment.Fixed,
    *,
    invariance: float = 1.0,
    redundancy: float = 0.0051,
) -> Method:
    """Barlow Twins.

    Optimizer groups: 'bias', the 1-D parameters, biases and norms, which have a learning rate of
    their own in the code.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      policies: the augmentations of the two views.
      view: the fixed view of probing.
      invariance: weight of Σ (1 − c_ii)², 1 in the paper; 0 leaves redundancy alone.
      redundancy: λ, weight of Σ c_ij² off the diagonal; 0 leaves invariance alone.

    Raises:
      UserError: a number that cannot be.
    """
    values.not_negative(invariance=invariance, redundancy=redundancy)
    weights = {"invariance": invariance, "redundancy": redundancy}

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
        terms = losses.barlow_twins(*z, ctx.axis)
        value = sum(weight * terms[term] for term, weight in weights.items())
        metrics = terms | spread(z[0], ctx.axis)
        return value, ({"encoder": f, "projector": g}, metrics)

    return Method(
        views=views,
        init=init,
        loss=loss,
        labels=lambda params: jax.tree_util.tree_map_with_path(
            lambda path, _: "bias" if path[-1].key in ("bias", "scale") else "default", params
        ),
        encoders=image_encoder.of_one(encoder, projector, view),
    )
