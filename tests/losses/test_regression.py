"""BYOL's and SimSiam's losses: the authors' numbers, hand-computed values, degenerate rows."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.losses.regression import negative_cosine, squared_distance

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def test_byol_by_the_row_and_in_both_directions():
    golden = np.load(GOLDEN / "byol_loss.npz")
    p1, p2, z1, z2 = (golden[k] for k in ("p1", "p2", "z1", "z2"))
    rows = jax.vmap(lambda p, z: squared_distance(p[None], z[None]))(p1, z2)
    np.testing.assert_allclose(rows, golden["per_sample_p1_z2"], rtol=1e-5)

    def both(p1, p2):
        return squared_distance(p1, z2) + squared_distance(p2, z1)

    loss, grads = jax.value_and_grad(both, (0, 1))(p1, p2)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads[0], golden["grad_p1"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(grads[1], golden["grad_p2"], rtol=1e-4, atol=1e-7)


def test_simsiam_in_both_directions():
    golden = np.load(GOLDEN / "simsiam_loss.npz")
    p1, p2, z1, z2 = (golden[k] for k in ("p1", "p2", "z1", "z2"))

    def both(p1, p2):
        return (negative_cosine(p1, z2) + negative_cosine(p2, z1)) / 2

    loss, grads = jax.value_and_grad(both, (0, 1))(p1, p2)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grads[0], golden["grad_p1"], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(grads[1], golden["grad_p2"], rtol=1e-4, atol=1e-7)


def test_by_hand():
    # Rows at 0°, 90° and 180°; lengths do not matter.
    p = jnp.array([[2.0, 0], [2, 0], [2, 0]])
    z = jnp.array([[3.0, 0], [0, 5], [-1, 0]])
    np.testing.assert_allclose(squared_distance(p, z), (0 + 2 + 4) / 3, rtol=1e-6)
    np.testing.assert_allclose(negative_cosine(p[:2], z[:2]), -(1 + 0) / 2, rtol=1e-6)
    np.testing.assert_allclose(negative_cosine(p[2:], z[2:]), 1.0, rtol=1e-6)


def test_one_is_the_other_in_another_scale_and_nothing_is_stopped():
    rng = np.random.default_rng(0)
    p, z = rng.normal(size=(2, 5, 7)).astype(np.float32)
    np.testing.assert_allclose(squared_distance(p, z), 2 + 2 * negative_cosine(p, z), rtol=1e-6)
    for loss in (squared_distance, negative_cosine):
        by_target = jax.grad(loss, 1)(p, z)
        np.testing.assert_allclose(by_target, jax.grad(loss)(z, p), atol=1e-7)
        assert np.abs(by_target).max() > 0.01


@pytest.mark.parametrize(
    # The official codes divide by max(‖x‖, 1e-6), and by max(‖x‖, 1e-8).
    "loss, least, at_zero",
    [(squared_distance, 1e-6, 1.0), (negative_cosine, 1e-8, 0.0)],
)
def test_rows_near_zero(loss, least, at_zero):
    unit = jnp.array([[0.6, 0.8]])
    for length, cosine in ((least * 10, 1.0), (least / 2, 0.5)):
        # Half a unit vector against a whole one: distance 1/4, cosine 1/2.
        want = (1 - cosine) ** 2 if loss is squared_distance else -cosine
        np.testing.assert_allclose(loss(unit * length, unit), want, rtol=1e-5, atol=1e-6)
    value, grad = jax.value_and_grad(loss)(jnp.zeros((1, 2)), unit)
    np.testing.assert_allclose(value, at_zero, atol=1e-7)
    assert np.isfinite(grad).all()


@pytest.mark.parametrize("loss", [squared_distance, negative_cosine])
def test_bfloat16_is_computed_in_float32(loss):
    rng = np.random.default_rng(0)
    p, z = jnp.asarray(rng.normal(size=(2, 4, 64)), jnp.bfloat16)
    value = loss(p, z)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, loss(p.astype(jnp.float32), z.astype(jnp.float32)))


@pytest.mark.parametrize("loss", [squared_distance, negative_cosine])
@pytest.mark.parametrize("shapes", [((4, 3), (4, 2)), ((4, 3), (1, 3)), ((3,), (3,))])
def test_shapes_that_would_broadcast_are_refused(loss, shapes):
    with pytest.raises(ValueError, match="both must be one"):
        loss(jnp.ones(shapes[0]), jnp.ones(shapes[1]))
