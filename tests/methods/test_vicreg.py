"""VICReg: the authors' loss and gradient on one and two devices, statistics, ablations."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.methods import vicreg
from ssl_jax.models import heads
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(1_281_167, 2048, 625, 625_000)
TERMS = ("invariance", "variance", "covariance")


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


def make(monkeypatch, encoder=None, **changes):
    """The method of the imagenet preset with its networks replaced."""
    monkeypatch.setattr(vicreg.models, "make", lambda _: encoder or Affine())
    monkeypatch.setattr(vicreg.heads, "make", lambda fields, where, **_: Affine())
    config, _ = configs.load("configs/vicreg.py:imagenet")
    config.method.update(changes)
    return vicreg.make(config, RUN)


@pytest.mark.parametrize("name", ["full", "sim", "std", "cov"])
def test_the_official_loss_with_all_weights_or_one(monkeypatch, name):
    golden = np.load(GOLDEN / "vicreg_loss.npz")
    alone = {"sim": "invariance", "std": "variance", "cov": "covariance"}
    changes = {} if name == "full" else {t: float(t == alone[name]) for t in TERMS}
    method = make(monkeypatch, **changes)
    empty = {"encoder": {}, "projector": {}}

    def loss(views):
        value, (_, metrics) = method.loss(empty, empty, views, context())
        return value, metrics

    views = jnp.stack([golden["x"], golden["y"]], 1)  # [16, 2, 10]
    (value, metrics), grad = jax.value_and_grad(loss, has_aux=True)(views)
    np.testing.assert_allclose(value, golden[f"loss_{name}"], rtol=1e-5)
    for i, view in enumerate("xy"):
        want = golden[f"grad_{view}_{name}"]
        np.testing.assert_allclose(grad[:, i], want, rtol=1e-4, atol=1e-6)
    for term, of in (("sim", "invariance"), ("std", "variance"), ("cov", "covariance")):
        np.testing.assert_allclose(metrics[of], golden[f"loss_{term}"], rtol=1e-5)


def test_two_devices_have_the_official_loss_and_gradient(monkeypatch):
    golden = np.load(GOLDEN / "world2_vicreg.npz")
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
            return collectives.pmean(value, layout.AXIS), value[None]

        (value, own), grad = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return value, own, collectives.pmean(grad, layout.AXIS)

    mapped = jax.shard_map(
        step,
        mesh=layout.mesh(jax.devices()[:2]),
        in_specs=(P(), P(layout.AXIS)),
        out_specs=(P(), P(layout.AXIS), P()),
        check_vma=False,
    )
    value, own, grad = jax.jit(mapped)(params, views)
    np.testing.assert_allclose(own, golden["loss_per_rank"], rtol=1e-5)
    np.testing.assert_allclose(value, golden["w1_loss"], rtol=1e-5)
    kernel = grad["encoder"]["kernel"].T
    for reference in ("ddp_grad", "w1_grad"):
        want = golden[f"{reference}/e.lin.weight"]
        np.testing.assert_allclose(kernel, want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(grad["encoder"]["bias"], 0, atol=1e-5)


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


@pytest.mark.parametrize("preset", ["imagenet", "cifar10", "digits", "peer"])
def test_the_presets_make_a_method(preset):
    config, _ = configs.load(f"configs/vicreg.py:{preset}")
    vicreg.make(config, RUN)
    weights = [config.method[term] for term in TERMS]
    # solo-learn's variance is the sum of the two views, ours their mean.
    assert weights == ([25, 50, 1] if preset == "cifar10" else [25, 25, 1])


def test_the_projector_has_the_official_layers():
    config, _ = configs.load("configs/vicreg.py:digits")
    head = heads.MLP(**config.method.projector)
    variables = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((2, 128)))
    names = {layer: set(fields) for layer, fields in variables["params"].items()}
    hidden, norm = {"kernel", "bias"}, {"scale", "bias"}
    assert names == {
        "linear0": hidden,
        "norm0": norm,
        "linear1": hidden,
        "norm1": norm,
        "linear2": {"kernel"},
    }
