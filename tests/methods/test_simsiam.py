"""SimSiam: the authors' loss through the method, one view at a time, groups, ablations."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util
from kit import probed
from ml_collections import ConfigDict

from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.methods import simsiam
from ssl_jax.models import heads
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(examples=4000, batch=8, steps_per_epoch=500, total_steps=1000)
ONLINE = ("encoder", "projector", "predictor")


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
    """make(centred=…, **fields of config.method) -> SimSiam with networks of one matrix."""

    def make(centred=True, preset="digits", **fields):
        monkeypatch.setattr(simsiam.models, "make", lambda _: Net(centred))
        monkeypatch.setattr(simsiam.heads, "make", lambda fields, where, **_: Net(centred, fields))
        config, _ = configs.load(f"configs/simsiam.py:{preset}")
        with config.unlocked():
            for name, value in fields.items():
                config.method[name] = value
        return simsiam.make(config, RUN)

    return make


def context():
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(3), None)


def setting(method, seed=0):
    """(views [8, 2, 6], params, state): the views of an image are alike."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(8, 1, 6))
    views = jnp.asarray(image + 0.5 * rng.normal(size=(8, 2, 6)) + 1, jnp.float32)
    return views, *method.init(jax.random.key(seed), views)


def value_and_grad(method, params, state, views):
    return jax.value_and_grad(lambda p: method.loss(p, state, views, context())[0])(params)


def by_hand(params, views, names=ONLINE, stop=lambda z: z):
    """−(cos(p1, z2) + cos(p2, z1))/2 in one differentiable piece."""

    def cosine(p, z):
        return ((p * z).sum(1) / jnp.linalg.norm(p, axis=1) / jnp.linalg.norm(z, axis=1)).mean()

    def side(x, names):
        for name in names:
            x = (x - x.mean(0) + 1) @ params[name]["w"]
        return x

    p1, p2 = (side(views[:, i], names) for i in (0, 1))
    z1, z2 = (stop(side(views[:, i], ONLINE[:2])) for i in (0, 1))
    return -(cosine(p1, z2) + cosine(p2, z1)) / 2


def test_official_loss_and_gradient(make):
    """The preset `imagenet` on the authors' numbers, its predictor the matrix that makes p of z."""
    golden = np.load(GOLDEN / "simsiam_loss.npz")
    method = make(centred=False, preset="imagenet")
    z, p = (np.concatenate([golden[k + "1"], golden[k + "2"]]) for k in "zp")  # [16, 16]
    w = np.linalg.solve(z.astype(np.float64), p).astype(np.float32)
    params = {name: {"w": jnp.eye(16)} for name in ONLINE} | {"predictor": {"w": w}}
    state = {name: {"mean": jnp.zeros(16)} for name in ONLINE}
    views = jnp.stack([golden["z1"], golden["z2"]], 1)

    def loss(views, params):
        return method.loss(params, state, views, context())[0]

    value, (by_views, by_params) = jax.value_and_grad(loss, (0, 1))(views, params)
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-4)
    for i, name in enumerate(("grad_p1", "grad_p2")):  # through the predictor alone
        np.testing.assert_allclose(by_views[:, i], golden[name] @ w.T, rtol=1e-4, atol=1e-5)
    want = golden["z1"].T @ golden["grad_p1"] + golden["z2"].T @ golden["grad_p2"]
    np.testing.assert_allclose(by_params["predictor"]["w"], want, rtol=1e-4, atol=1e-5)


def test_every_network_sees_one_view_at_a_time(make):
    method = make()
    views, params, state = setting(method)
    assert np.abs(params["projector"]["w"] - params["predictor"]["w"]).max() > 0.1
    value, grads = value_and_grad(method, params, state, views)
    want = jax.value_and_grad(by_hand)(params, views, stop=jax.lax.stop_gradient)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), grads, want[1])

    _, (new, metrics) = method.loss(params, state, views, context())
    x1, x2 = views[:, 0], views[:, 1]
    for name in ONLINE:  # from zero, half the way to view 1, then half the way to view 2
        want = x1.mean(0) / 4 + x2.mean(0) / 2
        np.testing.assert_allclose(new[name]["mean"], want, rtol=1e-4, atol=1e-5)
        x1, x2 = ((x - x.mean(0) + 1) @ params[name]["w"] for x in (x1, x2))
        if name == "projector":
            unit = [z / jnp.linalg.norm(z, axis=1, keepdims=True) for z in (x1, x2)]
    similarity = (unit[0] * unit[1]).sum(1).mean()
    np.testing.assert_allclose(metrics["projection_similarity"], similarity, rtol=1e-4)


def test_without_stop_gradient(make):
    method, stopped = make(stop_gradient=False), make()
    views, params, state = setting(method)
    value, grads = value_and_grad(method, params, state, views)
    want = jax.value_and_grad(by_hand)(params, views)
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-6), grads, want[1])
    same, other = value_and_grad(stopped, params, state, views)
    np.testing.assert_allclose(same, value, rtol=1e-6)
    assert np.abs(other["encoder"]["w"] - grads["encoder"]["w"]).max() > 1e-3


@pytest.mark.parametrize("predictor", [None, ConfigDict(), ConfigDict({"widths": ()})])
def test_without_predictor_stop_gradient_halves_the_gradient(make, predictor):
    """Section 4.2 of the paper: then both directions have one gradient."""
    method = make(predictor=predictor)
    views, params, state = setting(method)
    assert set(params) == set(state) == {"encoder", "projector"}
    value, grads = value_and_grad(method, params, state, views)
    want = jax.value_and_grad(by_hand)(params, views, names=ONLINE[:2])
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(2 * a, b, 1e-4, 1e-6), grads, want[1])
    assert "predictor" not in jax.tree.leaves(method.labels(params))


def test_probing_reads_the_encoder(make):
    _, params, state = setting(make())
    variables = probed.variables(make(), params, state)
    assert variables == {"params": params["encoder"], "batch_stats": state["encoder"]}


def networks(config):
    """Parameters as the method names them: the config's heads and a one-block encoder."""
    params = {"encoder": {"conv": {"kernel": jnp.ones((3, 3))}, "bn": {"scale": jnp.ones(3)}}}
    for name, width in (("projector", 3), ("predictor", 8)):
        mlp = heads.MLP(**config.method[name])
        params[name] = mlp.init(jax.random.key(0), jnp.zeros((2, width)))["params"]
    return params


@pytest.mark.parametrize("preset, layers", [("imagenet", 3), ("cifar10", 2)])
def test_official_groups_of_the_optimizer(preset, layers):
    """Weight decay alone moves the parameters here, so the update tells each one's rate."""
    config, _ = configs.load(f"configs/simsiam.py:{preset}")
    config.method.projector.widths = (8,) * layers
    config.method.predictor.widths = (4, 8)
    method = simsiam.make(config, RUN)
    params = networks(config)
    peak = config.optimizer.learning_rate * 2  # batch 512
    config.optimizer.momentum = 0.0
    optimizer = optimizers.make(
        config.optimizer,
        params,
        method.labels(params),
        batch=512,
        steps_per_epoch=2,
        total_steps=4,
    )
    opt_state = optimizer.init(params)
    nothing = jax.tree.map(jnp.zeros_like, params)
    for factor in (1.0, 1.0, 0.5, 0.5):  # the cosine at epochs 0 and 1 of 2
        updates, opt_state = optimizer.update(nothing, opt_state, params)
        flat, old = (traverse_util.flatten_dict(t, sep="/") for t in (updates, params))
        frozen = f"projector/linear{layers - 1}/bias"
        assert frozen in flat and np.abs(old[frozen]).max() > 0
        for name, update in flat.items():
            rate = peak * (1.0 if name.startswith("predictor/") else factor)
            rate = 0.0 if name == frozen else rate
            want = -rate * config.optimizer.weight_decay * old[name]
            np.testing.assert_allclose(update, want, rtol=1e-5, err_msg=name)
        params = optax.apply_updates(params, updates)


def test_the_frozen_bias_is_the_one_that_batchnorm_cancels():
    config, _ = configs.load("configs/simsiam.py:digits")
    labels = simsiam.make(config, RUN).labels(networks(config))
    flat = traverse_util.flatten_dict(labels, sep="/")
    assert [n for n, label in flat.items() if label == "frozen"] == ["projector/linear2/bias"]
    assert {n for n, label in flat.items() if label == "predictor"} == {
        f"predictor/{n}"
        for n in ("linear0/kernel", "norm0/scale", "norm0/bias", "linear1/kernel", "linear1/bias")
    }
    config.method.projector.norms = ("affine", "affine", "none")
    assert "frozen" not in jax.tree.leaves(simsiam.make(config, RUN).labels(networks(config)))


@pytest.mark.parametrize(
    "preset, widths, predictor",
    [
        ("imagenet", (2048, 2048, 2048), (512, 2048)),
        ("cifar10", (2048, 2048), (512, 2048)),
        ("digits", (512, 512, 512), (128, 512)),
        ("peer", (512, 512, 512), (128, 512)),
    ],
)
def test_heads_of_the_presets(preset, widths, predictor):
    config, _ = configs.load(f"configs/simsiam.py:{preset}")
    simsiam.make(config, RUN)
    assert config.method.projector.widths == widths
    assert config.method.predictor.widths == predictor
    params = networks(config)
    last = len(widths) - 1
    assert "bias" not in params["projector"]["linear0"], "BatchNorm follows"
    assert f"norm{last}" not in params["projector"], "the last one has no parameters"
    assert config.method.projector.norms[last] == "plain"
    assert ("bias" in params["projector"][f"linear{last}"]) == (preset != "peer")
    assert "bias" not in params["predictor"]["linear0"] and "norm1" not in params["predictor"]
    assert "bias" in params["predictor"]["linear1"]


def test_a_predictor_of_another_width(make):
    with pytest.raises(UserError, match="ends with 64; the projector ends with 512"):
        make(predictor=ConfigDict({"widths": (128, 64)}))
