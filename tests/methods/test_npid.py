"""NPID: the authors' numbers through the method, its bank, its noise."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kit import tiny

from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.methods import npid
from ssl_jax.runs import config as configs
from ssl_jax.train.state import written

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(examples=50, batch=8, steps_per_epoch=6, total_steps=12)


def context(axis=None, key=3):
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(key), axis)


class Identity:
    dtype = jnp.float32

    def clone(self, axis):
        return self

    def apply(self, variables, x, train, mutable):
        return x, {}


def identity_method(monkeypatch, preset, **fields):
    """The preset's method with the networks taken out: `image` holds the embeddings."""
    config, _ = configs.load(f"configs/npid.py:{preset}")
    config.method.update(fields)
    monkeypatch.setattr(npid.models, "make", lambda _: Identity())
    monkeypatch.setattr(npid.heads, "make", lambda *_, **__: Identity())
    method = npid.make(config, RUN)
    empty = {"encoder": {}, "projector": {}}

    @jax.jit
    def step(x, index, bank, normaliser):
        def loss(x):
            state = {**empty, "bank": bank, "normaliser": normaliser}
            return method.loss(empty, state, {"image": x[:, None], "index": index}, context())

        (value, (state, _)), grad = jax.value_and_grad(loss, has_aux=True)(x)
        return value, grad, written(state)

    return step


def tangent(grad, x):
    """The gradient before the embeddings of unit length were normalised once more."""
    return grad - (grad * x).sum(1, keepdims=True) * x


@pytest.mark.parametrize("chunk", [0, 7])
def test_full_softmax_of_the_official_code(monkeypatch, chunk):
    golden = np.load(GOLDEN / "instdisc_full_softmax.npz")
    step = identity_method(monkeypatch, "imagenet", form="softmax", chunk=chunk)
    x = golden["x"]
    # Twice the length: the method normalises, and its gradient is half as long.
    loss, grad, state = step(2 * x, golden["y"], golden["memory_init"], 0.0)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(2 * grad, tangent(golden["grad_x"], x), rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(state["bank"], golden["memory_after"], rtol=1e-4, atol=1e-6)


def test_nce_of_the_official_code(monkeypatch):
    """Three steps of the imagenet preset, state and all; an id is repeated in the third."""
    golden = np.load(GOLDEN / "instdisc_nce.npz")
    noise = []
    monkeypatch.setattr(npid, "draw_noise", lambda *_: noise[-1])
    bank, normaliser = golden["memory_init"], jnp.zeros(())
    for k in range(3):
        x = golden["x"][k]
        noise.append(golden["noise"][k])
        step = identity_method(monkeypatch, "imagenet")
        loss, grad, state = step(x, golden["y"][k], bank, normaliser)
        np.testing.assert_allclose(loss, golden["loss"][k], rtol=1e-4)
        want = tangent(golden["grad_x"][k], x)
        np.testing.assert_allclose(grad, want, rtol=1e-3, atol=1e-5)
        bank, normaliser = state["bank"], state["normaliser"]
        np.testing.assert_allclose(normaliser, golden["Z"][k], rtol=1e-4)
        np.testing.assert_allclose(bank, golden["memory"][k], rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def setting():
    config = tiny.config("npid")
    method = npid.make(config, RUN)
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 255, (8, 28, 28, 1), dtype=np.uint8),
        "index": np.array([49, 3, 3, 0, 17, 3, 20, 49], np.int32),
    }
    views = jax.jit(lambda b: method.views(jax.random.key(1), b, context()))(batch)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    return config, method, batch, views, params, state


def test_one_view_and_a_bank_of_unit_rows(setting):
    *_, batch, views, _, state = setting
    assert views["image"].shape == (8, 1, 28, 28, 1)
    np.testing.assert_array_equal(views["index"], batch["index"])
    assert state["bank"].shape == (50, 8)
    np.testing.assert_allclose(jnp.linalg.norm(state["bank"], axis=1), 1, rtol=1e-5)
    assert float(jnp.abs(state["bank"].mean())) < 0.1 and state["normaliser"] == 0


@pytest.mark.parametrize("form", npid.FORMS)
def test_four_devices_leave_one_bank(setting, form):
    """Ids repeat, within a device and across: the loss, noise and bank of one device."""
    config, *_, views, params, state = setting
    config = config.copy_and_resolve_references()
    config.method.form, config.method.negatives = form, 20
    method = npid.make(config, RUN)

    def step(views, axis):
        loss, (new, _) = method.loss(params, state, views, context(axis))
        return collectives.pmean(loss, axis), jax.tree.map(lambda x: x[None], written(new))

    mapped = jax.shard_map(
        lambda v: step(v, layout.AXIS),
        mesh=layout.mesh(),
        in_specs=P("batch"),
        out_specs=(P(), P("batch")),
        check_vma=False,
    )
    loss, parts = jax.jit(mapped)(views)
    want, whole = jax.jit(lambda v: step(v, None))(views)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    for part, one in zip(jax.tree.leaves(parts), jax.tree.leaves(whole), strict=True):
        for device in part:
            np.testing.assert_array_equal(device, part[0])
            np.testing.assert_allclose(device, one[0], rtol=1e-4, atol=1e-5)
    moved = np.flatnonzero(np.abs(parts["bank"][0] - state["bank"]).max(1))
    np.testing.assert_array_equal(moved, [0, 3, 17, 20, 49])
    assert (whole["normaliser"][0] > 0) == (form == "nce")


def test_noise_is_uniform_and_of_the_example():
    noise = np.asarray(npid.draw_noise(context().keys("noise", 4), 25_000, 50))
    assert noise.shape == (4, 25_000) and noise.min() == 0 and noise.max() == 49
    counts = np.bincount(noise.ravel(), minlength=50)
    assert np.abs(counts / 2_000 - 1).max() < 0.12  # 5 standard deviations
    assert not np.array_equal(noise[0], noise[1])
    mapped = jax.shard_map(
        lambda _: npid.draw_noise(context(layout.AXIS).keys("noise", 1), 25_000, 50),
        mesh=layout.mesh(),
        in_specs=P("batch"),
        out_specs=P("batch"),
        check_vma=False,
    )
    np.testing.assert_array_equal(mapped(jnp.zeros(4)), noise)


def test_presets_and_errors():
    for preset in ("imagenet", "cifar10", "digits"):
        config, _ = configs.load(f"configs/npid.py:{preset}")
        assert config.method.projector.widths == (128,)
        npid.make(config, RUN)
    config.method.form = "softmx"
    with pytest.raises(UserError, match="method.form is 'softmx'. Did you mean softmax"):
        npid.make(config, RUN)
    config.method.form, config.method.negatives = "nce", 0
    with pytest.raises(UserError, match="method.negatives is 0; it must be at least 1"):
        npid.make(config, RUN)
