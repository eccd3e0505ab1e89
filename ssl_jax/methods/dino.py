"""DINO (Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers",
algorithm 1; facebookresearch/dino main_dino.py, and utils.py for MultiCropWrapper).

    2 global views → encoder' → projector' → centre, sharpen → targets     the teacher
    2 global views and k local crops → encoder → projector                 the student, learned
    cross-entropy of every crop with the targets of the other views; the teacher follows the student
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError, near_misses
from ssl_jax.losses import self_distillation as losses
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import ema, image_encoder, prototypes
from ssl_jax.models import heads, network
from ssl_jax.optim import schedules

TEACHER = ("encoder", "projector")
KNOWN = {"centring": ("mean", "sinkhorn", "none"), "encoder": ("target", "online")}


def make(config: ConfigDict, run: Run) -> Method:
    """DINO.

    Args:
      config: `config.method` holds
          projector: fields of `heads.DINOHead`. Its last layer is the optimizer's group
            'last_layer', which the recipe freezes for the first epoch (`optimizer.groups`);
          predictor: fields of `heads.MLP`, from the student's logits to as many; None or with empty
            widths: no predictor, as in the recipe (the paper's table 7 tries one);
          local_crops: k, crops by `config.views.local`; 0: the global views alone;
          student_temperature: of the student;
          teacher_temperature, warmup_teacher_temperature, warmup_teacher_epochs: the teacher's
            rises from the second to the first over that many epochs, epoch by epoch;
          centring: 'mean' (less the moving average of the logits), 'sinkhorn' or 'none';
          centre_momentum: of that average;
          sinkhorn_iterations: of 'sinkhorn';
          momentum: of the teacher at step 0, raised to 1 by the last step along a cosine; 0 stays
            0, so that the teacher is the student itself;
          encoder: which one is probed, 'target' (the teacher, as the official code) or 'online';
        `config.views.global_1`, `.global_2` and `.local` the augmentations, `config.model` the
        encoder, whose `drop_path` is the student's alone.
      run: total_steps, for the momentum, and batch.

    Raises:
      UserError: a value that cannot be.
    """
    m = config.method
    for field, known in KNOWN.items():
        if m[field] not in known:
            raise UserError(f"method.{field} is {m[field]!r}.{near_misses(m[field], known)}")
    if not 0 <= m.momentum <= 1:
        raise UserError(f"method.momentum is {m.momentum}; it must be from 0 to 1")
    if m.local_crops and "local" not in config.views:
        raise UserError(f"method.local_crops is {m.local_crops}, but there is no views.local")
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    # DropPath is the student's alone; a ResNet has none.
    steady = encoder.clone(drop_path=0.0) if hasattr(encoder, "drop_path") else encoder
    networks = {"projector": heads.DINOHead(**m.projector, dtype=encoder.dtype)}
    outputs = networks["projector"].out
    if m.predictor and m.predictor.widths:
        networks["predictor"] = heads.MLP(**m.predictor, dtype=encoder.dtype)
        if (last := m.predictor.widths[-1]) != outputs:
            raise UserError(
                f"method.predictor.widths ends with {last}; method.projector.out is {outputs}"
            )
    big = [augment.make("none", **config.views[name]) for name in ("global_1", "global_2")]
    small = [augment.make("none", **config.views.local)] * m.local_crops if m.local_crops else []
    peak, start = m.teacher_temperature, m.warmup_teacher_temperature
    temperature = schedules.constant(peak)  # of the epoch
    temperature = schedules.warmup_linspace(temperature, peak, m.warmup_teacher_epochs, start)
    # The micro-batches of a step share one update of the centre.
    centre_momentum = m.centre_momentum ** (1 / config.accumulate)
    momentum = schedules.cosine(m.momentum, 1.0, run.total_steps)
    if m.momentum == 0:
        momentum = schedules.constant(0.0)

    def views(key, batch, ctx):
        drawn = {"global": augment.crops(big, key, batch["image"], ctx.axis)}  # [b, 2, S, S, C]
        if small:
            key = jax.random.fold_in(key, 1)
            drawn["local"] = augment.crops(small, key, batch["image"], ctx.axis)  # [b, k, s, s, C]
        return drawn

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
        # For DropPath. No row has the number run.batch: a key that no view draws from.
        keys = collectives.example_keys(jax.random.fold_in(ctx.key, run.batch), b, ctx.axis)
        keys = jax.vmap(lambda key: jax.random.split(key, v))(keys)  # [b, V]
        x, new = network.forward_crops(
            encoder, params["encoder"], stats["encoder"], crops, ctx.axis, keys
        )
        new = {"encoder": new}
        x = x.reshape(b * v, -1)  # [b, V, d] -> [b·V, d]
        for name in names:
            x, new[name] = network.forward(networks[name], params[name], stats[name], x, ctx.axis)
        return x.reshape(b, v, -1), new

    def loss(params, state, views, ctx):
        crops = [views[name] for name in ("global", "local") if name in views]
        target, target_stats, centre = state["target"], state["target_stats"], state["centre"]
        teacher, target_stats = through(
            steady, ("projector",), target, target_stats, [views["global"]], ctx
        )
        student, stats = through(encoder, networks, params, state, crops, ctx)

        tau = temperature(ctx.epoch)
        if m.centring == "sinkhorn":
            targets = losses.sinkhorn_targets(teacher, tau, m.sinkhorn_iterations, ctx.axis)
        else:  # 'none': the centre stays 0
            targets = losses.centred_targets(teacher, centre, tau)
        value = losses.cross_view(student, targets, m.student_temperature)
        if m.centring == "mean":  # after the targets, which take the old one
            centre = losses.update_centre(centre, teacher, centre_momentum, ctx.axis)

        # Collapse: the divergence goes to 0, and the entropy to 0 or to log K.
        entropy = jnp.mean(jnp.sum(jax.scipy.special.entr(targets), -1))
        metrics = {
            "teacher_entropy": entropy,
            "teacher_student_kl": value - entropy,
            "momentum": momentum(ctx.step),
            **spread(teacher, ctx.axis),
        }
        return value, ({**state, **stats, "target_stats": target_stats, "centre": centre}, metrics)

    def after_step(params, state, ctx):
        online = {name: params[name] for name in TEACHER}
        return params, {**state, "target": ema.update(state["target"], online, momentum(ctx.step))}

    def labels(params):
        names = jax.tree.map(lambda _: "default", params)
        last = {name: "last_layer" for name in ("v", "g") if name in params["projector"]}
        return {**names, "projector": {**names["projector"], **last}}

    # Outputs of the network that is probed; the teacher's less the centre.
    probed = image_encoder.target if m.encoder == "target" else image_encoder.online
    centred = (lambda params, state: state["centre"]) if m.encoder == "target" else None

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_two(encoder, networks["projector"], view, m.encoder),
        after_step=after_step,
        labels=labels,
        prototypes=prototypes.outputs(networks["projector"], probed("projector"), centred),
    )
