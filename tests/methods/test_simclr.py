"""SimCLR: the authors' loss, state that leaves every device equal, views drawn alike."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kit import probed, programs

from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.methods import simclr
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def context(axis):
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(3), axis)


@pytest.fixture(scope="module")
def setting():
    return made("float32")


def made(dtype):
    config, _ = configs.load("configs/simclr.py:digits")
    config.model.width, config.model.blocks = 8, (1,)
    config.views.both.size, config.model.dtype = 28, dtype
    method = simclr.make(config, Run(4000, 16, 250, 10))
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (16, 28, 28, 1), dtype=np.uint8)
    views = jax.jit(lambda x: method.views(jax.random.key(1), {"image": x}, context(None)))(image)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    return config, method, image, views, params, state


def test_two_different_views_of_every_image(setting):
    *_, views, _, _ = setting
    assert views.shape == (16, 2, 28, 28, 1) and views.dtype == jnp.float32
    assert float(jnp.abs(views[:, 0] - views[:, 1]).max()) > 0.1
    assert float(jnp.abs(views[0] - views[1]).max()) > 0.1


def test_four_devices_draw_compute_and_keep_the_same():
    with programs.float64():
        draw_compute_and_keep(*made("float64"))


def draw_compute_and_keep(_, method, image, views, params, state):
    mesh = layout.mesh()

    def step(params, image):
        ctx = context(layout.AXIS)
        views = method.views(jax.random.key(1), {"image": image}, ctx)
        loss, (new, metrics) = method.loss(params, state, views, ctx)
        # Not averaged: the state of each device as it leaves, stacked.
        return views, collectives.pmean(loss, ctx.axis), jax.tree.map(lambda x: x[None], new)

    mapped = jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(P(), P("batch")),
            out_specs=(P("batch"), P(), P("batch")),
            check_vma=False,
        )
    )
    split_views, loss, split_state = mapped(params, image)
    whole, (new, _) = jax.jit(lambda p: method.loss(p, state, views, context(None)))(params)
    assert loss.dtype == views.dtype == jnp.float64
    np.testing.assert_allclose(split_views, views, atol=1e-12)
    np.testing.assert_allclose(loss, whole, rtol=1e-12)
    for parts, one in zip(jax.tree.leaves(split_state), jax.tree.leaves(new), strict=True):
        assert parts.shape[0] == 4
        for part in parts:
            np.testing.assert_array_equal(part, parts[0])
            np.testing.assert_allclose(part, one, rtol=1e-11, atol=1e-12)
    changed = [
        float(jnp.abs(a - b).max()) > 0
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(state), strict=True)
    ]
    assert all(changed), "running statistics move"


def test_the_imagenet_preset_has_the_scale_of_the_official_loss(monkeypatch):
    """With the networks taken out, the preset's loss is Google's on its own numbers."""
    golden = np.load(GOLDEN / "simclr_ntxent.npz")
    config, _ = configs.load("configs/simclr.py:imagenet")

    class Identity:
        dtype = jnp.float32

        def clone(self, axis):
            return self

        def apply(self, variables, x, train, mutable):
            return x, {}

    monkeypatch.setattr(simclr.models, "make", lambda _: Identity())
    monkeypatch.setattr(simclr.heads, "make", lambda fields, where, **_: Identity())
    method = simclr.make(config, Run(1_281_167, 4096, 312, 31_200))
    hidden = golden["hidden"]  # view 1 of all rows, then view 2
    views = jnp.asarray(np.stack(np.split(hidden, 2), axis=1))  # [8, 2, 12]
    empty = {"encoder": {}, "projector": {}}
    loss, grad = jax.value_and_grad(lambda v: method.loss(empty, empty, v, context(None))[0])(views)
    np.testing.assert_allclose(loss, golden["loss_tf2_T0.1"], rtol=1e-5)
    joined = np.concatenate([grad[:, 0], grad[:, 1]])
    np.testing.assert_allclose(joined, golden["grad_hidden_tf2_T0.1"], rtol=1e-4, atol=1e-6)


def test_probing_reads_the_encoder_and_the_optimizer_has_one_group(setting):
    _, method, _, _, params, state = setting
    variables = probed.variables(method, params, state)
    assert set(variables) == {"params", "batch_stats"}
    assert jax.tree.structure(variables["params"]) == jax.tree.structure(params["encoder"])
    assert set(jax.tree.leaves(method.labels(params))) == {"default"}
