"""NPID, also InstDisc (Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination"; zhirongw/lemniscate.pytorch main.py, lib/LinearAverage.py, lib/NCEAverage.py).

    one view of every image → encoder → projector → unit length → find the image's own row in a
    memory bank of all N images; the row then moves half the way to what was found
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Field, Method, Run
from ssl_jax.losses import instance
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder, values
from ssl_jax.models import heads, network

FORMS = ("softmax", "nce")
# models/resnet.py ends with one linear layer.
PROJECTOR = {"widths": (128,), "norms": ("none",), "biases": (True,)}
FIELDS = (
    Field("form", "nce", "softmax: against the whole bank; nce: against some rows of it"),
    Field("temperature", 0.07, "T"),
    Field("projector", PROJECTOR, "fields of heads.MLP"),
    Field("bank_momentum", 0.5, "share of a row that stays when its image comes by"),
    Field("chunk", 65_536, "softmax: rows of the bank at a time; 0: all at once"),
    Field("negatives", 4_096, "nce: rows that an image is compared with"),
)


def draw_noise(keys: jax.Array, count: int, examples: int) -> jax.Array:
    """Rows of the bank for each of b keys, uniform with replacement, int32 [b, count]."""
    return jax.vmap(lambda k: jax.random.randint(k, (count,), 0, examples))(keys)


def make(config: ConfigDict, run: Run) -> Method:
    """`npid` of a config: `config.method` has FIELDS, `config.views.view` is the augmentation."""
    m, encoder = config.method, models.make(config.model)
    return npid(
        encoder,
        heads.make(m.projector, "--config.method.projector", dtype=encoder.dtype),
        augment.make("none", **config.views.view),
        augment.fixed(config.evaluate),
        examples=run.examples,
        form=m.form,
        temperature=m.temperature,
        bank_momentum=m.bank_momentum,
        chunk=m.chunk,
        negatives=m.negatives,
    )


def npid(
    encoder: nn.Module,
    projector: nn.Module,
    policy: augment.Policy,
    view: augment.Fixed,
    *,
    examples: int,
    form: str = "nce",
    temperature: float = 0.07,
    bank_momentum: float = 0.5,
    chunk: int = 65_536,
    negatives: int = 4_096,
) -> Method:
    """NPID.

    Args:
      encoder: of images, see `models.make`.
      projector: on its features.
      policy: the augmentation of the one view.
      view: the fixed view of probing.
      examples: training images, the rows of the bank.
      form: 'softmax' (against the whole bank) or 'nce' (against `negatives` rows of it).
      temperature: T.
      bank_momentum: share of a row that it keeps when its image comes by.
      chunk: 'softmax': rows of the bank that the loss handles at a time, 0 for all at once.
      negatives: 'nce': m.

    Raises:
      UserError: a value that cannot be.
    """
    values.known(FORMS, form=form)
    values.positive(temperature=temperature)
    values.share(bank_momentum=bank_momentum)
    values.count(0, chunk=chunk)
    values.count(1 if form == "nce" else 0, negatives=negatives)

    def views(key, batch, ctx):
        image = augment.crops((policy,), key, batch["image"], ctx.axis)  # [b, 1, s, s, C]
        return {"image": image, "index": batch["index"]}

    def init(key, views):
        encoder_key, projector_key, bank_key = jax.random.split(key, 3)
        f, h = network.create(encoder, encoder_key, views["image"][:, 0])
        g, z = network.create(projector, projector_key, h)
        params = {"encoder": f["params"], "projector": g["params"]}
        state = {
            "encoder": f["batch_stats"],
            "projector": g["batch_stats"],
            "bank": heads.unit(jax.random.normal(bank_key, (examples, z.shape[-1]))),
            "normaliser": jnp.zeros(()),  # Z of 'nce': not known before the first batch
        }
        return params, state

    def loss(params, state, views, ctx):
        x, index, bank = views["image"][:, 0], views["index"], state["bank"]
        h, f = network.forward(encoder, params["encoder"], state["encoder"], x, ctx.axis)
        z, g = network.forward(projector, params["projector"], state["projector"], h, ctx.axis)
        z, normaliser = heads.unit(z), state["normaliser"]
        if form == "softmax":
            value = instance.full_softmax(z, bank, index, temperature, chunk or None)
        else:
            noise = draw_noise(ctx.keys("noise", len(z)), negatives, len(bank))
            value, normaliser = instance.nce(
                z, bank, index, noise, temperature, normaliser, ctx.axis
            )
        # After the loss: every row was compared with the old bank.
        state = {
            "encoder": f,
            "projector": g,
            "bank": instance.update_bank(bank, index, z, bank_momentum, ctx.axis),
            "normaliser": normaliser,
        }
        metrics = {"positive_similarity": jnp.mean(jnp.sum(z * bank[index], 1))}
        return value, (state, metrics | spread(z, ctx.axis))

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_one(encoder, projector, view),
        least_rows=1,
    )
