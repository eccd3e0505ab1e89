"""MoCo v3 (Chen, Xie and He 2021, "An Empirical Study of Training Self-Supervised Vision
Transformers", algorithm 1; facebookresearch/moco-v3 moco/builder.py and main_moco.py).

    view 1 → encoder → projector → predictor = q1 ─┐         ┌─ q2 = …  ← view 2
                                                   ├ InfoNCE ┤   of q1 with k2 and of q2 with k1,
    view 1 → moving average of the first two = k1 ─┘         └─ k2 = …  ← view 2    in the batch

No queue: the negatives of a query are the keys of the other images of the batch.
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
from ssl_jax.models import heads, network

PROJECTOR = {
    "widths": (4096, 256),
    "norms": ("affine", "plain"),
    "biases": (False, False),
    "initial": "torch",
}
FIELDS = (
    Field("temperature", 1.0, "T"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("predictor", {**PROJECTOR, "norms": ("affine", "none")}, "fields of heads.MLP"),
    Field("momentum", 0.99, "m of the target at step 0 …"),
    Field("momentum_final", 1.0, "… and at the end, along half a cosine"),
    Field("freeze_patch_embed", False, "the patch projection of a ViT stays as it was drawn"),
    Field("encoder", "online", "online | target: the one that is probed"),
    Field("encoder_rows", 0, "images that an encoder handles at a time on a device; 0: all"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`moco_v3` of a config: `config.method` has FIELDS, `config.views` the augmentations `first`
    and `second`.

    For a ViT as MoCo v3's: positions 'sincos_mocov3', initial 'mocov3', pool 'token'.
    """
    m, encoder = config.method, models.make(config.model)
    return moco_v3(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        heads.make(m.predictor, "--config.method.predictor", dtype=encoder.dtype),
        tuple(augment.make("none", **config.views[name]) for name in ("first", "second")),
        augment.fixed(config.evaluate),
        total_steps=run.total_steps,
        accumulate=config.accumulate,
        temperature=m.temperature,
        momentum=m.momentum,
        momentum_final=m.momentum_final,
        freeze_patch_embed=m.freeze_patch_embed,
        probed=m.encoder,
        encoder_rows=m.encoder_rows,
    )


def moco_v3(
    encoder: nn.Module,
    projector: heads.MLP,
    predictor: heads.MLP,
    policies: tuple[augment.Policy, augment.Policy],
    view: augment.Fixed,
    *,
    total_steps: int,
    accumulate: int = 1,
    temperature: float = 1.0,
    momentum: float = 0.99,
    momentum_final: float = 1.0,
    freeze_patch_embed: bool = False,
    probed: str = "online",
    encoder_rows: int = 0,
) -> Method:
    """MoCo v3.

    Optimizer groups: 'frozen', the patch projection where it stays as it was drawn.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      predictor: on the projections, as wide at its end.
      policies: the augmentations of the two views.
      view: the fixed view of probing.
      total_steps: optimizer steps of the run, for the momentum.
      accumulate: micro-batches that a step is computed in; they share one update of the target.
      temperature: T.
      momentum, momentum_final: m of the target goes from one to the other along half a cosine over
        the run.
      freeze_patch_embed: the patch projection of a ViT stays as it was drawn.
      probed: 'online' (as the official code evaluates) or 'target'.
      encoder_rows: images of which a view is drawn and goes through an encoder at a time on a
        device, 0 for all at once, see `network.forward_in_pieces`.

    Raises:
      UserError: a number or a name that cannot be, heads that do not end at one width, or
        freeze_patch_embed without a patch embedding.
    """
    values.positive(temperature=temperature)
    values.share(momentum=momentum, momentum_final=momentum_final)
    values.known(("online", "target"), encoder=probed)
    values.count(0, encoder_rows=encoder_rows)
    heads.check_ends(predictor, projector)
    if freeze_patch_embed:
        if not hasattr(encoder, "freeze_patch"):
            raise UserError(
                f"--config.method.freeze_patch_embed: {type(encoder).__name__} has no patches"
            )
        encoder = encoder.clone(freeze_patch=True)
    rate = ema.rate(momentum, momentum_final, total_steps)

    def embed(params, stats, views, v, axis):
        """Projections of the views v (0 or 1) of [b, 2, …], or of what they are drawn from."""
        if isinstance(views, augment.Undrawn):
            one = views._replace(keys=views.keys[:, v : v + 1])
        else:
            one = views[:, v : v + 1]

        def draw(x):
            return augment.draw(policies[v : v + 1], x, axis)[:, 0]  # [n, s, s, C]

        h, f = network.forward_in_pieces(
            encoder, params["encoder"], stats["encoder"], one, axis, encoder_rows, draw
        )
        z, g = network.forward(projector, params["projector"], stats["projector"], h, axis)
        return z, {"encoder": f, "projector": g}

    def views(key, batch, ctx):
        both = augment.undrawn(2, key, batch["image"], ctx.axis)
        # With `encoder_rows` the loss draws them, those of a piece at a time.
        return both if encoder_rows else augment.draw(policies, both, ctx.axis)  # [b, 2, s, s, C]

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
        share = ema.of_micro_batch(rate(ctx), accumulate)
        averaged = {name: params[name] for name in ("encoder", "projector")}
        target = ema.update(state["target"], averaged, share)
        queries, keys = [], []
        stats, target_stats, p = state, state["target_stats"], state["predictor"]
        for v in (0, 1):  # separately: BatchNorm sees one view at a time
            z, stats = embed(params, stats, views, v, ctx.axis)
            q, p = network.forward(predictor, params["predictor"], p, z, ctx.axis)
            k, target_stats = embed(target, target_stats, views, v, ctx.axis)
            queries.append(q)
            keys.append(k)
        one, metrics = infonce.between_views(queries[0], keys[1], temperature, ctx.axis)
        two, others = infonce.between_views(queries[1], keys[0], temperature, ctx.axis)
        metrics = jax.tree.map(lambda a, b: (a + b) / 2, metrics, others)
        return one + two, (
            {
                **stats,
                "predictor": p,
                # The step moves the old one again, in its place: less to keep until then.
                "target": Partial(ema.update, state["target"], averaged, share),
                "target_stats": target_stats,
            },
            metrics | spread(keys[0], ctx.axis),
        )

    def labels(params):
        names = jax.tree.map(lambda _: "default", params)
        if freeze_patch_embed:
            patch = names["encoder"]["patch_embed"]
            names["encoder"]["patch_embed"] = jax.tree.map(lambda _: "frozen", patch)
        return names

    return Method(
        views=views,
        init=init,
        loss=loss,
        labels=labels,
        encoders=image_encoder.of_two(encoder, projector, view, probed),
    )
