"""The two forms of instance discrimination against the authors' numbers, and their bank."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.losses import instance
from ssl_jax.train.state import written

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def unit(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@functools.cache
def softmax(temperature, chunk=None):
    loss = functools.partial(instance.full_softmax, temperature=temperature, chunk=chunk)
    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize("chunk", [None, 1, 7, 25, 50, 64])
def test_full_softmax_of_the_official_code(chunk):
    golden = np.load(GOLDEN / "instdisc_full_softmax.npz")
    loss, grad = softmax(0.07, chunk)(golden["x"], golden["memory_init"], golden["y"])
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grad, golden["grad_x"], rtol=1e-4, atol=1e-5)
    bank = written(instance.update_bank(golden["memory_init"], golden["y"], golden["x"], 0.5))
    np.testing.assert_allclose(bank, golden["memory_after"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("n, chunk, temperature", [(9, 4, 0.5), (33, 8, 0.1), (5, 3, 0.02)])
def test_full_softmax_by_the_formula(n, chunk, temperature):
    z, bank, index = unit(4, 3), unit(n, 3, seed=1), np.array([0, n - 1, 2, 2], np.int32)
    logits = z.astype(np.float64) @ bank.T / temperature
    want = np.log(np.exp(logits).sum(1)) - logits[np.arange(4), index]
    loss, _ = softmax(temperature, chunk)(z, bank, index)
    np.testing.assert_allclose(loss, want.mean(), rtol=1e-5)


def test_nce_of_the_official_code():
    """Three steps: Z of the first stays; the third has a repeated id."""
    golden = np.load(GOLDEN / "instdisc_nce.npz")
    bank, z = jnp.asarray(golden["memory_init"]), jnp.zeros(())
    f = jax.jit(jax.value_and_grad(functools.partial(instance.nce, temperature=0.07), has_aux=True))
    for k in range(3):
        x, index = golden["x"][k], golden["y"][k]
        (loss, z), grad = f(x, bank, index, golden["noise"][k], normaliser=z)
        np.testing.assert_allclose(loss, golden["loss"][k], rtol=1e-4)
        np.testing.assert_allclose(grad, golden["grad_x"][k], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(z, golden["Z"][k], rtol=1e-4)
        bank = written(instance.update_bank(bank, index, x, 0.5))
        np.testing.assert_allclose(bank, golden["memory"][k], rtol=1e-4, atol=1e-6)


def test_nce_by_hand():
    # T = 1 and orthogonal rows: exp(1) for the own row, exp(0) for the two of noise; N = 4.
    bank, z = jnp.eye(4), jnp.eye(4)[:1]
    index, noise = jnp.array([0]), jnp.array([[1, 3]])
    loss, normaliser = instance.nce(z, bank, index, noise, 1.0, jnp.zeros(()))
    want_z = 4 * (np.e + 2) / 3
    np.testing.assert_allclose(normaliser, want_z, rtol=1e-6)
    c, own, other = 2 / 4, np.e / want_z, 1 / want_z
    want = -np.log(own / (own + c)) - 2 * np.log(c / (other + c))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    _, kept = instance.nce(z, bank, index, noise, 1.0, jnp.float32(7.0))
    assert kept == 7.0


def test_nce_of_many_rows():
    """With 1 of 500,000 rows as noise, c = 2e-6 and ε = 1e-7 of the official code shows."""
    n = 500_000
    bank = np.random.default_rng(0).uniform(-1, 1, (n, 1)).astype(np.float32)
    z, index, noise = np.ones((2, 1), np.float32), np.array([7, n - 1]), np.array([[5], [n // 2]])
    loss, _ = instance.nce(z, jnp.asarray(bank), index, noise, 1.0, 2.0 * n)
    own, other = (np.exp(bank[i].astype(np.float64)) / (2 * n) for i in (index, noise[:, 0]))
    c, epsilon = 1 / n, 1e-7
    want = -np.log(own / (own + c + epsilon)) - np.log(c / (other + c + epsilon))
    np.testing.assert_allclose(loss, want.mean(), rtol=1e-5)


def test_nce_far_below_the_range_of_float32():
    """At T = 0.01 exp(−1/T) is 0 in float32, and its logarithm still a number."""
    bank = jnp.asarray(unit(6, 2))
    f = jax.value_and_grad(
        lambda z: instance.nce(z, bank, jnp.array([0]), jnp.array([[1, 2]]), 0.01, 1e3)[0]
    )
    loss, grad = f(-bank[:1])
    assert np.isfinite(loss) and np.isfinite(grad).all() and loss > 100


def test_bank_and_normaliser_of_all_devices():
    """Ids repeat within a device and across devices: the last row of the batch is kept."""
    bank, z = unit(10, 3), unit(8, 3, seed=1)
    index = np.array([4, 4, 1, 0, 4, 1, 9, 9], np.int32)
    noise = np.random.default_rng(2).integers(0, 10, (8, 5), dtype=np.int32)
    want = np.array(bank)
    for i, row in zip(index, z, strict=True):  # in order, each from the old bank
        new = 0.25 * bank[i] + 0.75 * row
        want[i] = new / np.linalg.norm(new)

    def step(bank, index, z, noise):
        loss, normaliser = instance.nce(z, bank, index, noise, 0.5, 0.0, layout.AXIS)
        new = written(instance.update_bank(bank, index, z, 0.25, layout.AXIS))
        return collectives.pmean(loss, layout.AXIS), normaliser[None], new[None]

    loss, normalisers, banks = jax.jit(
        jax.shard_map(
            step,
            mesh=layout.mesh(),
            in_specs=(P(), P("batch"), P("batch"), P("batch")),
            out_specs=(P(), P("batch"), P("batch")),
            check_vma=False,
        )
    )(bank, index, z, noise)
    one, normaliser = instance.nce(z, jnp.asarray(bank), index, noise, 0.5, 0.0)
    np.testing.assert_allclose(loss, one, rtol=1e-5)
    np.testing.assert_allclose(normalisers, np.full(4, normaliser), rtol=1e-5)
    for got in banks:
        np.testing.assert_array_equal(got, banks[0])
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_no_gradient_into_the_bank_or_the_normaliser():
    z, bank, index = unit(4, 3), unit(9, 3, seed=1), np.array([0, 8, 2, 2], np.int32)
    noise = np.array([[1, 2], [3, 4], [5, 6], [2, 2]], np.int32)
    grad = jax.grad(instance.full_softmax, 1)(z, bank, index, 0.1, 4)
    assert not grad.any()
    grad = jax.grad(lambda b: instance.nce(z, b, index, noise, 0.1, 0.0)[0])(bank)
    assert not grad.any()
    # With Z given as what it would be estimated to, the gradient is the same.
    f = jax.grad(lambda z, given: instance.nce(z, bank, index, noise, 0.1, given)[0])
    estimate = instance.nce(z, bank, index, noise, 0.1, 0.0)[1]
    np.testing.assert_allclose(f(z, 0.0), f(z, estimate), rtol=1e-5)


def test_errors():
    z, bank, index = jnp.ones((1, 2)), jnp.ones((3, 2)), jnp.array([0])
    with pytest.raises(UserError, match="temperature of the loss is 0"):
        instance.full_softmax(z, bank, index, 0)
    with pytest.raises(UserError, match="temperature of the loss is -1"):
        instance.nce(z, bank, index, index[:, None], -1, 0.0)
    with pytest.raises(UserError, match="chunk of the loss is 0"):
        instance.full_softmax(z, bank, index, 0.1, 0)


def test_rows_that_do_not_fit_are_refused():
    z, bank, few = jnp.eye(4), jnp.eye(4), jnp.arange(3)
    with pytest.raises(AssertionError):
        instance.full_softmax(z, bank, few, 0.1)
    with pytest.raises(AssertionError):
        instance.nce(z, bank, jnp.arange(4), jnp.zeros((1, 5), jnp.int32), 0.1, jnp.zeros(()))
    with pytest.raises(AssertionError):
        instance.update_bank(bank, few, z, 0.5)
