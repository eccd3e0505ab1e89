"""InfoNCE with a queue and between views, DCL on a queue, ReSSL's relation."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.losses import infonce

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(b=6, d=5, size=9, seed=0):
    """Raw q and k, and a queue of unit rows."""
    rng = np.random.default_rng(seed)
    q, k, queue = (rng.normal(size=(n, d)).astype(np.float32) for n in (b, b, size))
    return 2 * q, 0.5 * (q + k), unit(queue)


def oracle(q, k, queue, temperature, decoupled=False, sigma=None):
    """The formulas, one query at a time, in float64."""
    q, k = unit(q.astype(np.float64)), unit(k.astype(np.float64))
    positive = np.sum(q * k, 1)
    weights = np.ones(len(q))
    if sigma is not None:
        weights = 2 - np.exp(positive / sigma) / np.mean(np.exp(positive / sigma))
    losses = []
    for i in range(len(q)):
        below = sum(np.exp(q[i] @ n / temperature) for n in queue.astype(np.float64))
        if not decoupled:
            below += np.exp(positive[i] / temperature)
        losses.append(np.log(below) - weights[i] * positive[i] / temperature)
    return np.mean(losses)


LOSSES = [{}, {"decoupled": True}, {"decoupled": True, "sigma": 0.5}]


@pytest.mark.parametrize("options", LOSSES, ids=["infonce", "dcl", "dclw"])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_against_a_queue_equals_its_formula(temperature, options):
    q, k, queue = embeddings()
    f = functools.partial(infonce.against_queue, temperature=temperature, **options)
    loss, grads = jax.value_and_grad(lambda *x: f(*x)[0], argnums=(0, 1, 2))(q, k, queue)
    np.testing.assert_allclose(loss, oracle(q, k, queue, temperature, **options), rtol=1e-5)
    direction, h = np.random.default_rng(1).normal(size=q.shape), 1e-5
    up, down = (
        oracle(q + s * direction, k, queue, temperature, **options) for s in (h, -h)
    )  # in float64: the gradient of the weights is in there
    np.testing.assert_allclose(np.sum(grads[0] * direction), (up - down) / (2 * h), rtol=1e-3)
    for constant in grads[1:]:
        np.testing.assert_array_equal(constant, np.zeros_like(constant))


def test_against_a_queue_by_hand():
    # Cosine 1 with the key, 0 and −1 with the queue, T = 1/2.
    q, k, queue = jnp.array([[3.0, 0]]), jnp.array([[2.0, 0]]), jnp.array([[0, 1.0], [-1, 0]])
    e = np.e
    loss, metrics = infonce.against_queue(q, k, queue, 0.5)
    np.testing.assert_allclose(loss, np.log((e**2 + 1 + e**-2) / e**2), rtol=1e-6)
    assert metrics["contrastive_accuracy"] == 1 and metrics["positive_similarity"] == 1
    loss, _ = infonce.against_queue(q, k, queue, 0.5, decoupled=True)
    np.testing.assert_allclose(loss, np.log(1 + e**-2) - 2, rtol=1e-6)


def test_a_tie_is_no_hit():
    q, k, queue = embeddings()
    same = jnp.ones_like(q)
    _, metrics = infonce.against_queue(same, same, unit(np.ones_like(queue)), 0.1)
    assert metrics["contrastive_accuracy"] == 0
    _, metrics = infonce.between_views(same, same, 0.1)
    assert metrics["contrastive_accuracy"] == 0
    # One of two queries is nearer to the queue than to its key.
    q, k = jnp.array([[1.0, 0], [0, 1]]), jnp.array([[1.0, 0], [1, 1]])
    _, metrics = infonce.against_queue(q, k, jnp.array([[0.0, 1]]), 0.1)
    assert metrics["contrastive_accuracy"] == 0.5


def test_between_views_equals_moco_v3():
    golden = np.load(GOLDEN / "mocov3_contrastive_T1p0.npz")
    f = jax.value_and_grad(lambda q, k: infonce.between_views(q, k, 1.0)[0], argnums=(0, 1))
    loss, (grad_q, grad_k) = f(golden["q"], golden["k"])
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-5)
    np.testing.assert_allclose(grad_q, golden["grad_q"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(grad_k, np.zeros_like(grad_k))


def test_between_views_is_a_queue_of_the_other_keys():
    """Each query against its key and, as a queue, the other keys of the batch; times 2T."""
    q, k, _ = embeddings()
    want = np.mean([oracle(q[[i]], k[[i]], unit(np.delete(k, i, 0)), 0.3) for i in range(len(q))])
    loss, metrics = infonce.between_views(q, k, 0.3)
    np.testing.assert_allclose(loss, 2 * 0.3 * want, rtol=1e-5)
    cosines = unit(q) @ unit(k).T
    best = np.argmax(cosines, 1) == np.arange(len(q))
    np.testing.assert_allclose(metrics["contrastive_accuracy"], np.mean(best), rtol=1e-6)
    np.testing.assert_allclose(metrics["positive_similarity"], np.diag(cosines).mean(), rtol=1e-5)


def over_devices(f, count):
    """f(*rows) -> leaves, mapped; every device's result is stacked."""
    return jax.jit(
        jax.shard_map(
            lambda *x: jax.tree.map(lambda leaf: leaf[None], f(*x)),
            mesh=layout.mesh(jax.devices()[:count]),
            in_specs=P(layout.AXIS),
            out_specs=P(layout.AXIS),
            check_vma=False,
        )
    )


def test_two_processes_of_moco_v3():
    golden = np.load(GOLDEN / "world2_mocov3.npz")
    weight, bias = golden["param/e.lin.weight"], golden["param/e.lin.bias"]

    def step(x, k):
        def both(params):
            loss, _ = infonce.between_views(x @ params[0].T + params[1], k, 0.2, layout.AXIS)
            return collectives.pmean(loss, layout.AXIS), loss

        grads, loss = jax.grad(both, has_aux=True)((jnp.asarray(weight), jnp.asarray(bias)))
        return loss, collectives.pmean(grads, layout.AXIS)

    rows = golden["X1"].reshape(8, 12), golden["z2"].reshape(8, 6)
    loss, (w_grad, b_grad) = over_devices(step, 2)(*rows)
    np.testing.assert_allclose(loss, golden["loss_per_rank"], rtol=1e-5)
    np.testing.assert_allclose(loss.mean(), golden["w1_loss"], rtol=1e-5)
    np.testing.assert_allclose(w_grad[0], golden["ddp_grad/e.lin.weight"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(b_grad[0], golden["ddp_grad/e.lin.bias"], rtol=1e-4, atol=1e-6)


def test_the_weights_of_dclw_are_those_of_all_devices():
    q, k, queue = embeddings(b=8)
    f = functools.partial(
        infonce.against_queue, queue=queue, temperature=0.2, decoupled=True, sigma=0.3
    )
    four = over_devices(lambda q, k: f(q, k, axis=layout.AXIS)[0], 4)(q, k)
    np.testing.assert_allclose(np.mean(four), oracle(q, k, queue, 0.2, True, 0.3), rtol=1e-5)


def test_relation_by_hand():
    # The student is at cosines (1, 0) to the queue, the teacher at (0.6, 0.8).
    queue = jnp.eye(2)
    student, teacher = jnp.array([[5.0, 0]]), jnp.array([[3.0, 4]])
    target = np.exp(np.array([0.6, 0.8]) / 0.1)
    target /= target.sum()
    log_student = np.array([1.0, 0]) / 0.5 - np.log(np.exp(2) + 1)
    loss, metrics = infonce.relation(student, teacher, queue, 0.5, 0.1)
    np.testing.assert_allclose(loss, -np.sum(target * log_student), rtol=1e-5)
    entropy = -np.sum(target * np.log(target))
    np.testing.assert_allclose(metrics["teacher_entropy"], entropy, rtol=1e-5)
    entropy = -np.sum(np.exp(log_student) * log_student)
    np.testing.assert_allclose(metrics["student_entropy"], entropy, rtol=1e-5)
    assert metrics["agreement"] == 0


def test_relation_equals_its_formula_and_leaves_the_teacher_alone():
    q, k, queue = embeddings()
    f = lambda *x: infonce.relation(*x, 0.1, 0.04)  # noqa: E731
    loss, metrics = f(q, k, queue)
    s, t = (unit(x.astype(np.float64)) @ queue.T for x in (q, k))
    target = np.exp(t / 0.04)
    target /= target.sum(1, keepdims=True)
    log_student = s / 0.1 - np.log(np.exp(s / 0.1).sum(1, keepdims=True))
    np.testing.assert_allclose(loss, -np.mean(np.sum(target * log_student, 1)), rtol=1e-5)
    assert metrics["teacher_entropy"] < loss
    agree = np.argmax(s, 1) == np.argmax(t, 1)
    np.testing.assert_allclose(metrics["agreement"], np.mean(agree), rtol=1e-6)
    grads = jax.grad(lambda *x: f(*x)[0], argnums=(0, 1, 2))(q, k, queue)
    assert np.abs(grads[0]).max() > 0
    for constant in grads[1:]:
        np.testing.assert_array_equal(constant, np.zeros_like(constant))


def test_bfloat16_inputs_are_computed_in_float32():
    q, k, queue = embeddings()
    q, k = jnp.asarray(q, jnp.bfloat16), jnp.asarray(k, jnp.bfloat16)
    rounded = np.asarray(q, np.float32), np.asarray(k, np.float32)
    for f in (
        lambda q, k: infonce.against_queue(q, k, queue, 0.07)[0],
        lambda q, k: infonce.between_views(q, k, 0.07)[0],
        lambda q, k: infonce.relation(q, k, queue, 0.1, 0.04)[0],
    ):
        loss = f(q, k)
        assert loss.dtype == jnp.float32
        np.testing.assert_allclose(loss, f(*rounded), rtol=1e-6)


def test_extreme_temperature_and_embeddings_without_direction_stay_finite():
    q, k, queue = embeddings()
    q[0] = k[1] = 0
    for f in (
        lambda q: infonce.against_queue(q, k, queue, 1e-3)[0],
        lambda q: infonce.against_queue(q, k, queue, 1e-3, decoupled=True, sigma=1e-3)[0],
        lambda q: infonce.between_views(q, k, 1e-3)[0],
        lambda q: infonce.relation(q, k, queue, 1e-3, 1e-3)[0],
    ):
        loss, grad = jax.value_and_grad(f)(q)
        assert np.isfinite(loss) and np.isfinite(grad).all()


def test_errors():
    q, k, queue = embeddings()
    with pytest.raises(UserError, match="temperature"):
        infonce.against_queue(q, k, queue, 0.0)
    with pytest.raises(UserError, match="temperature"):
        infonce.relation(q, k, queue, 0.1, -1.0)
    with pytest.raises(UserError, match="decoupled"):
        infonce.against_queue(q, k, queue, 0.1, sigma=0.5)
    with pytest.raises(ValueError, match="both must be one"):
        infonce.between_views(q, k[:3], 0.1)
    with pytest.raises(ValueError, match="a queue of shape"):
        infonce.against_queue(q, k, queue[:, :3], 0.1)
