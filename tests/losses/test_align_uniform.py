"""Alignment and uniformity against the authors' code."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.losses.align_uniform import alignment, uniformity

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "align_uniform.npz")
X, Y = GOLDEN["x"], GOLDEN["y"]


@pytest.mark.parametrize("alpha", [1, 2])
def test_alignment_equals_the_authors(alpha):
    value, grads = jax.value_and_grad(alignment, (0, 1))(X, Y, alpha)
    np.testing.assert_allclose(value, GOLDEN[f"align_a{alpha}"], rtol=1e-6)
    for got, name in zip(grads, "xy", strict=True):
        np.testing.assert_allclose(got, GOLDEN[f"align_a{alpha}_grad_{name}"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("t", [2, 3])
def test_uniformity_equals_the_authors(t):
    value, grad = jax.value_and_grad(uniformity)(X, t)
    np.testing.assert_allclose(value, GOLDEN[f"uniform_t{t}"], rtol=1e-5)
    np.testing.assert_allclose(grad, GOLDEN[f"uniform_t{t}_grad_x"], rtol=1e-4, atol=1e-7)


def test_their_ends():
    same = np.tile(X[:1], (5, 1))
    assert alignment(same, same) == 0 and abs(float(uniformity(same))) < 1e-6
    assert alignment(X, -X) == pytest.approx(4, rel=1e-6)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(2_000, 128)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    assert float(uniformity(jnp.asarray(z))) == pytest.approx(-4, abs=0.1)


def test_what_would_be_broadcast_is_refused():
    with pytest.raises(AssertionError, match=r"\(1, 2\)"):
        alignment(jnp.ones((3, 2)), jnp.ones((1, 2)))
