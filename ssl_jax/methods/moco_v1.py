"""MoCo v1 (He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning",
algorithm 1; facebookresearch/moco moco/builder.py and main_moco.py).

    one view → encoder → linear projector = query ─┐
                                                   ├→ InfoNCE: query · key against query · queue
    other view → moving average of both = key ─────┘  then the keys of all devices enter the queue

BatchNorm is local, and shuffled for the keys (`parts/shuffle.py`): the statistics of a query's
group would otherwise say which key is its own.
"""

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
from ssl_jax.methods.parts import queue as ring
from ssl_jax.methods.parts import shuffle as shuffling
from ssl_jax.models import heads, network

PROJECTOR = {"widths": (128,), "norms": ("none",), "biases": (True,), "initial": "torch"}
FIELDS = (
    Field("temperature", 0.07, "T"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("queue", 65536, "negatives K, a multiple of the batch"),
    Field("momentum", 0.999, "m of the key encoder at step 0 …"),
    Field("momentum_final", 0.999, "… and at the end, along half a cosine"),
    Field("group", 32, "rows that share BatchNorm statistics; 0: all"),
    Field("shuffle", 8, "groups that the keys change places between; 1: they stay"),
    Field("decoupled", False, "DCL: no positive in the denominator"),
    Field("weighted", False, "DCLW, which needs decoupled"),
    Field("sigma", 0.5, "σ of its weights"),
    Field("encoder", "online", "online | target: the one that is probed"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`moco_v1` of a config: `config.method` has FIELDS, `config.views.both` is the policy."""
    m, encoder = config.method, models.make(config.model)
    return moco_v1(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        augment.make("none", **config.views.both),
        augment.fixed(config.evaluate),
        total_steps=run.total_steps,
        batch=run.batch,
        accumulate=config.accumulate,
        temperature=m.temperature,
        queue=m.queue,
        momentum=m.momentum,
        momentum_final=m.momentum_final,
        group=m.group,
        shuffle=m.shuffle,
        decoupled=m.decoupled,
        weighted=m.weighted,
        sigma=m.sigma,
        probed=m.encoder,
    )


def moco_v1(
    encoder: nn.Module,
    projector: heads.MLP,
    policy: augment.Policy,
    view: augment.Fixed,
    *,
    total_steps: int,
    batch: int,
    accumulate: int = 1,
    temperature: float = 0.07,
    queue: int = 65536,
    momentum: float = 0.999,
    momentum_final: float = 0.999,
    group: int = 32,
    shuffle: int = 8,
    decoupled: bool = False,
    weighted: bool = False,
    sigma: float = 0.5,
    probed: str = "online",
) -> Method:
    """MoCo with a queue; v1 and v2 differ in nothing but the values.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      policy: the augmentation of both views.
      view: the fixed view of probing.
      total_steps: optimizer steps of the run, for the momentum.
      batch: rows of one optimizer step over all devices.
      accumulate: micro-batches that a step is computed in; they share one update of the target.
      temperature: T.
      queue: negatives K, a multiple of the rows of a micro-batch.
      momentum, momentum_final: m of the key encoder goes from one to the other along half a cosine
        (the official code: 0.999 throughout).
      group: rows that share their BatchNorm statistics in both networks, whatever the device count;
        0: all of the batch, and nothing is shuffled.
      shuffle: groups that the keys change places between; a batch holds whole sets of them. 1 is
        the ablation without shuffling.
      decoupled, weighted, sigma: the losses of DCL and DCLW, see `infonce.against_queue`.
      probed: 'online' (the query encoder, as the official code evaluates) or 'target'.

    Raises:
      UserError: a number or a name that cannot be, a queue that batches do not fill, weighted
        without decoupled, or groups in an encoder without BatchNorm.
    """
    values.positive(temperature=temperature, sigma=sigma)
    values.share(momentum=momentum, momentum_final=momentum_final)
    values.count(0, group=group)
    values.count(1, shuffle=shuffle, queue=queue)
    values.known(("online", "target"), encoder=probed)
    if weighted and not decoupled:
        raise UserError("--config.method.weighted needs --config.method.decoupled")
    ring.check(queue, batch // accumulate)
    if group:
        if not hasattr(encoder, "group"):
            raise UserError(
                f"--config.method.group is {group}; {type(encoder).__name__} has no BatchNorm to "
                "split, set it to 0"
            )
        encoder, projector = encoder.clone(group=group), projector.clone(group=group)
    rate = ema.rate(momentum, momentum_final, total_steps)
    block = max(group * shuffle, 1)
    shuffling.check(group, shuffle, batch, accumulate)

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
            "queue": ring.create(queue_key, queue, z.shape[-1]),
            "pointer": jnp.zeros((), jnp.int32),
        }

    def loss(params, state, views, ctx):
        q, stats = embed(params, state, views[:, 0], ctx.axis)
        # The key encoder first, from the parameters that the queries were computed with. The
        # micro-batches of a step share one update.
        share = ema.of_micro_batch(rate(ctx), accumulate)
        target = ema.update(state["target"], params, share)
        order = shuffling.draw(ctx.stream("shuffle"), len(views), block, ctx.axis)
        k, target_stats = embed(
            target, state["target_stats"], shuffling.shuffle(views[:, 1], order, ctx.axis), ctx.axis
        )
        k = shuffling.unshuffle(k, order, ctx.axis)
        value, metrics = infonce.against_queue(
            q, k, state["queue"], temperature, ctx.axis, decoupled, sigma if weighted else None
        )
        negatives, pointer = ring.enqueue(state["queue"], state["pointer"], k, ctx.axis)
        return value, (
            {
                **stats,
                # The step moves the old one again, in its place: less to keep until then.
                "target": Partial(ema.update, state["target"], params, share),
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
        encoders=image_encoder.of_two(encoder, projector, view, probed),
        block=max(group, 1),
        block_is=f"--config.method.group={group}" if group else "",
        least_rows=1,
    )
