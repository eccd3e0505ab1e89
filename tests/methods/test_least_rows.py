"""`Method.least_rows`: with so many rows the encoder learns, with fewer it would not."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import tiny

from ssl_jax.contract.batch import image
from ssl_jax.contract.method import Context, Run
from ssl_jax.methods import METHODS

SHORT = ("simclr", "moco_v1")  # one of each kind


def gradient(name, rows):
    """(rows, largest gradient of the encoder in three draws); rows None: `least_rows`."""
    config = tiny.config(name)
    if "group" in config.method:
        config.method.group, config.method.shuffle = 0, 1
    method = METHODS[name](config, Run(160, rows or 2, 80, 1000, image(28, 1)))
    rows = rows or method.least_rows
    step = jnp.full((), 200)
    ctx = Context(step, step // 100, jnp.zeros(()), jax.random.key(0), None)
    batch = {
        "image": np.random.default_rng(0).integers(0, 255, (rows, 28, 28, 1), dtype=np.uint8),
        "index": np.arange(rows),
        "label": np.full(rows, -1),
    }

    def largest(key):
        views = method.views(key, batch, ctx)
        params, state = method.init(key, views)
        if "labels" in state:  # as after an epoch: labels, and prototypes that are not zero
            state = {**state, "labels": jnp.zeros_like(state["labels"])}
            if "prototypes" in state:
                state["prototypes"] = [x + jnp.eye(*x.shape) for x in state["prototypes"]]
        grads = jax.grad(lambda p: method.loss(p, state, views, ctx)[0])(params)["encoder"]
        return jnp.max(jnp.stack([jnp.abs(x).max() for x in jax.tree.leaves(grads)]))

    program = jax.jit(largest)
    return rows, max(float(program(jax.random.key(seed))) for seed in range(3))


@pytest.mark.parametrize(
    "name", [n if n in SHORT else pytest.param(n, marks=pytest.mark.long) for n in METHODS]
)
def test_the_encoder_learns_from_so_many_rows_and_not_from_fewer(name):
    least, learned = gradient(name, None)
    assert learned > 1e-3
    if least == 2:
        try:
            alone = gradient(name, 1)[1]
        except ValueError as error:
            assert re.search("at least two rows|nothing else to compare with", str(error))
            alone = 0.0
        assert alone < 1e-6
