"""DeepCluster-v2 (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting
Cluster Assignments", appendix D; facebookresearch/swav main_deepclusterv2.py).

    2 global and some small local crops → encoder → projector → unit length → memory (global crops)
    once an epoch: memory → spherical k-means for every head → centroids and labels
    every crop → cosines with the centroids → cross entropy with the label of its image
"""

from collections.abc import Sequence

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
    Field("prototypes", (3_000, 3_000, 3_000), "clusters of every head"),
    Field("iterations", 10, "of k-means"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("local_crops", 6, "local crops of an image, by views.local"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`deepcluster_v2` of a config: `config.method` has FIELDS.

    `config.views.both` is the augmentation of the two global crops, `config.views.local` that of
    the local ones, if there are any.
    """
    m, encoder = config.method, models.make(config.model)
    return deepcluster_v2(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        augment.make("none", **config.views.both),
        multi_crop.local(config.views),
        augment.fixed(config.evaluate),
        examples=run.examples,
        batch=run.batch,
        steps_per_epoch=run.steps_per_epoch,
        temperature=m.temperature,
        prototypes=m.prototypes,
        iterations=m.iterations,
        local_crops=m.local_crops,
    )


def deepcluster_v2(
    encoder: nn.Module,
    projector: nn.Module,
    both: augment.Policy,
    local: augment.Policy | None,
    view: augment.Fixed,
    *,
    examples: int,
    batch: int,
    steps_per_epoch: int,
    temperature: float = 0.1,
    prototypes: Sequence[int] = (3_000, 3_000, 3_000),
    iterations: int = 10,
    local_crops: int = 6,
) -> Method:
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
      encoder: of images, see `models.make`.
      projector: on its features.
      both: the augmentation of the two global crops.
      local: that of the local ones; None where there are none.
      view: the fixed view of probing.
      examples: training images n, rows of the memory.
      batch: rows of a step over all devices.
      steps_per_epoch: after which the memory is clustered.
      temperature: of the predictions.
      prototypes: clusters of every head; head h clusters the memory of global crop h mod 2.
      iterations: of k-means.
      local_crops: how many.

    Raises:
      UserError: a value that cannot be, or an epoch has fewer examples than a head has clusters.
    """
    values.positive(temperature=temperature)
    values.count(1, iterations=iterations)
    values.counts(1, prototypes=prototypes)
    crops = multi_crop.policies((both, both), local, local_crops)
    if max(prototypes) > steps_per_epoch * batch:
        raise UserError(
            f"--config.method.prototypes has {max(prototypes)}, more than the "
            f"{steps_per_epoch * batch} examples of an epoch"
        )

    def views(key, batch, ctx):
        drawn = multi_crop.draw(crops, key, batch["image"], ctx)
        return {**drawn, "index": batch["index"]}

    def init(key, views):
        keys = jax.random.split(key, 2)
        f, h = network.create(encoder, keys[0], views["global"][:, 0])
        g, z = network.create(projector, keys[1], h)
        params = {"encoder": f["params"], "projector": g["params"]}
        return params, {
            "encoder": f["batch_stats"],
            "projector": g["batch_stats"],
            "bank": [jnp.zeros((examples, z.shape[1])) for _ in range(2)],  # of each crop
            "seen": jnp.full(examples, -1),  # the epoch that wrote the example's embeddings
            "labels": jnp.full((len(prototypes), examples), clustering.UNLABELLED, jnp.int32),
            "prototypes": [jnp.zeros((z.shape[1], k)) for k in prototypes],
            "clustered": jnp.zeros((), jnp.int32),  # the epoch that the labels are for
        }

    def loss(params, state, views, ctx):
        z, stats = multi_crop.embed(encoder, projector, params, state, views, ctx.axis)
        index = views["index"]
        terms = [
            clustering.pseudo_label_cross_entropy(
                clustering.scores(z, kernel), labels[index], temperature, ctx.axis
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
        epoch = (ctx.step + 1) // steps_per_epoch  # of the next step

        def cluster():
            member = state["seen"] >= epoch - 1
            found, labels = [], []
            for h, size in enumerate(prototypes):
                bank = state["bank"][h % 2]
                key = ctx.stream(f"clustering {h}")
                first = clustering.draw_members(key, member, size)
                kernel, own = clustering.spherical_kmeans(bank, member, bank[first].T, iterations)
                found.append(kernel)
                labels.append(own)
            return {"prototypes": found, "labels": jnp.stack(labels), "clustered": epoch}

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
        least_rows=1,
    )
