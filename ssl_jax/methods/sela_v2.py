"""SeLa-v2 (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments", appendix D, after Asano et al. 2020, "Self-labelling via simultaneous clustering and
representation learning"; yukimasano/self-label sinkhornknopp.py).

    2 global and some small local crops → encoder → projector → unit length → memory (global crops)
    once an epoch: memory, prototypes → Sinkhorn–Knopp for every head → balanced labels
    every crop → cosines with the prototypes → cross entropy with the label of its image
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
      config: `config.method` holds
          temperature: of the predictions;
          prototypes: how many in every head; head h labels the memory of global crop h mod 2;
          sharpness, tolerance, iterations: λ of the transport, when it ends, and at the latest;
          projector: fields of `heads.MLP`;
          local_crops: how many;
        `config.views.both` the augmentation of the two global crops, `config.views.local` that of
        the local ones if there are any, `config.model` the encoder.
      run: the examples, and when an epoch ends.

    Raises:
      UserError: there are local crops without a view for them.
    """
    m = config.method
    if m.local_crops and "local" not in config.views:
        raise UserError(f"method.local_crops is {m.local_crops}, but there is no views.local")
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**m.projector, dtype=encoder.dtype)
    big = (augment.make("none", **config.views.both),) * 2
    small = (augment.make("none", **config.views.local),) * m.local_crops if m.local_crops else ()
    transport = {k: m[k] for k in ("temperature", "sharpness", "iterations", "tolerance")}

    def views(key, batch, ctx):
        drawn = {"global": augment.crops(big, key, batch["image"], ctx.axis)}  # [b, 2, S, S, C]
        if small:
            key = jax.random.fold_in(key, 1)
            drawn["local"] = augment.crops(small, key, batch["image"], ctx.axis)  # [b, k, s, s, C]
        drawn["index"] = batch["index"]
        return drawn

    def init(key, views):
        keys = jax.random.split(key, 2 + len(m.prototypes))
        f, h = network.create(encoder, keys[0], views["global"][:, 0])
        g, z = network.create(projector, keys[1], h)
        params = {
            "encoder": f["params"],
            "projector": g["params"],
            "prototypes": {
                f"head{h}": heads.Prototypes(size).init(keys[2 + h], z)["params"]
                for h, size in enumerate(m.prototypes)
            },
        }
        return normalized(params), {
            "encoder": f["batch_stats"],
            "projector": g["batch_stats"],
            "bank": [jnp.zeros((run.examples, z.shape[1])) for _ in range(2)],  # of each crop
            "seen": jnp.full(run.examples, -1),  # the epoch that wrote the example's embeddings
            "labels": jnp.full((len(m.prototypes), run.examples), clustering.UNLABELLED, jnp.int32),
            "labelled": jnp.zeros((), jnp.int32),  # the epoch that the labels are for
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
        epoch = (ctx.step + 1) // run.steps_per_epoch  # of the next step

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
