"""NPID, also InstDisc (Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance
Discrimination"; zhirongw/lemniscate.pytorch main.py, lib/LinearAverage.py, lib/NCEAverage.py).

    one view of every image → encoder → projector → unit length → find the image's own row in a
    memory bank of all N images; the row then moves half the way to what was found
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import augment, models
from ssl_jax.contract.method import Method, Run
from ssl_jax.devices import collectives
from ssl_jax.errors import UserError, near_misses
from ssl_jax.losses import instance
from ssl_jax.losses.spread import spread
from ssl_jax.methods.parts import image_encoder
from ssl_jax.models import heads, network

FORMS = ("softmax", "nce")


def draw_noise(key: jax.Array, b: int, count: int, examples: int, axis: str | None) -> jax.Array:
    """Rows of the bank for each of the b local rows, uniform with replacement, int32 [b, count]."""
    keys = collectives.example_keys(key, b, axis)
    return jax.vmap(lambda k: jax.random.randint(k, (count,), 0, examples))(keys)


def make(config: ConfigDict, run: Run) -> Method:
    """NPID.

    Args:
      config: `config.method` holds
          form: 'softmax' (against the whole bank) or 'nce' (against `negatives` rows of it);
          temperature: T;
          projector: fields of `heads.MLP`;
          bank_momentum: share of a row that it keeps when its image comes by;
          chunk: 'softmax': rows of the bank that the loss handles at a time, 0 for all at once;
          negatives: 'nce': m;
        `config.views.view` the augmentation, `config.model` the encoder.
      run: its `examples` are the rows of the bank.

    Raises:
      UserError: a value that cannot be.
    """
    m = config.method
    if m.form not in FORMS:
        raise UserError(f"method.form is {m.form!r}.{near_misses(m.form, FORMS)}")
    if m.form == "nce" and m.negatives < 1:
        raise UserError(f"method.negatives is {m.negatives}; 'nce' needs at least 1")
    encoder = models.make(config.model)
    view = augment.fixed(config.evaluate)
    projector = heads.MLP(**m.projector, dtype=encoder.dtype)
    policy = augment.make("none", **config.views.view)

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
            "bank": heads.unit(jax.random.normal(bank_key, (run.examples, z.shape[-1]))),
            "normaliser": jnp.zeros(()),  # Z of 'nce': not known before the first batch
        }
        return params, state

    def loss(params, state, views, ctx):
        x, index, bank = views["image"][:, 0], views["index"], state["bank"]
        h, f = network.forward(encoder, params["encoder"], state["encoder"], x, ctx.axis)
        z, g = network.forward(projector, params["projector"], state["projector"], h, ctx.axis)
        z, normaliser = heads.unit(z), state["normaliser"]
        if m.form == "softmax":
            value = instance.full_softmax(z, bank, index, m.temperature, m.chunk or None)
        else:
            # No row has the number run.batch: a key that no view draws from.
            key = jax.random.fold_in(ctx.key, run.batch)
            noise = draw_noise(key, len(z), m.negatives, len(bank), ctx.axis)
            value, normaliser = instance.nce(
                z, bank, index, noise, m.temperature, normaliser, ctx.axis
            )
        # After the loss: every row was compared with the old bank.
        state = {
            "encoder": f,
            "projector": g,
            "bank": instance.update_bank(bank, index, z, m.bank_momentum, ctx.axis),
            "normaliser": normaliser,
        }
        metrics = {"positive_similarity": jnp.mean(jnp.sum(z * bank[index], 1))}
        return value, (state, metrics | spread(z, ctx.axis))

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders=image_encoder.of_one(encoder, projector, view),
    )
