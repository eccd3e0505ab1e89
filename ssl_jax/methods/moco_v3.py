"""MoCo v3 (Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision
Transformers", algorithm 1; facebookresearch/moco-v3 moco/builder.py and main_moco.py).

    view 1 → encoder → projector → predictor = q1 ─┐         ┌─ q2 = …  ← view 2
                                                   ├ InfoNCE ┤   of q1 with k2 and of q2 with k1,
    view 1 → moving average of the first two = k1 ─┘         └─ k2 = …  ← view 2    in the batch

No queue: the negatives of a query are the keys of the other images of the batch.
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
from ssl_jax.methods.parts import ema, image_encoder
from ssl_jax.models import heads, network
from ssl_jax.optim import schedules


def make(config: ConfigDict, run: Run) -> Method:
    """MoCo v3.

    Args:
      config: `config.method` holds
          temperature: T;
          projector, predictor: fields of `heads.MLP`;
          momentum, momentum_final: m of the target goes from one to the other along half a cosine
            over the run;
          freeze_patch_embed: the patch projection of a ViT stays as it was drawn;
          encoder: 'online' (as the official code evaluates) or 'target';
          encoder_rows: images of which a view is drawn and goes through an encoder at a time on a
            device, 0 for all at once, see `network.forward_in_pieces`;
        `config.views.first` and `.second` the augmentations, `config.model` the encoder. For a ViT
        as MoCo v3's: positions 'sincos_mocov3', initial 'mocov3', pool 'token'.
      run: total_steps.

    Raises:
      UserError: an unknown `encoder`, or freeze_patch_embed without a patch embedding.
    """
    c = config.method
    if c.encoder not in ("online", "target"):
        near = near_misses(c.encoder, ("online", "target"))
        raise UserError(f"--config.method.encoder is {c.encoder!r}.{near}")
    frozen = {"freeze_patch": True} if c.freeze_patch_embed else {}
    if frozen and not config.model.name.startswith("vit"):
        raise UserError(f"--config.method.freeze_patch_embed: {config.model.name} has no patches")
    encoder = models.make({**config.model, **frozen})
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**c.projector, dtype=encoder.dtype)
    predictor = heads.MLP(**c.predictor, dtype=encoder.dtype)
    policies = tuple(augment.make("none", **config.views[v]) for v in ("first", "second"))
    momentum = schedules.cosine(c.momentum, c.momentum_final, run.total_steps)

    def embed(params, stats, views, v, axis):
        """Projections of the views v (0 or 1) of [b, 2, …], or of what they are drawn from."""
        if isinstance(views, augment.Undrawn):
            one = views._replace(keys=views.keys[:, v : v + 1])
        else:
            one = views[:, v : v + 1]

        def draw(x):
            return augment.draw(policies[v : v + 1], x, axis)[:, 0]  # [n, s, s, C]

        h, f = network.forward_in_pieces(
            encoder, params["encoder"], stats["encoder"], one, axis, c.encoder_rows, draw
        )
        z, g = network.forward(projector, params["projector"], stats["projector"], h, axis)
        return z, {"encoder": f, "projector": g}

    def views(key, batch, ctx):
        both = augment.undrawn(2, key, batch["image"], ctx.axis)
        # With `encoder_rows` the loss draws them, those of a piece at a time.
        return both if c.encoder_rows else augment.draw(policies, both, ctx.axis)  # [b, 2, s, s, C]

    def init(key, views):
        encoder_key, projector_key, predictor_key = jax.random.split(key, 3)
        f, h = network.create(encoder, encoder_key, augment.draw(policies, views, None)[:, 0])
        g, z = network.create(projector, projector_key, h)
        p, _ = network.create(predictor, predictor_key, z)
        params = {"encoder": f["params"], "projector": g["params"]}
        stats = {"encoder": f["batch_stats"], "projector": g["batch_stats"]}
        return {**params, "predictor": p["params"]}, {
            **stats,
            "predictor": p["batch_stats"],
            "target": jax.tree.map(jnp.copy, params),
            "target_stats": jax.tree.map(jnp.copy, stats),
        }

    def loss(params, state, views, ctx):
        # The target first, from the parameters that the queries are computed with. The
        # micro-batches of a step share one update.
        m = momentum(ctx.step) ** (1 / config.accumulate)
        averaged = {name: params[name] for name in ("encoder", "projector")}
        target = ema.update(state["target"], averaged, m)
        queries, keys = [], []
        stats, target_stats, p = state, state["target_stats"], state["predictor"]
        for v in (0, 1):  # separately: BatchNorm sees one view at a time
            z, stats = embed(params, stats, views, v, ctx.axis)
            q, p = network.forward(predictor, params["predictor"], p, z, ctx.axis)
            k, target_stats = embed(target, target_stats, views, v, ctx.axis)
            queries.append(q)
            keys.append(k)
        one, metrics = infonce.between_views(queries[0], keys[1], c.temperature, ctx.axis)
        two, others = infonce.between_views(queries[1], keys[0], c.temperature, ctx.axis)
        metrics = jax.tree.map(lambda a, b: (a + b) / 2, metrics, others)
        return one + two, (
            {
                **stats,
                "predictor": p,
                # The step moves the old one again, in its place: less to keep until then.
                "target": Partial(ema.update, state["target"], averaged, m),
                "target_stats": target_stats,
            },
            metrics | spread(keys[0], ctx.axis),
        )

    def labels(params):
        names = jax.tree.map(lambda _: "default", params)
        if c.freeze_patch_embed:
            patch = names["encoder"]["patch_embed"]
            names["encoder"]["patch_embed"] = jax.tree.map(lambda _: "frozen", patch)
        return names

    return Method(
        views=views,
        init=init,
        loss=loss,
        labels=labels,
        encoders=image_encoder.of_two(encoder, projector, view, c.encoder),
    )
