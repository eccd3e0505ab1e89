"""BYOL: the authors' loss and momentum; what the target sees, keeps and becomes; the ablations."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit import probed
from ml_collections import ConfigDict

from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.methods import byol
from ssl_jax.models import heads
from ssl_jax.runs import config as configs
from ssl_jax.train.state import TrainState
from ssl_jax.train.step import make_step

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(examples=4000, batch=8, steps_per_epoch=500, total_steps=1000)


class Net:
    """A network of one matrix: y = (x − the mean of the batch + 1) @ w, or x @ w.

    Its statistics go half the way to the mean of the batch, so that they tell the order of batches.
    """

    dtype = jnp.float32

    def __init__(self, centred=True, fields=None):
        self.centred = centred
        if fields:  # of a head
            self.widths, self.norms = fields["widths"], fields.get("norms")

    def clone(self, axis):
        return self

    def init(self, key, x, train):
        w = jax.random.normal(key, (x.shape[-1], 4))
        return {"params": {"w": w}, "batch_stats": {"mean": jnp.zeros(x.shape[-1])}}

    def apply(self, variables, x, train, mutable=()):
        w, mean = variables["params"]["w"], variables["batch_stats"]["mean"]
        seen = x.mean(0)
        y = (x - (seen - 1 if train and self.centred else 0)) @ w
        return (y, {"batch_stats": {"mean": (mean + seen) / 2}}) if train else y


@pytest.fixture
def make(monkeypatch):
    """make(centred=…, **fields of config.method) -> BYOL with networks of one matrix."""

    def make(centred=True, preset="digits", run=RUN, **fields):
        monkeypatch.setattr(byol.models, "make", lambda _: Net(centred))
        monkeypatch.setattr(byol.heads, "make", lambda fields, where, **_: Net(centred, fields))
        config, _ = configs.load(f"configs/byol.py:{preset}")
        with config.unlocked():
            for name, value in fields.items():
                config.method[name] = value
        return byol.make(config, run)

    return make


def context(step=0):
    step = jnp.asarray(step, jnp.int32)
    return Context(step, step // 500, step / 1000, jax.random.key(3), None)


def setting(method, seed=0):
    """(views [8, 2, 6], params, state): the views of an image are alike, two draws differ."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(8, 1, 6))
    views = jnp.asarray(image + 0.5 * rng.normal(size=(8, 2, 6)) + 1, jnp.float32)
    return views, *method.init(jax.random.key(seed), views)


def distance(p, z):
    p, z = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, z))
    return ((p - z) ** 2).sum(1).mean()


def forward(params, stats, x, names):
    """x through matrices in float64: (y, the statistics after it)."""
    x, after = np.asarray(x, np.float64), {}
    for name in names:
        mean = x.mean(0)
        after[name] = (np.asarray(stats[name]["mean"]) + mean) / 2
        x = (x - mean + 1) @ np.asarray(params[name]["w"], np.float64)
    return x, after


def test_official_loss_and_gradient(make):
    """The preset `imagenet` on the authors' numbers: networks that pick p or z out of a view."""
    golden = np.load(GOLDEN / "byol_loss.npz")
    method = make(centred=False, preset="imagenet")
    p, z = (jnp.stack([golden[k + "1"], golden[k + "2"]], 1) for k in "pz")  # [8, 2, 16]
    views = jnp.concatenate([p, z], -1)  # [8, 2, 32]
    one, none = np.eye(16, dtype=np.float32), np.zeros((16, 16), np.float32)
    same = {"w": jnp.eye(32)}
    params = {
        "encoder": same,
        "projector": {"w": np.concatenate([one, none])},
        "predictor": {"w": one},
    }
    target = {"encoder": same, "projector": {"w": np.concatenate([none, one])}}
    stats = {"encoder": {"mean": jnp.zeros(32)}, "projector": {"mean": jnp.zeros(32)}}
    state = {**stats, "predictor": {"mean": jnp.zeros(16)}, "target": target, "target_stats": stats}

    def loss(views, params):
        return method.loss(params, state, views, context())[0]

    value, (by_views, by_params) = jax.value_and_grad(loss, (0, 1))(views, params)
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    for i, name in enumerate(("grad_p1", "grad_p2")):
        np.testing.assert_allclose(by_views[:, i, :16], golden[name], rtol=1e-4, atol=1e-7)
    np.testing.assert_array_equal(by_views[:, :, 16:], 0)  # nothing reaches the target
    want = golden["p1"].T @ golden["grad_p1"] + golden["p2"].T @ golden["grad_p2"]
    np.testing.assert_allclose(by_params["predictor"]["w"], want, rtol=1e-4, atol=1e-6)


def test_every_network_sees_one_view_at_a_time_and_the_target_keeps_its_own_statistics(make):
    method = make()
    views, params, state = setting(method)
    _, (state, _) = method.loss(params, state, views, context())  # the two statistics part
    value, (new, metrics) = method.loss(params, state, views, context())

    online, target = ("encoder", "projector", "predictor"), ("encoder", "projector")
    p1, stats = forward(params, state, views[:, 0], online)
    p2, stats = forward(params, {k: {"mean": v} for k, v in stats.items()}, views[:, 1], online)
    z1, own = forward(state["target"], state["target_stats"], views[:, 0], target)
    own = {k: {"mean": v} for k, v in own.items()}
    z2, own = forward(state["target"], own, views[:, 1], target)
    np.testing.assert_allclose(value, distance(p1, z2) + distance(p2, z1), rtol=1e-5)
    for name in online:
        np.testing.assert_allclose(new[name]["mean"], stats[name], rtol=1e-4, atol=1e-5)
    for name in target:
        np.testing.assert_allclose(new["target_stats"][name]["mean"], own[name], 1e-4, 1e-5)
    assert np.abs(own["projector"] - stats["projector"]).max() > 0.1, "the two networks differ"
    np.testing.assert_allclose(metrics["projection_similarity"], 1 - distance(z1, z2) / 2, 1e-4)
    for a, b in zip(jax.tree.leaves(new["target"]), jax.tree.leaves(state["target"]), strict=True):
        np.testing.assert_array_equal(a, b)  # it moves after the optimizer


@pytest.mark.parametrize("base, key", [(0.996, "tau_996"), (0.99, "tau_99")])
def test_official_momentum(make, base, key):
    golden = np.load(GOLDEN / "byol_schedules.npz")
    method = make(momentum=base)
    _, params, state = setting(method)
    params = jax.tree.map(jnp.zeros_like, params)
    state["target"] = jax.tree.map(jnp.ones_like, state["target"])

    def after(step):
        return method.after_step(params, state, context(step))[1]["target"]

    target = jax.vmap(after)(golden["steps"])  # τ·1 + (1 − τ)·0
    for leaf in jax.tree.leaves(target):
        leaf = leaf.reshape(len(golden["steps"]), -1)
        np.testing.assert_allclose(leaf, np.tile(golden[key], (leaf.shape[1], 1)).T, rtol=1e-6)


def test_the_target_follows_the_updated_network_after_each_step(make):
    """τ by the step before it is counted, and the parameters as the optimizer leaves them."""
    run = RUN._replace(total_steps=4)
    method = make(momentum=0.5, run=run)
    views, params, state = setting(method)
    method = method._replace(views=lambda key, batch, ctx: batch["views"])
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_step(method, optimizer, run, lambda step: 0.1), static_argnames="axis")
    zero = jnp.zeros((), jnp.int32)
    train = TrainState(zero, params, optimizer.init(params), state, jax.random.key(0), zero, zero)
    for k in range(3):
        old = train
        train, metrics = step(old, {"views": views[None]}, axis=None)
        tau = 1 - 0.5 * (np.cos(np.pi * k / 4) + 1) / 2
        np.testing.assert_allclose(metrics["momentum"], tau, rtol=1e-6)
        for name in ("encoder", "projector"):
            t, o = old.state["target"][name]["w"], train.params[name]["w"]
            assert np.abs(o - old.params[name]["w"]).max() > 1e-4
            want = tau * np.asarray(t) + (1 - tau) * np.asarray(o)
            np.testing.assert_allclose(train.state["target"][name]["w"], want, 1e-5, 1e-6)
    assert set(train.state["target"]) == {"encoder", "projector"}, "parameters alone"


@pytest.mark.parametrize("initial_target", ["own", "online"])
def test_initial_target(make, initial_target):
    method = make(initial_target=initial_target)
    _, params, state = setting(method)
    for name in ("encoder", "projector"):
        apart = np.abs(state["target"][name]["w"] - params[name]["w"]).max()
        assert (apart > 0.1) if initial_target == "own" else (apart == 0)
    assert np.abs(params["projector"]["w"] - params["predictor"]["w"]).max() > 0.1


@pytest.mark.parametrize("momentum", [0.0, 1.0])
def test_momentum_zero_is_the_online_network_and_one_the_initial_target_at_any_step(make, momentum):
    method = make(momentum=momentum)
    _, params, state = setting(method)
    for step in (0, 500, 999):
        _, new = method.after_step(params, state, context(step))
        for name in ("encoder", "projector"):
            want = state["target"][name]["w"] if momentum else params[name]["w"]
            np.testing.assert_array_equal(new["target"][name]["w"], want)


def test_without_stop_gradient_the_gradient_passes_through_the_target(make):
    method, stopped = make(stop_gradient=False), make()
    views, params, state = setting(method)
    # The target is the online network, as momentum 0 makes it.
    state["target"] = {name: params[name] for name in state["target"]}

    def siamese(params):  # both sides one network, in one differentiable piece
        def side(x, names):
            for name in names:
                x = (x - x.mean(0) + 1) @ params[name]["w"]
            return x / jnp.linalg.norm(x, axis=1, keepdims=True)

        p1, p2 = (side(views[:, i], ("encoder", "projector", "predictor")) for i in (0, 1))
        z1, z2 = (side(views[:, i], ("encoder", "projector")) for i in (0, 1))
        return ((p1 - z2) ** 2).sum(1).mean() + ((p2 - z1) ** 2).sum(1).mean()

    want, want_grads = jax.value_and_grad(siamese)(params)
    value, grads = jax.value_and_grad(lambda p: method.loss(p, state, views, context())[0])(params)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), grads, want_grads)
    value, kept = jax.value_and_grad(lambda p: stopped.loss(p, state, views, context())[0])(params)
    np.testing.assert_allclose(value, want, rtol=1e-5)
    assert np.abs(kept["encoder"]["w"] - grads["encoder"]["w"]).max() > 1e-2


def test_without_stop_gradient_the_values_are_the_targets(make):
    views, params, state = setting(make())
    ctx = context()
    with_, without = (make(stop_gradient=s).loss(params, state, views, ctx) for s in (True, False))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6, 1e-6), with_, without)


@pytest.mark.parametrize("predictor", [None, ConfigDict(), ConfigDict({"widths": ()})])
def test_without_predictor(make, predictor):
    method = make(predictor=predictor)
    views, params, state = setting(method)
    assert set(params) == {"encoder", "projector"}
    value, (new, _) = method.loss(params, state, views, context())
    p1, p2 = (forward(params, state, views[:, i], params)[0] for i in (0, 1))
    z1, z2 = (forward(state["target"], state, views[:, i], params)[0] for i in (0, 1))
    np.testing.assert_allclose(value, distance(p1, z2) + distance(p2, z1), rtol=1e-5)
    assert jax.tree.structure(new) == jax.tree.structure(state)


def test_probing_reads_the_online_encoder_unless_told_otherwise(make):
    views, params, state = setting(make())
    _, (state, _) = make().loss(params, state, views, context())
    online = probed.variables(make(), params, state)
    assert online["params"] is params["encoder"] and online["batch_stats"] is state["encoder"]
    target = probed.variables(make(encoder="target"), params, state)
    assert target["params"] is state["target"]["encoder"]
    assert target["batch_stats"] is state["target_stats"]["encoder"]
    assert set(jax.tree.leaves(make().labels(params))) == {"default"}


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"encoder": "targt"}, "method.encoder is 'targt'. Did you mean target?"),
        ({"initial_target": "onlin"}, "Did you mean online"),
        ({"momentum": 1.5}, "method.momentum is 1.5"),
        ({"predictor": {"widths": (16, 8)}}, "ends with 8; the projector ends with 128"),
    ],
)
def test_wrong_values(make, fields, message):
    with pytest.raises(UserError, match="method") as error:
        make(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "preset, hidden, width, biases",
    [
        ("imagenet", 4096, 256, "linear0"),
        ("cifar10", 4096, 256, "linear0 linear1"),
        ("digits", 512, 128, "linear0"),
        ("peer", 512, 128, "linear1"),
    ],
)
def test_heads_of_the_presets(preset, hidden, width, biases):
    config, _ = configs.load(f"configs/byol.py:{preset}")
    byol.make(config, RUN)
    for head in (config.method.projector, config.method.predictor):
        mlp = heads.MLP(**head)
        shapes = jax.eval_shape(mlp.init, jax.random.key(0), jnp.zeros((2, 3)))["params"]
        assert shapes["linear0"]["kernel"].shape == (3, hidden)
        assert shapes["linear1"]["kernel"].shape == (hidden, width)
        assert {n for n in ("linear0", "linear1") if "bias" in shapes[n]} == set(biases.split())
        assert set(shapes["norm0"]) == {"scale", "bias"} and "norm1" not in shapes
