"""SeLa-v2 (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", appendix D, after Asano et al. 2020, "Self-labelling via simultaneous clustering and
representation learning"; yukimasano/self-label sinkhornknopp.py).

    2 global and some small local crops → encoder → projector → unit length → memory (global crops)
    once an epoch: memory, prototypes → Sinkhorn–Knopp for every head → balanced labels
    every crop → cosines with the prototypes → cross entropy with the label of its image
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
from ssl_jax.losses import clustering
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder, multi_crop, values
from ssl_jax.methods.parts.prototypes import behind
from ssl_jax.models import heads, network

PROJECTOR = {"widths": (2048, 128), "norms": ("affine", "none"), "biases": (True, True)}
FIELDS = (
    Field("temperature", 0.1, "of the predictions"),
    Field("prototypes", (3_000, 3_000, 3_000), "of every head"),
    Field("sharpness", 25.0, "λ of the transport"),
    Field("tolerance", 0.1, "at which the transport ends"),
    Field("iterations", 100, "passes over the memory after which it ends at the latest"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("local_crops", 4, "local crops of an image, by views.local"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`sela_v2` of a config: `config.method` has FIELDS.

    `config.views.both` is the augmentation of the two global crops, `config.views.local` that of
    the local ones, if there are any.
    """
    m, encoder = config.method, models.make(config.model)
    return sela_v2(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        augment.make("none", **config.views.both),
        multi_crop.local(config.views),
        augment.fixed(config.evaluate),
        examples=run.examples,
        steps_per_epoch=run.steps_per_epoch,
        temperature=m.temperature,
        prototypes=m.prototypes,
        sharpness=m.sharpness,
        tolerance=m.tolerance,
        iterations=m.iterations,
        local_crops=m.local_crops,
    )


def sela_v2(
    encoder: nn.Module,
    projector: nn.Module,
    both: augment.Policy,
    local: augment.Policy | None,
    view: augment.Fixed,
    *,
    examples: int,
    steps_per_epoch: int,
    temperature: float = 0.1,
    prototypes: Sequence[int] = (3_000, 3_000, 3_000),
    sharpness: float = 25.0,
    tolerance: float = 0.1,
    iterations: int = 100,
    local_crops: int = 4,
) -> Method:
    """SeLa-v2.

    Its authors published weights and no code. This is DeepCluster-v2 with what its author says is
    different (github.com/facebookresearch/swav/issues/59 and the appendix): Sinkhorn–Knopp gives
    the labels, and the prototypes are learned, "like in SwAV", so they have unit length after every
    step. Labels are hard, as in SeLa and DeepCluster-v2. Neither says how sharp the transport
    is or when it ends; that is SeLa's own here (λ = 25, tolerance 0.1), on the predictions at the
    loss's temperature, with a bound on the iterations. Labels are made from the embeddings that the
    epoch left in the memory and the prototypes at its end.

    The first epoch fills the memory, as in DeepCluster-v2: no labels, a loss of 0, and
    `config.optimizer.freeze_epochs` = 1 keeps weight decay from moving anything. (SeLa begins with
    random labels.) The first labels are those of prototypes as they were drawn.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      both: the augmentation of the two global crops.
      local: that of the local ones; None where there are none.
      view: the fixed view of probing.
      examples: training images n, rows of the memory.
      steps_per_epoch: after which labels are made.
      temperature: of the predictions.
      prototypes: how many in every head; head h labels the memory of global crop h mod 2.
      sharpness, tolerance, iterations: λ of the transport, when it ends, and at the latest.
      local_crops: how many.

    Raises:
      UserError: a value that cannot be.
    """
    values.positive(temperature=temperature, sharpness=sharpness, tolerance=tolerance)
    values.count(1, iterations=iterations)
    values.counts(1, prototypes=prototypes)
    crops = multi_crop.policies((both, both), local, local_crops)
    transport = {
        "temperature": temperature,
        "sharpness": sharpness,
        "iterations": iterations,
        "tolerance": tolerance,
    }

    def views(key, batch, ctx):
        drawn = multi_crop.draw(crops, key, batch["image"], ctx)
        return {**drawn, "index": batch["index"]}

    def init(key, views):
        keys = jax.random.split(key, 2 + len(prototypes))
        f, h = network.create(encoder, keys[0], views["global"][:, 0])
        g, z = network.create(projector, keys[1], h)
        params = {
            "encoder": f["params"],
            "projector": g["params"],
            "prototypes": {
                f"head{h}": heads.Prototypes(size).init(keys[2 + h], z)["params"]
                for h, size in enumerate(prototypes)
            },
        }
        return normalized(params), {
            "encoder": f["batch_stats"],
            "projector": g["batch_stats"],
            "bank": [jnp.zeros((examples, z.shape[1])) for _ in range(2)],  # of each crop
            "seen": jnp.full(examples, -1),  # the epoch that wrote the example's embeddings
            "labels": jnp.full((len(prototypes), examples), clustering.UNLABELLED, jnp.int32),
            "labelled": jnp.zeros((), jnp.int32),  # the epoch that the labels are for
        }

    def loss(params, state, views, ctx):
        z, stats = multi_crop.embed(encoder, projector, params, state, views, ctx.axis)
        index = views["index"]
        terms = [
            clustering.pseudo_label_cross_entropy(
                clustering.scores(z, kernel), labels[index], temperature, ctx.axis
            )
            for kernel, labels in zip(kernels(params), state["labels"], strict=True)
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
        params = normalized(params)
        epoch = (ctx.step + 1) // steps_per_epoch  # of the next step

        def label():
            member = state["seen"] >= epoch - 1
            labels = [
                clustering.balanced_labels(state["bank"][h % 2], member, kernel, **transport)[0]
                for h, kernel in enumerate(kernels(params))
            ]
            return {"labels": jnp.stack(labels), "labelled": epoch}

        def keep():
            return {k: state[k] for k in ("labels", "labelled")}

        # Not `epoch` against the step alone: a skipped step does not come here, the next one does.
        return params, {**state, **lax.cond(epoch > state["labelled"], label, keep)}

    return Method(
        views=views,
        init=init,
        loss=loss,
        after_step=after_step,
        labels=lambda params: {
            **jax.tree.map(lambda _: "default", params),
            "prototypes": jax.tree.map(lambda _: "prototypes", params["prototypes"]),
        },
        encoders=image_encoder.of_one(encoder, projector, view),
        prototypes=behind(
            projector, image_encoder.online("projector"), lambda params, state: kernels(params)
        ),
        least_rows=1,
    )


def normalized(params: dict) -> dict:
    """The parameters with prototypes of unit length."""
    return {
        **params,
        "prototypes": jax.tree.map(lambda kernel: heads.unit(kernel, 0), params["prototypes"]),
    }


def kernels(params: dict) -> list[jax.Array]:
    """Prototypes [d, K] of every head, in order."""
    return [params["prototypes"][f"head{h}"]["kernel"] for h in range(len(params["prototypes"]))]
