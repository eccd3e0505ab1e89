"""SwAV (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", algorithm 1 of the appendix; facebookresearch/swav main_swav.py, src/resnet50.py).

    2 global and some small local crops → encoder → projector → unit length → prototypes → scores
    scores of a global crop → Sinkhorn–Knopp over the batch (and a queue) → its assignment,
    which all other crops of the image predict
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError
from ssl_jax.losses import clustering
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder
from ssl_jax.methods.parts.prototypes import behind
from ssl_jax.models import heads, network


def make(config: ConfigDict, run: Run) -> Method:
    """SwAV.

    The official code sets the prototypes to unit length before every forward pass, outside the
    gradient, so that the optimizer moves unit vectors. Here they are set so at the start and after
    every step of the optimizer, which is the same. To freeze them for a while give their optimizer
    group a rest: `config.optimizer.groups.prototypes.freeze_epochs`.

    Args:
      config: `config.method` holds
          temperature: of the predictions;
          prototypes: how many;
          epsilon, iterations: of Sinkhorn–Knopp;
          sinkhorn: False replaces it by the softmax of the scores / epsilon, which nothing keeps
            from giving all images one prototype (ablation);
          queue: embeddings of each global crop that Sinkhorn–Knopp sees beside the batch, rounded
            down to whole batches; 0: none;
          queue_epoch: epoch from which the queue fills; it is used once it is full;
          projector: fields of `heads.MLP`;
          local_crops: how many;
        `config.views.both` the augmentation of the two global crops, `config.views.local` that of
        the local ones if there are any, `config.model` the encoder.
      run: the batch.

    Raises:
      UserError: the queue is shorter than a batch, or there are local crops without a view for
        them.
    """
    m = config.method
    if m.local_crops and "local" not in config.views:
        raise UserError(f"method.local_crops is {m.local_crops}, but there is no views.local")
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**m.projector, dtype=encoder.dtype)
    prototypes = heads.Prototypes(m.prototypes)
    big = (augment.make("none", **config.views.both),) * 2
    small = (augment.make("none", **config.views.local),) * m.local_crops if m.local_crops else ()
    iterations = m.iterations if m.sinkhorn else 0
    length = m.queue - m.queue % run.batch
    if m.queue and not length:
        raise UserError(
            f"method.queue is {m.queue}, less than a batch of {run.batch}; set it to 0 or to a "
            f"multiple of {run.batch}"
        )

    def views(key, batch, ctx):
        drawn = {"global": augment.crops(big, key, batch["image"], ctx.axis)}  # [b, 2, S, S, C]
        if small:
            key = jax.random.fold_in(key, 1)
            drawn["local"] = augment.crops(small, key, batch["image"], ctx.axis)  # [b, k, s, s, C]
        return drawn

    def init(key, views):
        keys = jax.random.split(key, 3)
        f, h = network.create(encoder, keys[0], views["global"][:, 0])
        g, z = network.create(projector, keys[1], h)
        c = prototypes.init(keys[2], z)
        params = {"encoder": f["params"], "projector": g["params"], "prototypes": c["params"]}
        state = {"encoder": f["batch_stats"], "projector": g["batch_stats"]}
        if length:
            state["queue"] = jnp.zeros((2, length, z.shape[1]))  # newest first
        return normalized(params), state

    def embed(params, state, views, axis):
        """Unit embeddings of all crops [b, V, d], and the statistics after them."""
        crops = [views[name] for name in ("global", "local") if name in views]
        h, f = network.forward_crops(encoder, params["encoder"], state["encoder"], crops, axis)
        z = h.reshape(-1, h.shape[-1])  # [b, V, features] -> [b·V, features]
        z, g = network.forward(projector, params["projector"], state["projector"], z, axis)
        return heads.unit(z).reshape(*h.shape[:2], -1), {"encoder": f, "projector": g}

    def assign(z, kernel, queue, ctx):
        """Assignments [b, 2, K] of the global crops [b, 2, d], and what becomes of the queue."""
        b = len(z)
        z = jnp.swapaxes(
            collectives.gather(z, ctx.axis), 0, 1
        )  # [2, B, d], the rows of all devices
        B = z.shape[1]

        def balance(z):  # [2, n, d] -> [2, B, K]
            scores = clustering.scores(z, kernel)
            return clustering.sinkhorn(scores, m.epsilon, iterations)[:, -B:]

        if length:
            q = lax.cond(
                jnp.any(queue[:, -1] != 0),  # it is full
                lambda: balance(jnp.concatenate([queue, z], axis=1)),
                lambda: balance(z),
            )
            queue = Partial(push, queue, z, ctx.epoch >= m.queue_epoch)
        else:
            q = balance(z)
        mine = lax.dynamic_slice_in_dim(q, collectives.rank(ctx.axis) * b, b, axis=1)
        return jnp.swapaxes(mine, 0, 1), queue

    def loss(params, state, views, ctx):
        z, stats = embed(params, state, views, ctx.axis)
        kernel = params["prototypes"]["kernel"]
        scores = clustering.scores(z, kernel)  # [b, V, K]
        fixed = lax.stop_gradient((z[:, :2], kernel))
        q, queue = assign(*fixed, state.get("queue"), ctx)
        value = clustering.swapped_cross_entropy(scores, q, m.temperature)
        if length:
            stats["queue"] = queue
        found = metrics(lax.stop_gradient(scores), q, ctx.axis) | spread(z, ctx.axis)
        return value, (stats, found)

    def metrics(scores, q, axis):
        p = jax.nn.softmax(scores / m.temperature, axis=-1)
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
