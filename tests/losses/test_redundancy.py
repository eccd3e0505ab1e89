"""Barlow Twins' and VICReg's terms: by hand, against the authors' numbers, over devices."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.losses import redundancy

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
COEFFICIENTS = {"sim": (1, 0, 0), "std": (0, 1, 0), "cov": (0, 0, 1), "full": (25, 25, 1)}


def views(b, d, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(b, d)) * rng.uniform(0.2, 2, d) + offset
    z2 = z1 + 0.5 * rng.normal(size=(b, d))
    return z1.astype(np.float32), z2.astype(np.float32)


def barlow_oracle(z1, z2):
    """Equations 1 and 2 of the paper in float64, with the code's epsilon in the variance."""
    z1, z2 = (
        (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) for z in (z1.astype(float), z2.astype(float))
    )
    c = z1.T @ z2 / len(z1)
    off = c[~np.eye(len(c), dtype=bool)]
    return {"invariance": np.sum((1 - np.diag(c)) ** 2), "redundancy": np.sum(off**2)}


def vicreg_oracle(z1, z2):
    """The official code's three terms in float64."""
    z1, z2 = z1.astype(float), z2.astype(float)
    d = z1.shape[1]
    terms = {"invariance": np.mean((z1 - z2) ** 2), "variance": 0.0, "covariance": 0.0}
    for z in (z1, z2):
        c = np.cov(z, rowvar=False)
        std = np.sqrt(z.var(0, ddof=1) + 1e-4)
        terms["variance"] += np.maximum(1 - std, 0).mean() / 2
        terms["covariance"] += np.sum(c[~np.eye(d, dtype=bool)] ** 2) / d
    return terms


@pytest.mark.parametrize("b,d", [(2, 3), (7, 5), (16, 40)])
@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_equals_the_definition(name, b, d):
    oracle = {"barlow_twins": barlow_oracle, "vicreg": vicreg_oracle}[name]
    z1, z2 = views(b, d)
    terms = getattr(redundancy, name)(z1, z2)
    want = oracle(z1, z2)
    assert set(terms) == set(want)
    for term, value in want.items():
        assert terms[term].dtype == jnp.float32
        np.testing.assert_allclose(terms[term], value, rtol=2e-5, atol=1e-6, err_msg=term)


def test_barlow_equals_the_official_code():
    golden = np.load(GOLDEN / "barlowtwins_loss.npz")

    def loss(z1, z2):
        terms = redundancy.barlow_twins(z1, z2)
        return terms["invariance"] + 0.0051 * terms["redundancy"]

    value, grads = jax.value_and_grad(loss, (0, 1))(golden["z1"], golden["z2"])
    np.testing.assert_allclose(value, golden["loss"], rtol=1e-5)
    for grad, name in zip(grads, ("grad_z1", "grad_z2"), strict=True):
        np.testing.assert_allclose(grad, golden[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_vicreg_equals_the_official_code(name):
    golden = np.load(GOLDEN / "vicreg_loss.npz")
    sim, std, cov = COEFFICIENTS[name]

    def loss(x, y):
        t = redundancy.vicreg(x, y)
        return sim * t["invariance"] + std * t["variance"] + cov * t["covariance"]

    value, grads = jax.value_and_grad(loss, (0, 1))(golden["x"], golden["y"])
    np.testing.assert_allclose(value, golden[f"loss_{name}"], rtol=1e-5)
    for grad, view in zip(grads, "xy", strict=True):
        want = golden[f"grad_{view}_{name}"]
        np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)


def test_hand_computed():
    # Feature 1 is feature 0 mirrored; each has variance 1 (biased) or 4/3 (unbiased).
    z = jnp.array([[1.0, -1], [1, -1], [-1, 1], [-1, 1]])
    c = redundancy.cross_correlation(z, 3 * z + 5)  # scale and offset do not matter
    np.testing.assert_allclose(c, [[1, -1], [-1, 1]], atol=1e-5)
    terms = redundancy.barlow_twins(z, z)
    np.testing.assert_allclose(terms["invariance"], 0, atol=1e-8)
    np.testing.assert_allclose(terms["redundancy"], 2, rtol=1e-4)  # both triangles
    # A constant feature correlates with nothing: (1 − 0)² for each.
    flat = redundancy.barlow_twins(jnp.ones((4, 3)), jnp.ones((4, 3)))
    np.testing.assert_allclose(flat["invariance"], 3)
    np.testing.assert_allclose(flat["redundancy"], 0)

    terms = redundancy.vicreg(z, z + 2)
    np.testing.assert_allclose(terms["invariance"], 4, rtol=1e-6)
    np.testing.assert_allclose(terms["variance"], 0)  # both deviations are above 1
    # Off the diagonal −4/3 twice; (2 · 16/9) / 2 for each of two views.
    np.testing.assert_allclose(terms["covariance"], 32 / 9, rtol=1e-5)
    half = redundancy.vicreg(0.25 * z, 0.25 * z)  # deviation 0.25 √(4/3)
    np.testing.assert_allclose(half["variance"], 1 - np.sqrt(1 / 12 + 1e-4), rtol=1e-5)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_small_spread_far_from_zero_keeps_its_digits(name):
    z1, z2 = views(32, 6, offset=300.0)
    oracle = {"barlow_twins": barlow_oracle, "vicreg": vicreg_oracle}[name](z1, z2)
    for term, value in getattr(redundancy, name)(z1, z2).items():
        np.testing.assert_allclose(value, oracle[term], rtol=1e-3, err_msg=term)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_collapsed_features_have_finite_gradients(name):
    def loss(z1, z2):
        return sum(getattr(redundancy, name)(z1, z2).values())

    for z in (jnp.zeros((4, 3)), jnp.full((4, 3), 7.0)):
        value, grads = jax.value_and_grad(loss, (0, 1))(z, z)
        assert np.isfinite(value) and np.isfinite(grads).all()


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_bfloat16_inputs_are_computed_in_float32(name):
    z1, z2 = (jnp.asarray(z, jnp.bfloat16) for z in views(16, 5))
    oracle = {"barlow_twins": barlow_oracle, "vicreg": vicreg_oracle}[name]
    want = oracle(np.asarray(z1, np.float32), np.asarray(z2, np.float32))
    for term, value in getattr(redundancy, name)(z1, z2).items():
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, want[term], rtol=1e-5, err_msg=term)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_four_devices_equal_one(name):
    """Values and the gradient of shared weights, averaged as the training step does."""
    x1, x2 = views(12, 6)
    w = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)

    def step(x1, x2, axis):
        def mean_loss(w):
            terms = getattr(redundancy, name)(x1 @ w, x2 @ w, axis)
            # Unequal weights, so that no term hides another.
            loss = sum(k * v for k, v in enumerate(terms.values(), 1))
            return collectives.pmean(loss, axis), collectives.pmean(terms, axis)

        (loss, terms), grad = jax.value_and_grad(mean_loss, has_aux=True)(jnp.asarray(w))
        return loss, terms, collectives.pmean(grad, axis)

    rows = P(layout.AXIS)
    mapped = jax.shard_map(
        lambda *x: step(*x, layout.AXIS),
        mesh=layout.mesh(),
        in_specs=(rows, rows),
        out_specs=P(),
        check_vma=False,
    )
    got, want = jax.jit(mapped)(x1, x2), jax.jit(lambda *x: step(*x, None))(x1, x2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, want)


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg"])
def test_errors(name):
    f = getattr(redundancy, name)
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(4, 2\)"):
        f(jnp.ones((4, 3)), jnp.ones((4, 2)))
    with pytest.raises(ValueError, match=r"must be one \[b, d\]"):
        f(jnp.ones((2, 4, 3)), jnp.ones((2, 4, 3)))


def test_vicreg_needs_two_rows():
    with pytest.raises(ValueError, match="at least two rows"):
        redundancy.vicreg(jnp.ones((1, 3)), jnp.ones((1, 3)))
