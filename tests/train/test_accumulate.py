"""Gradient accumulation: where a loss is a mean over images, the update of the whole batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit import tiny

from ssl_jax.contract.method import Run
from ssl_jax.devices import layout, mapping
from ssl_jax.methods import METHODS
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step

RUN = Run(examples=64, batch=16, steps_per_epoch=4, total_steps=10)


def still(key, batch, ctx):
    """Two views of every image without noise: micro-batches draw theirs differently."""
    x = batch["image"] / 255.0
    return jnp.stack([x, x[:, :, ::-1]], 1)  # [b, 2, s, s, C]


def masked(key, batch, ctx):
    x = batch["image"] / 255.0
    hidden = np.arange(49) % 4 != 1  # 12 of 49 patches are seen, as many as the ratio leaves
    return {"image": x, "mask": jnp.broadcast_to(hidden, (len(x), len(hidden)))}


def without_norms(name):
    config = tiny.config(name)
    with config.unlocked():
        config.model = {"name": "vit", "size": 28, "patch": 4, "width": 16, "depth": 2, "heads": 2}
        for head in ("projector", "predictor"):
            if head in config.method:
                config.method[head].norms = ("none",) * len(config.method[head].widths)
        if name == "mae":
            config.method.ratio = 0.75
    return config


def update(name, views, k):
    """Loss and change of the parameters by one SGD step in k micro-batches of 16 / k images."""
    config = without_norms(name)
    with config.unlocked():
        config.accumulate = k
    method = METHODS[name](config, RUN)._replace(views=views)
    local = {"image": jax.ShapeDtypeStruct((16 // k, 28, 28, 1), jnp.uint8)}
    optimizer = optax.sgd(1.0)
    state = jax.jit(make_create(method, lambda _: optimizer, local))(jax.random.key(0))
    before = jax.tree.map(np.array, state.params)
    mesh = layout.mesh(jax.devices()[:1])
    step = mapping.compile_step(make_step(method, optimizer, RUN, lambda _: 1.0), mesh)
    image = np.random.default_rng(0).integers(0, 255, (k, 16 // k, 28, 28, 1), dtype=np.uint8)
    state, metrics = step(
        jax.device_put(state, layout.replicated(mesh)), layout.put_batch({"image": image}, mesh)
    )
    change = jax.tree.map(lambda new, old: new - old, state.params, before)
    return float(metrics["loss"]), change, jax.tree.map(np.array, state.state)


@pytest.mark.parametrize(
    "name, views", [("byol", still), pytest.param("mae", masked, marks=pytest.mark.long)]
)
def test_micro_batches_make_the_update_of_the_whole_batch(name, views):
    loss, change, state = update(name, views, 1)
    other_loss, other, other_state = update(name, views, 4)
    assert abs(other_loss - loss) < 1e-5 * abs(loss)
    pairs = zip(*map(jax.tree.leaves, ((change, state), (other, other_state))), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(change)) > 1e-2


@pytest.mark.long
def test_a_loss_that_compares_images_is_another_one_in_micro_batches():
    """SimCLR's negatives are those of a micro-batch: what `method.encoder_rows` is for."""
    loss, change, _ = update("simclr", still, 1)
    other_loss, other, _ = update("simclr", still, 2)
    assert other_loss < loss - 0.1
    assert not np.allclose(
        change["encoder"]["norm"]["bias"], other["encoder"]["norm"]["bias"], rtol=0.01
    )
