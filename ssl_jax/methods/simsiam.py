"""SimSiam (Chen & He 2021, "Exploring Simple Siamese Representation Learning", algorithm 1;
facebookresearch/simsiam simsiam/builder.py and main_simsiam.py).

    two views of every image → encoder → projector → z → predictor → p
    p of one view ↔ z of the other, z a constant: −cos, both ways
"""

import flax.linen as nn
import jax
from jax import lax
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.losses import regression
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder
from ssl_jax.models import heads, network
from ssl_jax.optim import rules

PROJECTOR = {
    "widths": (2048, 2048, 2048),
    "norms": ("affine", "affine", "plain"),
    "biases": (False, False, True),
}
PREDICTOR = {"widths": (512, 2048), "norms": ("affine", "none"), "biases": (False, True)}
FIELDS = (
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("predictor", PREDICTOR, "fields of heads.MLP; {}: none (table 1a: it collapses)"),
    Field("stop_gradient", True, "z is a constant; False: figure 2, it collapses"),
)


def make(config: ConfigDict, run: Run) -> Method:
    """`simsiam` of a config: `config.method` has FIELDS, `config.views.both` is the policy."""
    m, encoder = config.method, models.make(config.model)
    predictor = None
    if m.predictor and m.predictor.get("widths"):
        predictor = heads.make(m.predictor, "--config.method.predictor", dtype=encoder.dtype)
    return simsiam(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        predictor,
        augment.make("none", **config.views.both),
        augment.fixed(config.evaluate),
        stop_gradient=m.stop_gradient,
    )


def simsiam(
    encoder: nn.Module,
    projector: heads.MLP,
    predictor: heads.MLP | None,
    policy: augment.Policy,
    view: augment.Fixed,
    *,
    stop_gradient: bool = True,
) -> Method:
    """SimSiam.

    Optimizer groups: 'predictor' (the paper keeps its learning rate constant), 'frozen' (the bias
    of the projector's last linear layer, which the BatchNorm after it cancels).

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      predictor: on the projections, as wide at its end; None: none, p = z (the paper's table 1a: it
        collapses).
      policy: the augmentation of both views.
      view: the fixed view of probing.
      stop_gradient: z is a constant; False lets the gradient through (figure 2: it collapses).

    Raises:
      UserError: predictor and projector do not end at one width.
    """
    networks = {"encoder": encoder, "projector": projector}
    siamese, prediction = tuple(networks), ()
    if predictor is not None:
        networks["predictor"] = predictor
        prediction = ("predictor",)
        heads.check_ends(predictor, projector)
    last = len(projector.widths) - 1
    cancelled = projector.norms[last] != "none"

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
        encoders=image_encoder.of_one(encoder, projector, view),
    )
