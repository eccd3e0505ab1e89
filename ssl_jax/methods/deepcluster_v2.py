"""DeepCluster-v2 (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments", appendix D; facebookresearch/swav main_deepclusterv2.py).

    2 global and some small local crops → encoder → projector → unit length → memory (global crops)
    once an epoch: memory → spherical k-means for every head → centroids and labels
    every crop → cosines with the centroids → cross entropy with the label of its image
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
    """DeepCluster-v2.

    The memory holds the embeddings of the global crops as the last epoch left them, at the index of
    their example. The official code fills it by one pass over the data before the first epoch, with
    the network as it is and BatchNorm in training mode. Here the first epoch is that pass: there
    are no labels yet, the loss is 0, and `config.optimizer.freeze_epochs` = 1 keeps weight decay
    from moving anything. From then on the memory is clustered at the end of every epoch, which is
    when the official code does it, at the start of the next. Examples that an epoch left out (the
    incomplete batch) have no label in the next.

    The centroids are no parameters: nothing but k-means sets them. They are `state["prototypes"]`.

    Args:
      config: `config.method` holds
          temperature: of the predictions;
          prototypes: clusters of every head; head h clusters the memory of global crop h mod 2;
          iterations: of k-means;
          projector: fields of `heads.MLP`;
          local_crops: how many;
        `config.views.both` the augmentation of the two global crops, `config.views.local` that of
        the local ones if there are any, `config.model` the encoder.
      run: the examples, and when an epoch ends.

    Raises:
      UserError: an epoch has fewer examples than a head has clusters, or there are local crops
        without a view for them.
    """
    m = config.method
    if m.local_crops and "local" not in config.views:
        raise UserError(f"method.local_crops is {m.local_crops}, but there is no views.local")
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**m.projector, dtype=encoder.dtype)
    big = (augment.make("none", **config.views.both),) * 2
    small = (augment.make("none", **config.views.local),) * m.local_crops if m.local_crops else ()
    if max(m.prototypes) > run.steps_per_epoch * run.batch:
        raise UserError(
            f"method.prototypes has {max(m.prototypes)}, more than the "
            f"{run.steps_per_epoch * run.batch} examples of an epoch"
        )

    def views(key, batch, ctx):
        drawn = {"global": augment.crops(big, key, batch["image"], ctx.axis)}  # [b, 2, S, S, C]
        if small:
            key = jax.random.fold_in(key, 1)
            drawn["local"] = augment.crops(small, key, batch["image"], ctx.axis)  # [b, k, s, s, C]
        drawn["index"] = batch["index"]
        return drawn

    def init(key, views):
        keys = jax.random.split(key, 2)
        f, h = network.create(encoder, keys[0], views["global"][:, 0])
        g, z = network.create(projector, keys[1], h)
        params = {"encoder": f["params"], "projector": g["params"]}
        return params, {
            "encoder": f["batch_stats"],
            "projector": g["batch_stats"],
            "bank": [jnp.zeros((run.examples, z.shape[1])) for _ in range(2)],  # of each crop
            "seen": jnp.full(run.examples, -1),  # the epoch that wrote the example's embeddings
            "labels": jnp.full((len(m.prototypes), run.examples), clustering.UNLABELLED, jnp.int32),
            "prototypes": [jnp.zeros((z.shape[1], k)) for k in m.prototypes],
            "clustered": jnp.zeros((), jnp.int32),  # the epoch that the labels are for
        }

    def embed(params, state, views, axis):
        """Unit embeddings of all crops [b, V, d], and the statistics after them."""
        crops = [views[name] for name in ("global", "local") if name in views]
        h, f = network.forward_crops(encoder, params["encoder"], state["encoder"], crops, axis)
        z = h.reshape(-1, h.shape[-1])  # [b, V, features] -> [b·V, features]
        z, g = network.forward(projector, params["projector"], state["projector"], z, axis)
        return heads.unit(z).reshape(*h.shape[:2], -1), {"encoder": f, "projector": g}

    def loss(params, state, views, ctx):
        z, stats = embed(params, state, views, ctx.axis)
        index = views["index"]
        terms = [
            clustering.pseudo_label_cross_entropy(
                clustering.scores(z, kernel), labels[index], m.temperature, ctx.axis
            )
            for kernel, labels in zip(state["prototypes"], state["labels"], strict=True)
        ]
        value, metrics = jax.tree.map(lambda *x: sum(x) / len(x), *terms)
        rows, index = collectives.gather((lax.stop_gradient(z[:, :2]), index), ctx.axis)
        # To be written by the step.
        memory = {
            "bank": [
                Partial(clustering.store, bank, index, rows[:, i])
                for i, bank in enumerate(state["bank"])
            ],
            "seen": Partial(
                clustering.store, state["seen"], index, jnp.full(len(index), ctx.epoch)
            ),
        }
        metrics |= spread(z, ctx.axis)
        return value, ({**state, **stats, **memory}, metrics)

    def after_step(params, state, ctx):
        epoch = (ctx.step + 1) // run.steps_per_epoch  # of the next step

        def cluster():
            member = state["seen"] >= epoch - 1
            prototypes, labels = [], []
            for h, size in enumerate(m.prototypes):
                bank = state["bank"][h % 2]
                key = jax.random.fold_in(ctx.key, run.batch + h)  # which no micro-batch has
                first = clustering.draw_members(key, member, size)
                kernel, own = clustering.spherical_kmeans(bank, member, bank[first].T, m.iterations)
                prototypes.append(kernel)
                labels.append(own)
            return {"prototypes": prototypes, "labels": jnp.stack(labels), "clustered": epoch}

        def keep():
            return {k: state[k] for k in ("prototypes", "labels", "clustered")}

        # Not `epoch` against the step alone: a skipped step does not come here, the next one does.
        return params, {**state, **lax.cond(epoch > state["clustered"], cluster, keep)}

    return Method(
        views=views,
        init=init,
        loss=loss,
        after_step=after_step,
        encoders=image_encoder.of_one(encoder, projector, view),
        prototypes=behind(
            projector, image_encoder.online("projector"), lambda params, state: state["prototypes"]
        ),
    )
