"""DCL: the repository's loss through the method, weighted and not; SimCLR in all else."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.methods import dcl, simclr
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(1_281_167, 256, 5004, 1_000_800)


class Identity:
    dtype = jnp.float32

    def clone(self, axis):
        return self

    def apply(self, variables, x, train, mutable):
        return x, {}


def context():
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(3), None)


def value_and_grad(monkeypatch, preset, **changes):
    """Loss and gradient on the golden projections, the networks taken out."""
    golden = np.load(GOLDEN / "dcl.npz")
    config, _ = configs.load(f"configs/dcl.py:{preset}")
    config.method.update(changes)
    monkeypatch.setattr(dcl.models, "make", lambda _: Identity())
    monkeypatch.setattr(dcl.heads, "make", lambda fields, where, **_: Identity())
    method = dcl.make(config, RUN)
    empty = {"encoder": {}, "projector": {}}
    views = jnp.stack([golden["x1"], golden["x2"]], 1)  # [8, 2, 12]
    return jax.value_and_grad(lambda v: method.loss(empty, empty, v, context())[0])(views)


@pytest.mark.parametrize("preset", ["imagenet", "cifar10"])
@pytest.mark.parametrize(
    "name,changes",
    [
        ("dcl_T0.1", {}),
        ("dcl_T0.5", {"temperature": 0.5}),
        ("dcl_T0.1", {"sigma": 0.1}),  # not read where weighted is False
        ("dclw_T0.1_sigma0.5", {"weighted": True}),
        ("dclw_T0.5_sigma0.1", {"weighted": True, "temperature": 0.5, "sigma": 0.1}),
    ],
)
def test_the_presets_have_the_loss_of_the_repository(monkeypatch, preset, name, changes):
    golden = np.load(GOLDEN / "dcl.npz")
    loss, grad = value_and_grad(monkeypatch, preset, **changes)
    np.testing.assert_allclose(loss, golden[f"{name}_loss"], rtol=1e-5)
    for i, view in enumerate(("x1", "x2")):
        want = golden[f"{name}_grad_{view}"]
        np.testing.assert_allclose(grad[:, i], want, rtol=1e-4, atol=1e-5)


def test_small_presets_average_the_two_directions(monkeypatch):
    golden = np.load(GOLDEN / "dcl.npz")
    loss, _ = value_and_grad(monkeypatch, "digits", temperature=0.1)
    np.testing.assert_allclose(2 * loss, golden["dcl_T0.1_loss"], rtol=1e-5)


def test_networks_views_and_statistics_are_those_of_simclr():
    config, _ = configs.load("configs/dcl.py:digits")
    config.model.width, config.model.blocks = 8, (1,)
    config.method.projector.widths = (16, 8)
    like, _ = configs.load("configs/simclr.py:digits")
    like.model = config.model
    like.method.projector = config.method.projector
    image = np.random.default_rng(0).integers(0, 255, (8, 28, 28, 1), dtype=np.uint8)

    @jax.jit
    def run(image):
        results = []
        for method in (dcl.make(config, RUN), simclr.make(like, RUN)):
            views = method.views(jax.random.key(1), {"image": image}, context())
            params, state = method.init(jax.random.key(0), views)
            _, (after, _) = method.loss(params, state, views, context())
            results.append((views, params, after))
        return results

    ours, theirs = run(image)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), ours, theirs)


@pytest.mark.parametrize("preset", ["imagenet", "cifar10", "digits", "peer"])
def test_the_presets_make_a_method(preset):
    config, _ = configs.load(f"configs/dcl.py:{preset}")
    method = dcl.make(config, RUN)
    assert set(jax.tree.leaves(method.labels({"a": jnp.ones(2)}))) == {"default"}
    assert config.method.weighted is False and config.method.sigma == 0.5


def test_a_temperature_of_zero_is_refused(monkeypatch):
    with pytest.raises(UserError, match="temperature"):
        value_and_grad(monkeypatch, "digits", temperature=0.0)
    with pytest.raises(UserError, match="sigma"):
        value_and_grad(monkeypatch, "digits", weighted=True, sigma=0.0)
