"""SimSiam (Chen & He 2021, "Exploring Simple Siamese Representation Learning", algorithm 1;
facebookresearch/simsiam simsiam/builder.py and main_simsiam.py).

    two views of every image → encoder → projector → z → predictor → p
    p of one view ↔ z of the other, z a constant: −cos, both ways
"""

import jax
from jax import lax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.errors import UserError
from ssl_jax.losses import regression
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder
from ssl_jax.models import heads, network
from ssl_jax.optim import rules


def make(config: ConfigDict, run: Run) -> Method:
    """SimSiam.

    Args:
      config: `config.method` holds
          projector: fields of `heads.MLP`;
          predictor: fields of `heads.MLP`, as wide at its end as the projector; None, {}
            or no widths: no predictor, p = z (the paper's table 1a: it collapses);
          stop_gradient: z is a constant; False lets the gradient through (figure 2: it collapses);
        `config.views.both` the augmentation of both views, `config.model` the encoder.
        Optimizer groups: 'predictor' (the paper keeps its learning rate constant), 'frozen' (the
        bias of the projector's last linear layer, which the BatchNorm after it cancels).
      run: not used.

    Raises:
      UserError: predictor and projector do not end at one width.
    """
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    networks = {
        "encoder": encoder,
        "projector": heads.MLP(**config.method.projector, dtype=encoder.dtype),
    }
    siamese, prediction = tuple(networks), ()
    if config.method.predictor and config.method.predictor.widths:
        networks["predictor"] = heads.MLP(**config.method.predictor, dtype=encoder.dtype)
        prediction = ("predictor",)
        ends = [config.method[name].widths[-1] for name in ("predictor", "projector")]
        if ends[0] != ends[1]:
            raise UserError(
                f"method.predictor.widths ends with {ends[0]}; the projector ends with {ends[1]}"
            )
    policy = augment.make("none", **config.views.both)
    stop_gradient = config.method.stop_gradient
    last = len(config.method.projector.widths) - 1
    cancelled = config.method.projector.norms[last] != "none"

    def views(key, batch, ctx):
        return augment.crops((policy, policy), key, batch["image"], ctx.axis)  # [b, 2, s, s, C]

    def init(key, views):
        params, stats, x = {}, {}, views[:, 0]
        for i, name in enumerate(networks):
            made, x = network.create(networks[name], jax.random.fold_in(key, i), x)
            params[name], stats[name] = made["params"], made["batch_stats"]
        return params, stats

    def through(names, params, stats, x1, x2, axis):
        """Each view on its own through the networks `names`: BatchNorm sees one at a time."""
        outputs = []
        for x in (x1, x2):
            for name in names:
                x, after = network.forward(networks[name], params[name], stats[name], x, axis)
                stats = {**stats, name: after}
            outputs.append(x)
        return *outputs, stats

    def loss(params, state, views, ctx):
        z1, z2, state = through(siamese, params, state, views[:, 0], views[:, 1], ctx.axis)
        p1, p2, state = through(prediction, params, state, z1, z2, ctx.axis)
        similarity = -regression.negative_cosine(z1, z2)
        if stop_gradient:
            z1, z2 = lax.stop_gradient((z1, z2))
        value = (regression.negative_cosine(p1, z2) + regression.negative_cosine(p2, z1)) / 2
        return value, (state, {"projection_similarity": similarity} | spread(z1, ctx.axis))

    def labels(params):
        def label(path, _):
            name = rules.name_of(path)
            if cancelled and name == f"projector/linear{last}/bias":
                return "frozen"
            return "predictor" if name.startswith("predictor/") else "default"

        return jax.tree_util.tree_map_with_path(label, params)

    return Method(
        views=views,
        init=init,
        loss=loss,
        labels=labels,
        encoders=image_encoder.of_one(encoder, networks["projector"], view),
    )
