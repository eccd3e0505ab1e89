"""A tiny contrastive method with noise views, negatives of all devices and a state, for tests."""

import jax
import jax.numpy as jnp

from ssl_jax.contract.encoder import Encoder
from ssl_jax.contract.method import Method
from ssl_jax.devices import collectives


def make(poison: int = -1) -> Method:
    """Method on 4×4 images; the loss of step `poison` is not a number."""

    def views(key, batch, ctx):
        b = batch["image"].shape[0]
        keys = collectives.example_keys(key, b, ctx.axis)
        x = batch["image"].reshape(b, 1, -1) / 255.0  # [b, 1, 16]
        return x + jax.vmap(lambda k: jax.random.normal(k, (2, 16)))(keys)  # [b, 2, 16]

    def init(key, views):
        params = {"w": jax.random.normal(key, (views.shape[-1], 8)) / 4}
        return params, {"mean": jnp.zeros(8), "after": jnp.zeros((), jnp.int32)}

    def loss(params, state, views, ctx):
        z = views @ params["w"]  # [b, 2, 16] @ [16, 8]
        z1, z2 = z[:, 0], z[:, 1]
        logits = z1 @ collectives.gather(z2, ctx.axis).T / 10  # [b, 8] @ [8, B]
        b = len(z1)
        own = collectives.rank(ctx.axis) * b + jnp.arange(b)
        value = -jax.nn.log_softmax(logits)[jnp.arange(b), own].mean()
        value = jnp.where(ctx.step == poison, jnp.nan, value)
        state = {**state, "mean": collectives.pmean(z1.mean(0), ctx.axis)}
        return value, (state, {"accuracy": (logits.argmax(1) == own).mean()})

    def after_step(params, state, ctx):
        return params, {**state, "after": ctx.step + 1}

    def features(variables, batch):
        x = batch["image"].reshape(len(batch["image"]), -1) / 255.0  # [b, 16]
        return x @ variables["params"]["w"]  # [b, 16] @ [16, 8]

    return Method(
        views=views,
        init=init,
        loss=loss,
        encoders={"encoder": Encoder(lambda params, state: {"params": params}, features)},
        after_step=after_step,
    )
