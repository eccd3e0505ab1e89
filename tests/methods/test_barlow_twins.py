"""Barlow Twins: the authors' loss and gradient, statistics view by view, ablations, its recipe."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.methods import barlow_twins
from ssl_jax.models import heads
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(1_281_167, 2048, 625, 625_000)


class Affine:
    """x @ kernel + bias where it has such parameters, the identity where not."""

    dtype = jnp.float32

    def clone(self, axis):
        return self

    def apply(self, variables, x, train, mutable):
        params = variables["params"]
        return (x @ params["kernel"] + params["bias"] if params else x), {}


def context(axis=None):
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(3), axis)


def make(monkeypatch, encoder=None, preset="imagenet", **changes):
    """The method of a preset with its networks replaced."""
    monkeypatch.setattr(barlow_twins.models, "make", lambda _: encoder or Affine())
    monkeypatch.setattr(barlow_twins.heads, "make", lambda fields, where, **_: Affine())
    config, _ = configs.load(f"configs/barlow_twins.py:{preset}")
    config.method.update(changes)
    return barlow_twins.make(config, RUN)


def value_and_grad(method, views):
    """Loss, its gradient with respect to what goes in, and the metrics."""
    empty = {"encoder": {}, "projector": {}}

    def loss(v):
        value, (_, metrics) = method.loss(empty, empty, v, context())
        return value, metrics

    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(jnp.asarray(views))
    return value, grad, metrics


def test_the_imagenet_preset_has_the_official_loss(monkeypatch):
    golden = np.load(GOLDEN / "barlowtwins_loss.npz")
    views = np.stack([golden["z1"], golden["z2"]], 1)  # [16, 2, 10]
    value, grad, metrics = value_and_grad(make(monkeypatch), views)
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    for i, name in enumerate(("grad_z1", "grad_z2")):
        np.testing.assert_allclose(grad[:, i], golden[name], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(
        metrics["invariance"] + 0.0051 * metrics["redundancy"], golden["loss"], rtol=1e-5
    )


def test_two_devices_have_twice_the_official_gradient(monkeypatch):
    """The official gradient of W processes is 1/W of that of one process with the whole batch."""
    golden = np.load(GOLDEN / "world2_barlow_syncbn.npz")
    method = make(monkeypatch)
    w = golden["param/e.lin.weight"]  # [out, in]
    params = {
        "encoder": {"kernel": jnp.asarray(w.T), "bias": jnp.asarray(golden["param/e.lin.bias"])},
        "projector": {},
    }
    views = np.stack([golden["X1"], golden["X2"]], 2).reshape(8, 2, 12)  # [rank, 4, 2, 12]

    def step(params, views):
        def mean_loss(params):
            empty = {"encoder": {}, "projector": {}}
            value, _ = method.loss(params, empty, views, context(layout.AXIS))
            return collectives.pmean(value, layout.AXIS)

        value, grad = jax.value_and_grad(mean_loss)(params)
        return value, collectives.pmean(grad, layout.AXIS)

    mapped = jax.shard_map(
        step,
        mesh=layout.mesh(jax.devices()[:2]),
        in_specs=(P(), P(layout.AXIS)),
        out_specs=P(),
        check_vma=False,
    )
    value, grad = jax.jit(mapped)(params, views)
    np.testing.assert_allclose([value, value], golden["loss_per_rank"], rtol=1e-5)
    kernel = grad["encoder"]["kernel"].T
    np.testing.assert_allclose(kernel, golden["w1_grad/e.lin.weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(kernel, 2 * golden["ddp_grad/e.lin.weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad["encoder"]["bias"], 0, atol=1e-6)


def test_each_view_has_its_own_batch_statistics(monkeypatch):
    encoder = heads.MLP(widths=(5,), norms=("plain",), biases=(False,))
    method = make(monkeypatch, encoder)
    rng = np.random.default_rng(0)
    views = rng.normal(size=(6, 2, 4)).astype(np.float32)
    views[:, 1] = 3 * views[:, 1] + 2
    variables = encoder.init(jax.random.key(0), views[:, 0])
    state = {"encoder": variables["batch_stats"], "projector": {}}
    params = {"encoder": variables["params"], "projector": {}}
    _, (after, _) = jax.jit(lambda p, v: method.loss(p, state, v, context()))(params, views)

    mean, var = np.zeros(5), np.ones(5)
    for view in (0, 1):  # the running statistics take one step of 0.1 for each view
        y = views[:, view] @ np.asarray(variables["params"]["linear0"]["kernel"])
        mean = 0.9 * mean + 0.1 * y.mean(0)
        var = 0.9 * var + 0.1 * y.var(0, ddof=1)
    np.testing.assert_allclose(after["encoder"]["norm0"]["mean"], mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(after["encoder"]["norm0"]["var"], var, rtol=1e-4)
    assert after["projector"] == {}, "the loss keeps no statistics of its own"


def test_ablations_leave_one_term(monkeypatch):
    golden = np.load(GOLDEN / "barlowtwins_loss.npz")
    views = np.stack([golden["z1"], golden["z2"]], 1)
    _, grad, metrics = value_and_grad(make(monkeypatch), views)
    alone, g_alone, _ = value_and_grad(make(monkeypatch, redundancy=0.0), views)
    np.testing.assert_allclose(alone, metrics["invariance"], rtol=1e-6)
    rest, g_rest, _ = value_and_grad(make(monkeypatch, invariance=0.0), views)
    np.testing.assert_allclose(rest, 0.0051 * metrics["redundancy"], rtol=1e-6)
    np.testing.assert_allclose(g_alone + g_rest, grad, rtol=1e-4, atol=1e-7)
    assert float(jnp.abs(g_alone).max()) > 1e-4 and float(jnp.abs(g_rest).max()) > 1e-4


def test_the_imagenet_optimizer_moves_as_the_official_one_on_16_gpus(monkeypatch):
    """Official numbers on a sixteenth of the gradient are the preset on the whole gradient."""
    config, _ = configs.load("configs/barlow_twins.py:imagenet")
    official = config.optimizer.copy_and_resolve_references()
    official.weight_decay = 1e-6
    official.groups.bias.learning_rate = 0.0048
    rng = np.random.default_rng(0)
    # A gradient of the kernel so small that the decay counts.
    shapes = {"kernel": ((3, 3, 2, 4), 1e-5), "scale": ((4,), 1.0), "bias": ((4,), 1.0)}
    draws = {name: rng.normal(size=(2, *shape)) for name, (shape, _) in shapes.items()}
    params = {name: jnp.asarray(p, jnp.float32) for name, (p, _) in draws.items()}
    grads = {name: shapes[name][1] * jnp.asarray(g) for name, (_, g) in draws.items()}
    labels = make(monkeypatch).labels(params)
    assert labels == {"kernel": "default", "scale": "bias", "bias": "bias"}
    token = make(monkeypatch).labels({"class_token": jnp.zeros(4)})  # (1, 1, 4) in PyTorch
    assert token == {"class_token": "default"}

    def updates(optimizer, scale):
        counts = {"batch": 2048, "steps_per_epoch": 1, "total_steps": 1000}
        rule = optimizers.make(optimizer, params, labels, **counts)
        state, p, taken = rule.init(params), params, []
        for _ in range(4):
            update, state = rule.update(jax.tree.map(lambda g: scale * g, grads), state, p)
            p = optax.apply_updates(p, update)
            taken.append(update)
        return taken[1:]  # the first learning rate of the warm-up is 0

    got, want = updates(config.optimizer, 1.0), updates(official, 1 / 16)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), got, want)
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(got))


@pytest.mark.parametrize("preset", ["imagenet", "cifar10", "digits", "peer"])
def test_the_presets_make_a_method_and_an_optimizer(preset):
    config, _ = configs.load(f"configs/barlow_twins.py:{preset}")
    method = barlow_twins.make(config, RUN)
    params = {"encoder": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    labels = method.labels(params)
    lines = optimizers.describe(
        config.optimizer, params, labels, batch=2048, steps_per_epoch=10, total_steps=1000
    )
    assert ("optimizer[bias]" in "\n".join(lines)) == (preset == "imagenet")
