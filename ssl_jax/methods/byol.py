"""BYOL (Grill et al. 2020, "Bootstrap Your Own Latent", algorithm 1; google-deepmind/
deepmind-research byol/byol_experiment.py).

    view 1 → encoder → projector → predictor → p1        the online network, learned
    view 2 → encoder' → projector' → z2                  the target network, its slow average
    p1 ↔ z2 and, the views swapped, p2 ↔ z1: squared distance at unit length
"""

import flax.linen as nn
import jax
from jax import lax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.losses import regression
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import ema, image_encoder, values
from ssl_jax.models import heads, network

TARGET = ("encoder", "projector")
HEAD = {
    "widths": (4096, 256),
    "norms": ("affine", "none"),
    "biases": (True, False),
    "initial": "haiku",
    "unbiased": False,
}
FIELDS = (
    Field("projector", HEAD, "fields of heads.MLP"),
    Field("predictor", HEAD, "fields of heads.MLP; {}: none (table 5b: it collapses)"),
    Field("momentum", 0.996, "τ of the target at step 0, a cosine leads to 1; 0 stays 0"),
    Field("stop_gradient", True, "the target is a constant"),
    Field("initial_target", "own", "own: drawn from another key | online: a copy"),
    Field("encoder", "online", "online | target: the one that is probed"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`byol` of a config: `config.method` has FIELDS, `config.views` the augmentations `first` and
    `second`.
    """
    m, encoder = config.method, models.make(config.model)
    predictor = None
    if m.predictor and m.predictor.get("widths"):
        predictor = heads.make(m.predictor, "--config.method.predictor", dtype=encoder.dtype)
    return byol(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        predictor,
        tuple(augment.make("none", **config.views[name]) for name in ("first", "second")),
        augment.fixed(config.evaluate),
        total_steps=run.total_steps,
        momentum=m.momentum,
        stop_gradient=m.stop_gradient,
        initial_target=m.initial_target,
        probed=m.encoder,
    )


def byol(
    encoder: nn.Module,
    projector: heads.MLP,
    predictor: heads.MLP | None,
    policies: tuple[augment.Policy, augment.Policy],
    view: augment.Fixed,
    *,
    total_steps: int,
    momentum: float = 0.996,
    stop_gradient: bool = True,
    initial_target: str = "own",
    probed: str = "online",
) -> Method:
    """BYOL.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      predictor: on the projections, as wide at its end; None: none (the paper's table 5b: it
        collapses).
      policies: the augmentations of the two views.
      view: the fixed view of probing.
      total_steps: optimizer steps of the run, for the momentum.
      momentum: τ of the target at step 0, raised to 1 by the last step along a cosine. 1 keeps the
        target as it was drawn; 0 stays 0: the target is the online network itself (table 5a: it
        collapses).
      stop_gradient: the target is a constant; False: the gradient passes through it into the
        online parameters as if they were the target's (with momentum 0 they are).
      initial_target: 'own', drawn from another key (the official code), or 'online', a copy.
      probed: 'online' (as the official evaluation) or 'target'.

    Raises:
      UserError: a number or a name that cannot be, or heads that do not end at one width.
    """
    values.share(momentum=momentum)
    values.known(("own", "online"), initial_target=initial_target)
    values.known(("online", "target"), encoder=probed)
    networks = {"encoder": encoder, "projector": projector}
    if predictor is not None:
        networks["predictor"] = predictor
        heads.check_ends(predictor, projector)
    own_target = initial_target == "own"
    rate = ema.rate(momentum, 1.0 if momentum else 0.0, total_steps)

    def views(key, batch, ctx):
        return augment.crops(policies, key, batch["image"], ctx.axis)  # [b, 2, s, s, C]

    def draw(names, key, x):
        params, stats = {}, {}
        for i, name in enumerate(names):
            made, x = network.create(networks[name], jax.random.fold_in(key, i), x)
            params[name], stats[name] = made["params"], made["batch_stats"]
        return params, stats

    def init(key, views):
        online_key, target_key = jax.random.split(key)
        params, stats = draw(networks, online_key, views[:, 0])
        target, target_stats = draw(TARGET, target_key if own_target else online_key, views[:, 0])
        return params, {**stats, "target": target, "target_stats": target_stats}

    def through(names, params, stats, views, axis):
        """Each view on its own through the networks `names`: BatchNorm sees one at a time."""
        outputs, stats = [], {name: stats[name] for name in names}
        for x in (views[:, 0], views[:, 1]):
            for name in names:
                x, stats[name] = network.forward(networks[name], params[name], stats[name], x, axis)
            outputs.append(x)
        return *outputs, stats

    def loss(params, state, views, ctx):
        target = state["target"]
        if not stop_gradient:  # the values of the target, the gradient of the online network
            online = {name: params[name] for name in TARGET}
            target = jax.tree.map(lambda t, o: t + (o - lax.stop_gradient(o)), target, online)
        p1, p2, stats = through(networks, params, state, views, ctx.axis)
        # The target's BatchNorm goes by the batch and keeps statistics of its own.
        z1, z2, target_stats = through(TARGET, target, state["target_stats"], views, ctx.axis)
        if stop_gradient:
            z1, z2 = lax.stop_gradient((z1, z2))
        value = regression.squared_distance(p1, z2) + regression.squared_distance(p2, z1)
        metrics = {
            "projection_similarity": -regression.negative_cosine(z1, z2),
            "momentum": 1 - rate(ctx),
            **spread(z1, ctx.axis),
        }
        return value, ({**state, **stats, "target_stats": target_stats}, metrics)

    def after_step(params, state, ctx):
        online = {name: params[name] for name in TARGET}
        return params, {**state, "target": ema.update(state["target"], online, rate(ctx))}

    return Method(
        views=views,
        init=init,
        loss=loss,
        after_step=after_step,
        encoders=image_encoder.of_two(encoder, projector, view, probed),
    )
