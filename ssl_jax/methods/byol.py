"""BYOL (Grill et al. 2020, "Bootstrap Your Own Latent", algorithm 1; google-deepmind/
deepmind-research byol/byol_experiment.py).

    view 1 → encoder → projector → predictor → p1        the online network, learned
    view 2 → encoder' → projector' → z2                  the target network, its slow average
    p1 ↔ z2 and, the views swapped, p2 ↔ z1: squared distance at unit length
"""

import jax
from jax import lax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.errors import UserError, near_misses
from ssl_jax.losses import regression
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import ema, image_encoder
from ssl_jax.models import heads, network
from ssl_jax.optim import schedules

TARGET = ("encoder", "projector")


def make(config: ConfigDict, run: Run) -> Method:
    """BYOL.

    Args:
      config: `config.method` holds
          projector: fields of `heads.MLP`;
          predictor: fields of `heads.MLP`, as wide at its end as the projector; None, {}
            or no widths: no predictor (the paper's table 5b: it collapses);
          momentum: τ of the target at step 0, raised to 1 by the last step along a cosine. 1 keeps
            the target as it was drawn; 0 stays 0: the target is the online network itself (table
            5a: it collapses);
          stop_gradient: the target is a constant; False: the gradient passes through it into the
            online parameters as if they were the target's (with momentum 0 they are);
          initial_target: 'own', drawn from another key (the official code), or 'online', a copy;
          encoder: which one is probed, 'online' (as the official evaluation) or 'target';
        `config.views.first` and `.second` the augmentations of the two views, `config.model` the
        encoder.
      run: total_steps, for the momentum.

    Raises:
      UserError: a value that is not one of these.
    """
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    networks = {
        "encoder": encoder,
        "projector": heads.MLP(**config.method.projector, dtype=encoder.dtype),
    }
    if config.method.predictor and config.method.predictor.widths:
        networks["predictor"] = heads.MLP(**config.method.predictor, dtype=encoder.dtype)
        ends = [config.method[name].widths[-1] for name in ("predictor", "projector")]
        if ends[0] != ends[1]:
            raise UserError(
                f"method.predictor.widths ends with {ends[0]}; the projector ends with {ends[1]}"
            )
    for field, known in (("initial_target", ("own", "online")), ("encoder", ("online", "target"))):
        if config.method[field] not in known:
            hint = near_misses(config.method[field], known)
            raise UserError(f"method.{field} is {config.method[field]!r}.{hint}")
    if not 0 <= config.method.momentum <= 1:
        raise UserError(f"method.momentum is {config.method.momentum}; it must be from 0 to 1")
    policies = [augment.make("none", **config.views[name]) for name in ("first", "second")]
    own_target, probed = config.method.initial_target == "own", config.method.encoder
    stop_gradient = config.method.stop_gradient
    momentum = schedules.cosine(config.method.momentum, 1.0, run.total_steps)
    if config.method.momentum == 0:
        momentum = schedules.constant(0.0)

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
            "momentum": momentum(ctx.step),
            **spread(z1, ctx.axis),
        }
        return value, ({**state, **stats, "target_stats": target_stats}, metrics)

    def after_step(params, state, ctx):
        online = {name: params[name] for name in TARGET}
        return params, {**state, "target": ema.update(state["target"], online, momentum(ctx.step))}

    return Method(
        views=views,
        init=init,
        loss=loss,
        after_step=after_step,
        encoders=image_encoder.of_two(encoder, networks["projector"], view, probed),
    )
