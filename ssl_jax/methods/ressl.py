"""ReSSL (Zheng et al. 2021, "ReSSL: Relational Self-Supervised Learning with Weak Augmentation",
algorithm 1; KyleZheng1997/ReSSL ressl.py and network/ressl.py).

    strong view → encoder → projector → softmax(cosines to the queue / T_s) ─┐
                                                                             ├→ cross-entropy
    weak view → moving average of both → softmax(cosines to the queue / T_t) ┘
                                       then the teacher's embeddings enter the queue

The student learns how alike the teacher finds an image and many others, rather than which of them
is the same image: there is no positive.
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
    """ReSSL.

    Args:
      config: `config.method` holds
          student_temperature, teacher_temperature: T_s and T_t;
          projector: fields of `heads.MLP`;
          queue: rows K, a multiple of the batch;
          momentum, momentum_final: m of the teacher goes from one to the other along half a cosine
            (the official code: 0.999 throughout);
          group: rows that share their BatchNorm statistics, whatever the device count; 0: all of
            the batch, and nothing is shuffled;
          shuffle: groups that the teacher's rows change places between, see `parts/shuffle.py`;
          encoder: 'online' (the student, as the official code evaluates) or 'target';
        `config.views.first` the student's strong augmentation, `config.views.second` the teacher's
        weak one, `config.model` the encoder.
      run: total_steps; batch.

    Raises:
      UserError: an unknown `encoder`, a queue that batches do not fill, shuffle or group below
        their least value.
    """
    c = config.method
    if c.encoder not in ("online", "target"):
        near = near_misses(c.encoder, ("online", "target"))
        raise UserError(f"--config.method.encoder is {c.encoder!r}.{near}")
    if c.group < 0 or c.shuffle < 1:
        raise UserError("--config.method.group must be at least 0, --config.method.shuffle 1")
    queue.check(c.queue, run.batch // config.accumulate)
    local = {"group": c.group} if c.group else {}
    encoder = models.make({**config.model, **local})
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**c.projector, **local, dtype=encoder.dtype)
    policies = tuple(augment.make("none", **config.views[v]) for v in ("first", "second"))
    momentum = schedules.cosine(c.momentum, c.momentum_final, run.total_steps)
    block = max(c.group * c.shuffle, 1)

    def embed(params, stats, x, axis):
        h, f = network.forward(encoder, params["encoder"], stats["encoder"], x, axis)
        z, g = network.forward(projector, params["projector"], stats["projector"], h, axis)
        return z, {"encoder": f, "projector": g}

    def views(key, batch, ctx):
        return augment.crops(policies, key, batch["image"], ctx.axis)  # [b, 2, s, s, C]

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
        student, stats = embed(params, state, views[:, 0], ctx.axis)
        # The teacher first, from the parameters that the student's rows were computed with. The
        # micro-batches of a step share one update.
        m = momentum(ctx.step) ** (1 / config.accumulate)
        target = ema.update(state["target"], params, m)
        # No example has the row number run.batch: a key that no augmentation draws from.
        key = jax.random.fold_in(ctx.key, run.batch)
        order = shuffle.draw(key, len(views), block, ctx.axis)
        teacher, target_stats = embed(
            target, state["target_stats"], shuffle.shuffle(views[:, 1], order), ctx.axis
        )
        teacher = shuffle.unshuffle(teacher, order)
        value, metrics = infonce.relation(
            student, teacher, state["queue"], c.student_temperature, c.teacher_temperature
        )
        rows, pointer = queue.enqueue(state["queue"], state["pointer"], teacher, ctx.axis)
        return value, (
            {
                **stats,
                # The step moves the old one again, in its place: less to keep until then.
                "target": Partial(ema.update, state["target"], params, m),
                "target_stats": target_stats,
                "queue": rows,
                "pointer": pointer,
            },
            metrics | spread(student, ctx.axis),
        )

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_two(encoder, projector, view, c.encoder),
        block=block,
    )
