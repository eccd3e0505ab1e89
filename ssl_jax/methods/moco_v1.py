"""MoCo v1 (He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning",
algorithm 1; facebookresearch/moco moco/builder.py and main_moco.py).

    one view → encoder → linear projector = query ─┐
                                                   ├→ InfoNCE: query · key against query · queue
    other view → moving average of both = key ─────┘  then the keys of all devices enter the queue

BatchNorm is local, and shuffled for the keys (`parts/shuffle.py`): the statistics of a query's
group would otherwise say which key is its own.
"""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.errors import UserError, near_misses
from ssl_jax.losses import infonce
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import ema, image_encoder, queue, shuffle
from ssl_jax.models import heads, network
from ssl_jax.optim import schedules


def make(config: ConfigDict, run: Run) -> Method:
    """MoCo with a queue; v1 and v2 differ in nothing but the config.

    Args:
      config: `config.method` holds
          temperature: T;
          projector: fields of `heads.MLP`;
          queue: negatives K, a multiple of the batch;
          momentum, momentum_final: m of the key encoder goes from one to the other along half a
            cosine (the official code: 0.999 throughout);
          group: rows that share their BatchNorm statistics, whatever the device count; 0: all of
            the batch, and nothing is shuffled;
          shuffle: groups that the keys change places between; a device holds whole sets of them.
            1 is the ablation without shuffling;
          decoupled, weighted, sigma: the losses of DCL and DCLW, see `infonce.against_queue`;
          encoder: 'online' (the query encoder, as the official code evaluates) or 'target';
        `config.views.both` the augmentation of both views, `config.model` the encoder.
      run: total_steps; batch.

    Raises:
      UserError: an unknown `encoder`, a queue that batches do not fill, shuffle or group below
        their least value, or weighted without decoupled.
    """
    c = config.method
    if c.encoder not in ("online", "target"):
        near = near_misses(c.encoder, ("online", "target"))
        raise UserError(f"--config.method.encoder is {c.encoder!r}.{near}")
    if c.group < 0 or c.shuffle < 1:
        raise UserError("--config.method.group must be at least 0, --config.method.shuffle 1")
    if c.weighted and not c.decoupled:
        raise UserError("--config.method.weighted needs --config.method.decoupled")
    queue.check(c.queue, run.batch // config.accumulate)
    local = {"group": c.group} if c.group else {}
    encoder = models.make({**config.model, **local})
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**c.projector, **local, dtype=encoder.dtype)
    policy = augment.make("none", **config.views.both)
    momentum = schedules.cosine(c.momentum, c.momentum_final, run.total_steps)
    block = max(c.group * c.shuffle, 1)

    def embed(params, stats, x, axis):
        h, f = network.forward(encoder, params["encoder"], stats["encoder"], x, axis)
        z, g = network.forward(projector, params["projector"], stats["projector"], h, axis)
        return z, {"encoder": f, "projector": g}

    def views(key, batch, ctx):
        return augment.crops((policy, policy), key, batch["image"], ctx.axis)  # [b, 2, s, s, C]

    def init(key, views):
        encoder_key, projector_key, queue_key = jax.random.split(key, 3)
        f, h = network.create(encoder, encoder_key, views[:, 0])
        g, z = network.create(projector, projector_key, h)
        params = {"encoder": f["params"], "projector": g["params"]}
        stats = {"encoder": f["batch_stats"], "projector": g["batch_stats"]}
        return params, {
            **stats,
            "target": jax.tree.map(jnp.copy, params),
            "target_stats": jax.tree.map(jnp.copy, stats),
            "queue": queue.create(queue_key, c.queue, z.shape[-1]),
            "pointer": jnp.zeros((), jnp.int32),
        }

    def loss(params, state, views, ctx):
        q, stats = embed(params, state, views[:, 0], ctx.axis)
        # The key encoder first, from the parameters that the queries were computed with. The
        # micro-batches of a step share one update.
        m = momentum(ctx.step) ** (1 / config.accumulate)
        target = ema.update(state["target"], params, m)
        # No example has the row number run.batch: a key that no augmentation draws from.
        key = jax.random.fold_in(ctx.key, run.batch)
        order = shuffle.draw(key, len(views), block, ctx.axis)
        k, target_stats = embed(
            target, state["target_stats"], shuffle.shuffle(views[:, 1], order), ctx.axis
        )
        k = shuffle.unshuffle(k, order)
        sigma = c.sigma if c.weighted else None
        value, metrics = infonce.against_queue(
            q, k, state["queue"], c.temperature, ctx.axis, c.decoupled, sigma
        )
        negatives, pointer = queue.enqueue(state["queue"], state["pointer"], k, ctx.axis)
        return value, (
            {
                **stats,
                # The step moves the old one again, in its place: less to keep until then.
                "target": Partial(ema.update, state["target"], params, m),
                "target_stats": target_stats,
                "queue": negatives,
                "pointer": pointer,
            },
            metrics | spread(q, ctx.axis),
        )

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_two(encoder, projector, view, c.encoder),
        block=block,
    )
