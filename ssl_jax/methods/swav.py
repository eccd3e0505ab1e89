"""SwAV (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", algorithm 1 of the appendix; facebookresearch/swav main_swav.py, src/resnet50.py).

    2 global and some small local crops → encoder → projector → unit length → prototypes → scores
    scores of a global crop → Sinkhorn–Knopp over the batch (and a queue) → its assignment,
    which all other crops of the image predict
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses import clustering
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder, multi_crop, values
from ssl_jax.methods.parts.prototypes import behind
from ssl_jax.models import heads, network

PROJECTOR = {"widths": (2048, 128), "norms": ("affine", "none"), "biases": (True, True)}
FIELDS = (
    Field("temperature", 0.1, "of the predictions"),
    Field("prototypes", 3_000, "how many"),
    Field("epsilon", 0.05, "of Sinkhorn–Knopp; 0.03 where training is unstable (README)"),
    Field("iterations", 3, "of Sinkhorn–Knopp"),
    Field("sinkhorn", True, "False: a softmax, which balances nothing (ablation)"),
    Field("queue", 0, "embeddings of each global crop beside the batch; 0: none"),
    Field("queue_epoch", 15, "epoch from which the queue fills"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("local_crops", 6, "local crops of an image, by views.local"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`swav` of a config: `config.method` has FIELDS.

    `config.views.both` is the augmentation of the two global crops, `config.views.local` that of
    the local ones, if there are any.
    """
    m, encoder = config.method, models.make(config.model)
    return swav(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        augment.make("none", **config.views.both),
        multi_crop.local(config.views),
        augment.fixed(config.evaluate),
        batch=run.batch,
        temperature=m.temperature,
        prototypes=m.prototypes,
        epsilon=m.epsilon,
        iterations=m.iterations,
        sinkhorn=m.sinkhorn,
        queue=m.queue,
        queue_epoch=m.queue_epoch,
        local_crops=m.local_crops,
    )


def swav(
    encoder: nn.Module,
    projector: nn.Module,
    both: augment.Policy,
    local: augment.Policy | None,
    view: augment.Fixed,
    *,
    batch: int,
    temperature: float = 0.1,
    prototypes: int = 3_000,
    epsilon: float = 0.05,
    iterations: int = 3,
    sinkhorn: bool = True,
    queue: int = 0,
    queue_epoch: int = 15,
    local_crops: int = 6,
) -> Method:
    """SwAV.

    The official code sets the prototypes to unit length before every forward pass, outside the
    gradient, so that the optimizer moves unit vectors. Here they are set so at the start and after
    every step of the optimizer, which is the same. To freeze them for a while give their optimizer
    group a rest: `config.optimizer.groups.prototypes.freeze_epochs`.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      both: the augmentation of the two global crops.
      local: that of the local ones; None where there are none.
      view: the fixed view of probing.
      batch: rows of a step over all devices.
      temperature: of the predictions.
      prototypes: how many.
      epsilon, iterations: of Sinkhorn–Knopp.
      sinkhorn: False replaces it by the softmax of the scores / epsilon, which nothing keeps from
        giving all images one prototype (ablation).
      queue: embeddings of each global crop that Sinkhorn–Knopp sees beside the batch, rounded down
        to whole batches; 0: none.
      queue_epoch: epoch from which the queue fills; it is used once it is full.
      local_crops: how many.

    Raises:
      UserError: a value that cannot be.
    """
    values.positive(temperature=temperature, epsilon=epsilon)
    values.count(1, prototypes=prototypes)
    values.count(0, iterations=iterations, queue=queue, queue_epoch=queue_epoch)
    crops = multi_crop.policies((both, both), local, local_crops)
    module = heads.Prototypes(prototypes)
    length = queue - queue % batch
    if queue and not length:
        raise UserError(
            f"--config.method.queue is {queue}, less than a batch of {batch}; set it to 0 or to a "
            f"multiple of {batch}"
        )

    def views(key, batch, ctx):
        return multi_crop.draw(crops, key, batch["image"], ctx)

    def init(key, views):
        keys = jax.random.split(key, 3)
        f, h = network.create(encoder, keys[0], views["global"][:, 0])
        g, z = network.create(projector, keys[1], h)
        c = module.init(keys[2], z)
        params = {"encoder": f["params"], "projector": g["params"], "prototypes": c["params"]}
        state = {"encoder": f["batch_stats"], "projector": g["batch_stats"]}
        if length:
            state["queue"] = jnp.zeros((2, length, z.shape[1]))  # newest first
        return normalized(params), state

    def assign(z, kernel, queue, ctx):
        """Assignments [b, 2, K] of the global crops [b, 2, d], and what becomes of the queue."""
        b = len(z)
        z = jnp.swapaxes(
            collectives.gather(z, ctx.axis), 0, 1
        )  # [2, B, d], the rows of all devices
        B = z.shape[1]

        def balance(z):  # [2, n, d] -> [2, B, K]
            scores = clustering.scores(z, kernel)
            return clustering.sinkhorn(scores, epsilon, iterations if sinkhorn else 0)[:, -B:]

        if length:
            q = lax.cond(
                jnp.any(queue[:, -1] != 0),  # it is full
                lambda: balance(jnp.concatenate([queue, z], axis=1)),
                lambda: balance(z),
            )
            queue = Partial(push, queue, z, ctx.epoch >= queue_epoch)
        else:
            q = balance(z)
        mine = lax.dynamic_slice_in_dim(q, collectives.rank(ctx.axis) * b, b, axis=1)
        return jnp.swapaxes(mine, 0, 1), queue

    def loss(params, state, views, ctx):
        z, stats = multi_crop.embed(encoder, projector, params, state, views, ctx.axis)
        kernel = params["prototypes"]["kernel"]
        scores = clustering.scores(z, kernel)  # [b, V, K]
        fixed = lax.stop_gradient((z[:, :2], kernel))
        q, queue = assign(*fixed, state.get("queue"), ctx)
        value = clustering.swapped_cross_entropy(scores, q, temperature)
        if length:
            stats["queue"] = queue
        found = metrics(lax.stop_gradient(scores), q, ctx.axis) | spread(z, ctx.axis)
        return value, (stats, found)

    def metrics(scores, q, axis):
        p = jax.nn.softmax(scores / temperature, axis=-1)
        use = collectives.pmean(p.mean((0, 1)), axis)  # [K], over all crops of all devices
        best = jnp.argmax(q, axis=-1)  # [b, 2]
        return {
            # Do the two global crops of an image get the same prototype?
            "agreement": jnp.mean(best[:, 0] == best[:, 1]),
            # Perplexity of the mean prediction, a share of K: 1 / K if all predict one prototype.
            "prototypes_used": jnp.exp(jax.scipy.special.entr(use).sum()) / len(use),
        }

    return Method(
        views=views,
        init=init,
        loss=loss,
        after_step=lambda params, state, ctx: (normalized(params), state),
        labels=lambda params: {
            **jax.tree.map(lambda _: "default", params),
            "prototypes": {"kernel": "prototypes"},
        },
        encoders=image_encoder.of_one(encoder, projector, view),
        prototypes=behind(
            projector,
            image_encoder.online("projector"),
            lambda params, state: [params["prototypes"]["kernel"]],
        ),
        least_rows=1,
    )


def push(queue: jax.Array, z: jax.Array, fills: jax.Array) -> jax.Array:
    """The queue [2, Q, d] after the rows z [2, B, d] went in and the oldest out, where `fills`.

    A whole batch after the other moves to where the one before it was, the oldest first, so that
    XLA needs no second queue.
    """
    B = z.shape[1]

    def move(i, queue):
        begin = queue.shape[1] - (i + 1) * B
        rows = lax.dynamic_slice_in_dim(queue, begin - B, B, axis=1)
        return lax.dynamic_update_slice_in_dim(queue, rows, begin, axis=1)

    def shift(queue):
        queue = lax.fori_loop(0, queue.shape[1] // B - 1, move, queue)
        return lax.dynamic_update_slice_in_dim(queue, z, 0, axis=1)

    return lax.cond(fills, shift, lambda queue: queue, queue)


def normalized(params: dict) -> dict:
    """The parameters with prototypes of unit length."""
    return {**params, "prototypes": {"kernel": heads.unit(params["prototypes"]["kernel"], 0)}}
