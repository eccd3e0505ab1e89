"""DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers",
algorithm 1; facebookresearch/dino main_dino.py, and utils.py for MultiCropWrapper).

    2 global views → encoder' → projector' → centre, sharpen → targets     the teacher
    2 global views and k local crops → encoder → projector                 the student, learned
    cross-entropy of every crop with the targets of the other views; the teacher follows the student
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.errors import UserError
from ssl_jax.losses import self_distillation as losses
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import ema, image_encoder, multi_crop, prototypes, values
from ssl_jax.models import heads, network
from ssl_jax.optim import schedules

TEACHER = ("encoder", "projector")
CENTRING = ("mean", "sinkhorn", "none")
ENCODERS = ("target", "online")
PROJECTOR = {
    "out": 65_536,
    "hidden": 2048,
    "bottleneck": 256,
    "layers": 3,
    "norm": False,
    "norm_last": True,
}
FIELDS = (
    Field("projector", PROJECTOR, "fields of heads.DINOHead"),
    Field(
        "predictor",
        {"widths": (), "norms": (), "biases": ()},
        "fields of heads.MLP, from the student's logits to as many; no widths: none",
    ),
    Field("local_crops", 8, "local crops of an image, by views.local"),
    Field("student_temperature", 0.1, "of the student"),
    Field("teacher_temperature", 0.04, "of the teacher, after its warm-up"),
    Field("warmup_teacher_temperature", 0.04, "of the teacher in epoch 0, where it warms up"),
    Field("warmup_teacher_epochs", 0, "epochs in which it goes from the one to the other"),
    Field("centring", "mean", "mean, sinkhorn or none: what keeps outputs apart"),
    Field("centre_momentum", 0.9, "of the moving average of the teacher's logits"),
    Field("sinkhorn_iterations", 3, "where centring is sinkhorn"),
    Field("momentum", 0.996, "of the teacher at step 0; a cosine leads to 1; 0 stays 0"),
    Field("encoder", "target", "which is probed: target, the teacher, or online"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`dino` of a config: `config.method` has FIELDS.

    `config.views.global_1`, `.global_2` and `.local` are the augmentations. The optimizer's group
    'last_layer' is that of the projector, which the recipe freezes for the first epoch
    (`optimizer.groups`).
    """
    m, encoder = config.method, models.make(config.model)
    predictor = None
    if m.predictor and m.predictor.get("widths"):
        predictor = heads.make(m.predictor, "--config.method.predictor", dtype=encoder.dtype)
    return dino(
        encoder,
        head(m.projector, encoder.dtype),
        predictor,
        [augment.make("none", **config.views[name]) for name in ("global_1", "global_2")],
        multi_crop.local(config.views),
        augment.fixed(config.evaluate),
        total_steps=run.total_steps,
        accumulate=config.accumulate,
        local_crops=m.local_crops,
        student_temperature=m.student_temperature,
        teacher_temperature=m.teacher_temperature,
        warmup_teacher_temperature=m.warmup_teacher_temperature,
        warmup_teacher_epochs=m.warmup_teacher_epochs,
        centring=m.centring,
        centre_momentum=m.centre_momentum,
        sinkhorn_iterations=m.sinkhorn_iterations,
        momentum=m.momentum,
        probed=m.encoder,
    )


def head(fields: Mapping[str, Any], dtype: Any) -> heads.DINOHead:
    """The `heads.DINOHead` of `config.method.projector`.

    Raises:
      UserError: a field that it does not have, or a value that cannot be.
    """
    values.fields(heads.DINOHead, projector=fields)
    made = heads.DINOHead(**fields, dtype=dtype)
    sizes = ("out", "hidden", "bottleneck", "layers")
    values.count(1, **{f"projector.{size}": getattr(made, size) for size in sizes})
    return made


def dino(
    encoder: nn.Module,
    projector: heads.DINOHead,
    predictor: heads.MLP | None,
    policies: Sequence[augment.Policy],
    local: augment.Policy | None,
    view: augment.Fixed,
    *,
    total_steps: int,
    accumulate: int = 1,
    local_crops: int = 8,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    warmup_teacher_temperature: float = 0.04,
    warmup_teacher_epochs: int = 0,
    centring: str = "mean",
    centre_momentum: float = 0.9,
    sinkhorn_iterations: int = 3,
    momentum: float = 0.996,
    probed: str = "target",
) -> Method:
    """DINO.

    Args:
      encoder: of images, see `models.make`; its `drop_path` is the student's alone.
      projector: on its features, a `heads.DINOHead`. Its last layer is the optimizer's group
        'last_layer'.
      predictor: from the student's logits to as many; None: none, as in the recipe (the paper's
        table 7 tries one).
      policies: the augmentations of the two global crops, of one size.
      local: that of the local ones; None where there are none.
      view: the fixed view of probing.
      total_steps: optimizer steps of the run, over which the momentum rises.
      accumulate: micro-batches of a step.
      local_crops: k; 0: the global views alone.
      student_temperature: of the student.
      teacher_temperature, warmup_teacher_temperature, warmup_teacher_epochs: the teacher's rises
        from the second to the first over that many epochs, epoch by epoch.
      centring: 'mean' (less the moving average of the logits), 'sinkhorn' or 'none'.
      centre_momentum: of that average.
      sinkhorn_iterations: of 'sinkhorn'.
      momentum: of the teacher at step 0, raised to 1 by the last step along a cosine; 0 stays 0, so
        that the teacher is the student itself.
      probed: 'target' (the teacher, as the official code) or 'online'. In a config it is
        `method.encoder`.

    Raises:
      UserError: a value that cannot be.
    """
    values.known(CENTRING, centring=centring)
    values.known(ENCODERS, encoder=probed)
    values.share(momentum=momentum, centre_momentum=centre_momentum)
    values.positive(
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        warmup_teacher_temperature=warmup_teacher_temperature,
    )
    values.count(0, warmup_teacher_epochs=warmup_teacher_epochs)
    values.count(1, sinkhorn_iterations=sinkhorn_iterations)
    crops = multi_crop.policies(policies, local, local_crops)
    # DropPath is the student's alone; a ResNet has none.
    steady = encoder.clone(drop_path=0.0) if hasattr(encoder, "drop_path") else encoder
    networks, outputs = {"projector": projector}, projector.out
    if predictor is not None:
        networks["predictor"] = predictor
        if (last := predictor.widths[-1]) != outputs:
            raise UserError(
                f"--config.method.predictor.widths ends with {last}; "
                f"--config.method.projector.out is {outputs}, and both must be equal"
            )
    start = warmup_teacher_temperature
    temperature = schedules.constant(teacher_temperature)  # of the epoch
    temperature = schedules.warmup_linspace(
        temperature, teacher_temperature, warmup_teacher_epochs, start
    )
    # The micro-batches of a step share one update of the centre.
    keep = centre_momentum ** (1 / accumulate)
    rate = ema.rate(momentum, 1.0 if momentum else 0.0, total_steps)

    def views(key, batch, ctx):
        return multi_crop.draw(crops, key, batch["image"], ctx)

    def init(key, views):
        params, stats, x = {}, {}, views["global"][:, 0]
        for i, (name, net) in enumerate({"encoder": encoder, **networks}.items()):
            made, x = network.create(net, jax.random.fold_in(key, i), x)
            params[name], stats[name] = made["params"], made["batch_stats"]
        target, target_stats = (
            {name: jax.tree.map(jnp.copy, tree[name]) for name in TEACHER}
            for tree in (params, stats)
        )
        centre = jnp.zeros(outputs)
        return params, {**stats, "target": target, "target_stats": target_stats, "centre": centre}

    def through(encoder, names, params, stats, crops, ctx):
        """Logits of all crops, float32 [b, V, K], and the statistics after them."""
        b, v = len(crops[0]), sum(x.shape[1] for x in crops)
        keys = jax.vmap(lambda key: jax.random.split(key, v))(ctx.keys("drop path", b))  # [b, V]
        x, new = network.forward_crops(
            encoder, params["encoder"], stats["encoder"], crops, ctx.axis, keys
        )
        new = {"encoder": new}
        x = x.reshape(b * v, -1)  # [b, V, d] -> [b·V, d]
        for name in names:
            x, new[name] = network.forward(networks[name], params[name], stats[name], x, ctx.axis)
        return x.reshape(b, v, -1), new

    def loss(params, state, views, ctx):
        seen = multi_crop.together(views)
        target, target_stats, centre = state["target"], state["target_stats"], state["centre"]
        teacher, target_stats = through(
            steady, ("projector",), target, target_stats, [views["global"]], ctx
        )
        student, stats = through(encoder, networks, params, state, seen, ctx)

        tau = temperature(ctx.epoch)
        if centring == "sinkhorn":
            targets = losses.sinkhorn_targets(teacher, tau, sinkhorn_iterations, ctx.axis)
        else:  # 'none': the centre stays 0
            targets = losses.centred_targets(teacher, centre, tau)
        value = losses.cross_view(student, targets, student_temperature)
        if centring == "mean":  # after the targets, which take the old one
            centre = losses.update_centre(centre, teacher, keep, ctx.axis)

        # Collapse: the divergence goes to 0, and the entropy to 0 or to log K.
        entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(targets), -1))
        metrics = {
            "teacher_entropy": entropy,
            "teacher_student_kl": value - entropy,
            "momentum": 1 - rate(ctx),
            **spread(teacher, ctx.axis),
        }
        return value, ({**state, **stats, "target_stats": target_stats, "centre": centre}, metrics)

    def after_step(params, state, ctx):
        online = {name: params[name] for name in TEACHER}
        return params, {
            **state,
            "target": ema.update(state["target"], online, rate(ctx)),
        }

    def labels(params):
        names = jax.tree.map(lambda _: "default", params)
        last = {name: "last_layer" for name in ("v", "g") if name in params["projector"]}
        return {**names, "projector": {**names["projector"], **last}}

    # Outputs of the network that is probed; the teacher's less the centre.
    select, centred = image_encoder.online, None
    if probed == "target":
        select, centred = image_encoder.target, lambda params, state: state["centre"]

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_two(encoder, projector, view, probed),
        after_step=after_step,
        labels=labels,
        prototypes=prototypes.outputs(projector, select("projector"), centred),
        least_rows=1,
    )
