import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.losses.contrastive import normalize, ntxent, ntxent_metrics

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def oracle(z1, z2, temperature):
    """Equation 1 of the paper, one pair at a time, in float64."""
    z = np.concatenate([z1, z2]).astype(np.float64)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    s = z @ z.T / temperature
    n, b = len(z), len(z1)
    total = 0.0
    for i in range(n):
        others = np.array([s[i, k] for k in range(n) if k != i])
        high = others.max()
        total += high + np.log(np.exp(others - high).sum()) - s[i, (i + b) % n]
    return total / n


def views(b, d, seed=0, noise=1.0):
    rng = np.random.default_rng(seed)
    z1 = rng.normal(size=(b, d)).astype(np.float32)
    return z1, (z1 + noise * rng.normal(size=(b, d))).astype(np.float32)


@functools.cache
def value_and_grad(temperature, chunk):
    return jax.jit(
        jax.value_and_grad(lambda z1, z2: ntxent(z1, z2, temperature, chunk=chunk), argnums=(0, 1))
    )


@pytest.mark.parametrize("chunk", [None, 3, 8])
@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
def test_equals_google(temperature, chunk):
    golden = np.load(GOLDEN / "simclr_ntxent.npz")
    hidden = golden["hidden"]
    loss, grads = value_and_grad(temperature, chunk)(hidden[:8], hidden[8:])
    for code in ("tf1", "tf2"):  # both sum the two directions: twice the mean over 2N
        np.testing.assert_allclose(2 * loss, golden[f"loss_{code}_T{temperature}"], rtol=1e-5)
        want = golden[f"grad_hidden_{code}_T{temperature}"]
        np.testing.assert_allclose(2 * np.concatenate(grads), want, rtol=1e-4, atol=1e-6)


def test_hand_computed():
    # Row 0 lies on the first axis in both views, row 1 on the second; lengths do not matter.
    z1, z2 = jnp.array([[1.0, 0], [0, 2]]), jnp.array([[3.0, 0], [0, 4]])
    # Cosine 1 with the positive and 0 with both negatives: −log(e / (e + 2)).
    np.testing.assert_allclose(ntxent(z1, z2, 1.0), np.log((np.e + 2) / np.e), rtol=1e-6)
    # Positive 0, one negative 1 and one 0, at T = 1/2: −log(1 / (1 + e² + 1)).
    np.testing.assert_allclose(ntxent(z1, z2[::-1], 0.5), np.log(2 + np.e**2), rtol=1e-6)


@pytest.mark.parametrize("chunk", [None, 1, 2, 5, 7, 100])
def test_any_chunk_equals_the_definition(chunk):
    z1, z2 = views(7, 5)
    loss, grads = value_and_grad(0.2, chunk)(z1, z2)
    np.testing.assert_allclose(loss, oracle(z1, z2, 0.2), rtol=1e-6)
    want = value_and_grad(0.2, None)(z1, z2)[1]
    np.testing.assert_allclose(grads, want, rtol=1e-5, atol=1e-7)


def test_gradient_is_the_slope_of_the_definition():
    z1, z2 = views(4, 3, seed=3)
    rng = np.random.default_rng(1)
    d1, d2 = rng.normal(size=(2, 4, 3))
    g1, g2 = value_and_grad(0.3, 3)(z1, z2)[1]
    h = 1e-5
    slope = oracle(z1 + h * d1, z2 + h * d2, 0.3) - oracle(z1 - h * d1, z2 - h * d2, 0.3)
    np.testing.assert_allclose(np.sum(g1 * d1) + np.sum(g2 * d2), slope / (2 * h), rtol=1e-4)


@pytest.mark.parametrize("chunk", [None, 2])
def test_extreme_temperatures(chunk):
    # Logits of ±1000: exponentials that overflow, underflow, and cancel in the loss.
    z1, z2 = views(5, 4, seed=2)
    for a, b in ((z1, z2), (z1, -z1), (z1, z1)):
        loss, grads = value_and_grad(0.001, chunk)(a, b)
        np.testing.assert_allclose(loss, oracle(a, b, 0.001), rtol=1e-5, atol=1e-6)
        assert np.isfinite(grads).all()
    # e^-20 relative to 1 is below float32's resolution, yet not lost.
    axes = 3 * jnp.eye(4)
    np.testing.assert_allclose(ntxent(axes, axes, 0.05, chunk=chunk), 6 * np.exp(-20), rtol=1e-5)


def test_one_row_has_no_negatives():
    loss, grads = value_and_grad(0.5, None)(*views(1, 4))
    assert loss == 0
    np.testing.assert_array_equal(grads, np.zeros((2, 1, 4)))


def test_normalize_as_tensorflow_with_a_safe_gradient():
    x = jnp.array([[3.0, 4.0], [0.0, 0.0], [3e-7, 4e-7]])
    np.testing.assert_allclose(normalize(x), [[0.6, 0.8], [0, 0], [0.3, 0.4]], rtol=1e-6)
    grad = jax.grad(lambda x: jnp.sum(normalize(x) * jnp.array([1.0, 2.0])))(x)
    # (w − y (w·y)) / |x| with w = (1, 2), y = (.6, .8); nothing from rows without a direction.
    np.testing.assert_allclose(grad, [[-0.064, 0.048], [0, 0], [0, 0]], rtol=1e-4)
    z1, z2 = views(4, 3)
    grads = value_and_grad(0.1, 2)(z1 * np.array([[1.0], [0], [1], [1]], np.float32), z2)[1]
    assert np.isfinite(grads).all() and np.abs(grads).max() < 100


def test_bfloat16_inputs_are_computed_in_float32():
    z1, z2 = (jnp.asarray(z, jnp.bfloat16) for z in views(6, 8))
    loss, grads = value_and_grad(0.1, None)(z1, z2)
    assert loss.dtype == jnp.float32 and grads[0].dtype == jnp.bfloat16
    rounded = np.asarray(z1, np.float32), np.asarray(z2, np.float32)
    np.testing.assert_allclose(loss, oracle(*rounded, 0.1), rtol=1e-6)


def over_devices(f, count):
    """f(z1 [b,d], z2 [b,d]) -> leaves [...], mapped; every device's result is stacked."""
    mesh = layout.mesh(jax.devices()[:count])
    rows = P(layout.AXIS)
    mapped = jax.shard_map(
        lambda *z: jax.tree.map(lambda x: x[None], f(*z)),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    return jax.jit(mapped)


@pytest.mark.parametrize("chunk", [None, 3])
def test_four_devices_equal_one(chunk):
    x1, x2 = views(8, 6, noise=2.0)
    w = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)

    def step(x1, x2, axis):
        """Loss and gradient of a shared encoder's weights, averaged as the training step does."""

        def mean_loss(w):
            loss, metrics = ntxent_metrics(x1 @ w, x2 @ w, 0.2, axis, chunk)
            return collectives.pmean(loss, axis), collectives.pmean(metrics, axis)

        (loss, metrics), grad = jax.value_and_grad(mean_loss, has_aux=True)(jnp.asarray(w))
        return loss, metrics, collectives.pmean(grad, axis)

    one = jax.jit(lambda a, b: step(a, b, None))(x1, x2)
    four = over_devices(lambda a, b: step(a, b, layout.AXIS), 4)(x1, x2)
    assert 0 < one[1]["contrastive_accuracy"] < 1
    for want, got in zip(jax.tree.leaves(one), jax.tree.leaves(four), strict=True):
        for device in range(4):
            np.testing.assert_allclose(got[device], want, rtol=1e-6, atol=1e-6)


def test_two_processes_of_lightly():
    golden = np.load(GOLDEN / "world2_lightly_ntxent_gather1.npz")
    x1, x2 = (golden[k].reshape(8, 12) for k in ("X1", "X2"))
    weight, bias = golden["param/e.lin.weight"], golden["param/e.lin.bias"]

    def step(x1, x2, axis=layout.AXIS):
        def both(params):
            w, bias = params
            loss = ntxent(x1 @ w.T + bias, x2 @ w.T + bias, 0.5, axis)
            return collectives.pmean(loss, axis), loss

        grads, loss = jax.grad(both, has_aux=True)((jnp.asarray(weight), jnp.asarray(bias)))
        return loss, collectives.pmean(grads, axis)

    loss, (w_grad, b_grad) = over_devices(step, 2)(x1, x2)
    np.testing.assert_allclose(loss, golden["loss_per_rank"], rtol=1e-5)
    assert loss[0] != loss[1]
    np.testing.assert_allclose(loss.mean(), golden["w1_loss"], rtol=1e-5)
    np.testing.assert_allclose(w_grad[0], golden["ddp_grad/e.lin.weight"], rtol=1e-4, atol=1e-6)
    # The loss does not see a shift along an embedding, so the bias has a gradient all the same.
    np.testing.assert_allclose(b_grad[0], golden["ddp_grad/e.lin.bias"], rtol=1e-4, atol=1e-6)


def temporary_bytes(b, chunk, backward):
    f = functools.partial(ntxent, temperature=0.1, chunk=chunk)
    f = jax.grad(f, argnums=(0, 1)) if backward else f
    z = jax.ShapeDtypeStruct((b, 16), jnp.float32)
    return jax.jit(f).lower(z, z).compile().memory_analysis().temp_size_in_bytes


def test_chunk_bounds_memory_in_both_passes():
    logits = 4 * (2 * 512) ** 2  # bytes of all logits
    assert temporary_bytes(512, None, backward=True) >= logits
    for backward in (False, True):
        # Blocks of 32 rows hold 1/16 of the logits; a few of them live at once, and embeddings.
        assert temporary_bytes(512, 32, backward) < logits / 2
        # Twice the batch, twice the memory, where without chunks it is four times.
        ratio = temporary_bytes(1024, 32, backward) / temporary_bytes(512, 32, backward)
        assert ratio < 2.5


def test_all_at_once_holds_the_logits_once():
    # Its exponentials and their gradient take the place of the logits; a plain N×N form has two.
    logits = 4 * (2 * 512) ** 2  # bytes
    assert temporary_bytes(512, None, backward=True) < 1.3 * logits


def test_metrics():
    z1, z2 = jnp.eye(4)[:3], jnp.eye(4)[jnp.array([0, 2, 3])]
    # Anchors with the positive nearest: row 0 in both views. Row 1: (e1, e2), row 2: (e2, e3).
    _, metrics = ntxent_metrics(z1, z2, 0.1)
    np.testing.assert_allclose(metrics["contrastive_accuracy"], 2 / 6, rtol=1e-6)
    np.testing.assert_allclose(metrics["positive_similarity"], 1 / 3, rtol=1e-6)
    same = jnp.tile(jax.random.normal(jax.random.key(0), (1, 64)), (16, 1))
    loss, metrics = ntxent_metrics(same, same, 0.1)
    assert metrics["contrastive_accuracy"] == 0  # collapse: a tie is no hit
    np.testing.assert_allclose(loss, np.log(31), rtol=1e-6)


@pytest.mark.parametrize("changes", [{"temperature": 0.0}, {"chunk": 0}])
def test_user_errors(changes):
    z = jnp.ones((2, 3))
    with pytest.raises(UserError, match="must be"):
        ntxent(z, z, **{"temperature": 0.1, **changes})


def test_shapes_are_checked():
    with pytest.raises(ValueError, match="both must be one"):
        ntxent(jnp.ones((4, 3)), jnp.ones((2, 3)), 0.1)
