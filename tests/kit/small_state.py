"""A training state of a few numbers, for the tests of checkpoints."""

import jax
import jax.numpy as jnp

from ssl_jax.devices import layout
from ssl_jax.train.state import TrainState


def create(width=4, name="w", step=7):
    number = jnp.zeros((), jnp.int32)
    # In eighths, which are the same however they are compiled.
    weight = jax.random.randint(jax.random.key(1), (width, 3), -16, 16) / 8
    return TrainState(
        step=number + step,
        params={"encoder": {name: weight}, "projector": [jnp.ones(3)]},
        opt_state=((), {"momentum": weight * 2}),
        state={"batch_stats": {"encoder": {"mean": jnp.arange(3.0)}}, "queue": (weight.T,)},
        key=jax.random.key(3),
        skipped=number,
        streak=number,
    )


def whole():
    return layout.replicated(layout.mesh())


def like(**arguments):
    shapes = jax.eval_shape(lambda: create(**arguments))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole()), shapes)


def encoder(state):
    return {
        "params": state.params["encoder"],
        "batch_stats": state.state["batch_stats"]["encoder"],
    }
