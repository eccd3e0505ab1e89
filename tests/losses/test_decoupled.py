"""DCL and DCLW: by hand, against the repository's numbers, over devices."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.losses.contrastive import ntxent_metrics
from ssl_jax.losses.decoupled import dcl, von_mises_fisher_weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def views(b, d, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(b, d)).astype(np.float32)
    return z1, (z1 + noise * rng.normal(size=(b, d))).astype(np.float32)


def oracle(z1, z2, temperature, sigma=None):
    """Equations 5 to 7 of the paper, one pair at a time, in float64, averaged over the anchors."""
    z = np.stack([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=2, keepdims=True)
    b = len(z1)
    agree = np.array([z[0, i] @ z[1, i] for i in range(b)])
    weights = np.ones(b)
    if sigma is not None:
        # The shift leaves the quotient as it is.
        shifted = np.exp((agree - agree.max()) / sigma)
        weights = 2 - shifted / shifted.mean()
    total = 0.0
    for i in range(b):
        for k in (0, 1):
            s = [z[k, i] @ z[m, j] / temperature for j in range(b) if j != i for m in (0, 1)]
            high = max(s)
            total += -weights[i] * agree[i] / temperature
            total += high + np.log(np.sum(np.exp(np.array(s) - high)))
    return total / (2 * b)


@functools.cache
def value_and_grad(temperature, sigma):
    def loss(z1, z2):
        return dcl(z1, z2, temperature, sigma)[0]

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


@pytest.mark.parametrize("sigma", [None, 0.5, 0.1])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_equals_the_repository(temperature, sigma):
    golden = np.load(GOLDEN / "dcl.npz")
    name = f"dcl_T{temperature}" if sigma is None else f"dclw_T{temperature}_sigma{sigma}"
    loss, grads = value_and_grad(temperature, sigma)(golden["x1"], golden["x2"])
    # It sums the two directions: twice the mean over 2B.
    np.testing.assert_allclose(2 * loss, golden[f"{name}_loss"], rtol=1e-5)
    for grad, view in zip(grads, ("x1", "x2"), strict=True):
        want = golden[f"{name}_grad_{view}"]
        np.testing.assert_allclose(2 * grad, want, rtol=1e-4, atol=1e-5)


def test_hand_computed():
    # Row 0 lies on the first axis in both views, row 1 on the second; lengths do not matter.
    z1, z2 = jnp.array([[1.0, 0], [0, 2]]), jnp.array([[3.0, 0], [0, 4]])
    # The positive is 1 and both negatives are 0: −1 + log 2.
    np.testing.assert_allclose(dcl(z1, z2, 1.0)[0], np.log(2) - 1, rtol=1e-6)
    # The positive is 0, one negative 1 and one 0, at T = 1/2: log(e² + 1).
    np.testing.assert_allclose(dcl(z1, z2[::-1], 0.5)[0], np.log(1 + np.e**2), rtol=1e-6)


def test_weights_by_hand():
    # exp(s / σ) = 1, 2, 3 with mean 2: w = 2 − 1/2, 2 − 1, 2 − 3/2.
    positive = 0.5 * jnp.log(jnp.array([1.0, 2, 3]))
    np.testing.assert_allclose(von_mises_fisher_weights(positive, 0.5), [1.5, 1, 0.5], rtol=1e-6)
    # A large σ takes the weights away; a small one does not overflow.
    np.testing.assert_allclose(von_mises_fisher_weights(positive, 1e6), np.ones(3), atol=1e-5)
    np.testing.assert_allclose(von_mises_fisher_weights(positive, 1e-4), [2, 2, -1], atol=1e-5)


@pytest.mark.parametrize("sigma", [None, 0.5, 0.02])
@pytest.mark.parametrize("b", [2, 5, 9])
def test_equals_the_definition(b, sigma):
    z1, z2 = views(b, 6, seed=b)
    for temperature in (0.07, 1.0):
        loss, _ = value_and_grad(temperature, sigma)(z1, z2)
        np.testing.assert_allclose(loss, oracle(z1, z2, temperature, sigma), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_gradient_is_the_slope_of_the_definition(sigma):
    z1, z2 = views(4, 3, seed=3)
    d1, d2 = np.random.default_rng(1).normal(size=(2, 4, 3))
    g1, g2 = value_and_grad(0.3, sigma)(z1, z2)[1]
    h = 1e-5
    slope = oracle(z1 + h * d1, z2 + h * d2, 0.3, sigma) - oracle(
        z1 - h * d1, z2 - h * d2, 0.3, sigma
    )
    np.testing.assert_allclose(np.sum(g1 * d1) + np.sum(g2 * d2), slope / (2 * h), rtol=1e-3)


def test_extreme_temperature():
    # Logits of ±1000: the repository's mask of −103 would be short here.
    z1, z2 = views(5, 4, seed=2)
    for a, b in ((z1, z2), (z1, -z1), (z1, z1)):
        loss, grads = value_and_grad(0.001, None)(a, b)
        np.testing.assert_allclose(loss, oracle(a, b, 0.001), rtol=1e-5, atol=1e-3)
        assert np.isfinite(grads).all()


def test_metrics_are_those_of_ntxent():
    z1, z2 = views(12, 4)
    got, want = dcl(z1, z2, 0.1)[1], ntxent_metrics(z1, z2, 0.1)[1]
    assert set(got) == set(want) and 0 < want["contrastive_accuracy"] < 1
    for name, value in want.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-5)


@pytest.mark.parametrize("sigma", [None, 0.5])
def test_four_devices_equal_one(sigma):
    x1, x2 = views(8, 6, noise=2.0)
    w = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)

    def step(x1, x2, axis):
        """Loss and gradient of a shared encoder's weights, averaged as the training step does."""

        def mean_loss(w):
            loss, metrics = dcl(x1 @ w, x2 @ w, 0.2, sigma, axis)
            return collectives.pmean(loss, axis), collectives.pmean(metrics, axis)

        (loss, metrics), grad = jax.value_and_grad(mean_loss, has_aux=True)(jnp.asarray(w))
        return loss, metrics, collectives.pmean(grad, axis)

    rows = P(layout.AXIS)
    mapped = jax.shard_map(
        lambda *x: step(*x, layout.AXIS),
        mesh=layout.mesh(),
        in_specs=(rows, rows),
        out_specs=P(),
        check_vma=False,
    )
    got, want = jax.jit(mapped)(x1, x2), jax.jit(lambda *x: step(*x, None))(x1, x2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


def test_errors():
    z = jnp.ones((4, 3))
    with pytest.raises(UserError, match="temperature"):
        dcl(z, z, 0.0)
    with pytest.raises(UserError, match="sigma"):
        dcl(z, z, 0.1, sigma=-1.0)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
        dcl(z, jnp.ones((4, 2)), 0.1)
    with pytest.raises(ValueError, match="no negatives"):
        dcl(z[:1], z[:1], 0.1)
