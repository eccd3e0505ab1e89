"""ReSSL (Zheng et al. 2021, "ReSSL: Relational Self-Supervised Learning with Weak Augmentation",
algorithm 1; KyleZheng1997/ReSSL ressl.py and network/ressl.py).

    strong view → encoder → projector → softmax(cosines to the queue / T_s) ─┐
                                                                             ├→ cross-entropy
    weak view → moving average of both → softmax(cosines to the queue / T_t) ┘
                                       then the teacher's embeddings enter the queue

The student learns how alike the teacher finds an image and many others, rather than which of them
is the same image: there is no positive.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.errors import UserError
from ssl_jax.losses import infonce
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import ema, image_encoder, values
from ssl_jax.methods.parts import queue as rings
from ssl_jax.methods.parts import shuffle as orders
from ssl_jax.models import heads, network

# Two layers without BatchNorm (network/head.py).
PROJECTOR = {
    "widths": (4096, 512),
    "norms": ("none", "none"),
    "biases": (True, True),
    "initial": "torch",
}
FIELDS = (
    Field("student_temperature", 0.1, "T_s"),
    Field("teacher_temperature", 0.04, "T_t"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("queue", 131_072, "rows of the queue, a multiple of the batch"),
    Field("momentum", 0.999, "m of the teacher at step 0"),
    Field("momentum_final", 0.999, "m at the last step, reached along half a cosine"),
    Field("group", 32, "rows that share BatchNorm statistics; 0: all"),
    Field("shuffle", 8, "groups that the teacher's rows change places between; 1: they stay"),
    Field("encoder", "online", "which is probed: online, the student, or target"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`ressl` of a config: `config.method` has FIELDS.

    `config.views.first` is the student's strong augmentation, `config.views.second` the teacher's
    weak one.
    """
    m = config.method
    encoder = models.make(config.model)
    return ressl(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        [augment.make("none", **config.views[name]) for name in ("first", "second")],
        augment.fixed(config.evaluate),
        batch=run.batch,
        total_steps=run.total_steps,
        accumulate=config.accumulate,
        student_temperature=m.student_temperature,
        teacher_temperature=m.teacher_temperature,
        queue=m.queue,
        momentum=m.momentum,
        momentum_final=m.momentum_final,
        group=m.group,
        shuffle=m.shuffle,
        probed=m.encoder,
    )


def ressl(
    encoder: nn.Module,
    projector: nn.Module,
    policies: Sequence[augment.Policy],
    view: augment.Fixed,
    *,
    batch: int,
    total_steps: int,
    accumulate: int = 1,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    queue: int = 131_072,
    momentum: float = 0.999,
    momentum_final: float = 0.999,
    group: int = 32,
    shuffle: int = 8,
    probed: str = "online",
) -> Method:
    """ReSSL.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      policies: the student's strong augmentation and the teacher's weak one, of one size.
      view: the fixed view of probing.
      batch: rows of an optimizer step over all devices.
      total_steps: optimizer steps of the run, over which the momentum moves.
      accumulate: micro-batches of a step.
      student_temperature, teacher_temperature: T_s and T_t.
      queue: rows K, a multiple of those of a micro-batch.
      momentum, momentum_final: m of the teacher goes from one to the other along half a cosine (the
        official code: 0.999 throughout).
      group: rows that share their BatchNorm statistics, whatever the device count; 0: all of the
        batch, and nothing is shuffled.
      shuffle: groups that the teacher's rows change places between, see `parts/shuffle.py`.
      probed: 'online' (the student, as the official code evaluates) or 'target'. In a config it is
        `method.encoder`.

    Raises:
      UserError: a value that cannot be.
    """
    values.known(("online", "target"), encoder=probed)
    values.positive(
        student_temperature=student_temperature, teacher_temperature=teacher_temperature
    )
    values.share(momentum=momentum, momentum_final=momentum_final)
    values.count(0, group=group)
    values.count(1, shuffle=shuffle, queue=queue)
    if group:
        if not hasattr(encoder, "group"):
            raise UserError(
                f"--config.method.group is {group}; {type(encoder).__name__} has no BatchNorm to "
                "split, set it to 0"
            )
        encoder, projector = encoder.clone(group=group), projector.clone(group=group)
    rings.check(queue, batch // accumulate)
    rate = ema.rate(momentum, momentum_final, total_steps)
    block = max(group * shuffle, 1)
    orders.check(group, shuffle, batch, accumulate)

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
            "queue": rings.create(queue_key, queue, z.shape[-1]),
            "pointer": jnp.zeros((), jnp.int32),
        }

    def loss(params, state, views, ctx):
        student, stats = embed(params, state, views[:, 0], ctx.axis)
        # The teacher first, from the parameters that the student's rows were computed with. The
        # micro-batches of a step share one update.
        share = ema.of_micro_batch(rate(ctx), accumulate)
        target = ema.update(state["target"], params, share)
        order = orders.draw(ctx.stream("shuffle"), len(views), block, ctx.axis)
        teacher, target_stats = embed(
            target, state["target_stats"], orders.shuffle(views[:, 1], order, ctx.axis), ctx.axis
        )
        teacher = orders.unshuffle(teacher, order, ctx.axis)
        value, metrics = infonce.relation(
            student, teacher, state["queue"], student_temperature, teacher_temperature
        )
        rows, pointer = rings.enqueue(state["queue"], state["pointer"], teacher, ctx.axis)
        return value, (
            {
                **stats,
                # The step moves the old one again, in its place: less to keep until then.
                "target": Partial(ema.update, state["target"], params, share),
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
        encoders=image_encoder.of_two(encoder, projector, view, probed),
        block=max(group, 1),
        block_is=f"--config.method.group={group}" if group else "",
        least_rows=1,
    )
