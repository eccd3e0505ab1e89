"""DINO's loss against the authors' numbers, and against the formulas one pair at a time."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.losses import clustering
from ssl_jax.losses import self_distillation as losses

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def side_by_side(rows, views):
    """[v·b, K], one view after the other -> [b, v, K]."""
    return np.stack(np.split(rows, views), 1)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@jax.jit
def step(student, teacher, centre, temperature):
    """(loss, gradient, new centre) of one call of the official DINOLoss."""

    def f(student):
        targets = losses.centred_targets(teacher, centre, temperature)
        return losses.cross_view(student, targets, 0.1)

    return *jax.value_and_grad(f)(student), losses.update_centre(centre, teacher, 0.9)


def test_five_calls_of_the_official_loss():
    golden = np.load(GOLDEN / "dino_loss_multicrop.npz")
    centre = jnp.zeros(12)
    for k, epoch in enumerate(golden["epoch"]):
        student = side_by_side(golden["student"][k], 6)
        teacher = side_by_side(golden["teacher"][k], 2)
        np.testing.assert_allclose(centre, golden["center_before"][k, 0], rtol=1e-5, atol=1e-7)
        temperature = golden["teacher_temp_schedule"][epoch]
        loss, grad, centre = step(student, teacher, centre, temperature)
        np.testing.assert_allclose(loss, golden["loss"][k], rtol=1e-5)
        want = side_by_side(golden["grad_student"][k], 6)
        np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(centre, golden["center_after"][k, 0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("b, g, v, k", [(3, 2, 2, 5), (2, 2, 4, 3), (4, 1, 3, 7), (2, 3, 5, 4)])
def test_every_target_meets_every_other_view(b, g, v, k):
    student, targets = normal(b, v, k), normal(b, g, k, seed=1)
    targets = np.exp(targets) / np.exp(targets).sum(-1, keepdims=True)
    p = np.exp(student / 0.3) / np.exp(student / 0.3).sum(-1, keepdims=True)
    terms = [
        -(targets[:, i] * np.log(p[:, j])).sum(-1).mean()
        for i in range(g)
        for j in range(v)
        if i != j
    ]
    np.testing.assert_allclose(losses.cross_view(student, targets, 0.3), np.mean(terms), rtol=1e-5)


def test_the_loss_by_hand():
    # The teacher is certain of output 0 in both views; the student says (1/2, 1/2) and (3/4, 1/4).
    targets = jnp.array([[[1.0, 0.0], [1.0, 0.0]]])
    student = jnp.log(jnp.array([[[0.5, 0.5], [0.75, 0.25]]]))
    want = -(np.log(0.75) + np.log(0.5)) / 2
    np.testing.assert_allclose(losses.cross_view(student, targets, 1.0), want, rtol=1e-6)


def test_nothing_flows_into_the_teacher():
    def f(teacher, centre, how):
        if how == "centre":
            targets = losses.centred_targets(teacher, centre, 0.1)
        else:
            targets = losses.sinkhorn_targets(teacher, 0.1)
        moved = losses.update_centre(centre, teacher, 0.5).sum()
        return losses.cross_view(normal(3, 2, 4), targets, 0.1) + moved

    for how in ("centre", "sinkhorn"):
        teacher, centre = jax.grad(f, (0, 1))(normal(3, 2, 4, seed=1), jnp.ones(4), how)
        assert not teacher.any()
        np.testing.assert_array_equal(centre, np.full(4, 0.5))  # of the moving average alone
    direct = jax.grad(lambda q: losses.cross_view(normal(3, 2, 4), q, 0.1))(normal(3, 2, 4))
    assert not direct.any()


@pytest.mark.parametrize("temperature, iterations", [(0.07, 3), (0.04, 3), (0.1, 1)])
def test_sinkhorn_of_dinov2(temperature, iterations):
    golden = np.load(GOLDEN / "dinov2_sinkhorn.npz")
    teacher = side_by_side(golden["teacher"], 2)
    got = losses.sinkhorn_targets(teacher, temperature, iterations)
    want = side_by_side(golden[f"q_T{temperature}_it{iterations}"], 2)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)


def test_sinkhorn_of_all_devices():
    teacher = 50 * normal(8, 2, 5)  # exp(50 / 0.05) is no number
    mapped = jax.jit(
        jax.shard_map(
            lambda t: losses.sinkhorn_targets(t, 0.05, 3, layout.AXIS),
            mesh=layout.mesh(),
            in_specs=P("batch"),
            out_specs=P("batch"),
            check_vma=False,
        )
    )
    got = mapped(teacher)
    np.testing.assert_allclose(got, losses.sinkhorn_targets(teacher, 0.05, 3), atol=1e-5)
    want = clustering.sinkhorn(teacher.reshape(16, 5), 0.05, 3)
    np.testing.assert_allclose(got.reshape(16, 5), want, atol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)


def test_centre_of_two_processes():
    golden = np.load(GOLDEN / "world2_dino_center.npz")
    teacher = np.concatenate([side_by_side(rank, 2) for rank in golden["teacher_out"]])

    def twice(teacher):
        centre = losses.update_centre(jnp.zeros(7), teacher, 0.9, layout.AXIS)
        return losses.update_centre(centre, 0.5 * teacher, 0.9, layout.AXIS)[None]

    mapped = jax.jit(
        jax.shard_map(
            twice,
            mesh=layout.mesh(jax.devices()[:2]),
            in_specs=P("batch"),
            out_specs=P("batch"),
            check_vma=False,
        )
    )
    for centre in mapped(teacher):
        np.testing.assert_allclose(centre, golden["center_after"][0], rtol=1e-5, atol=1e-7)


def test_bfloat16_logits_are_computed_in_float32():
    student, teacher = (jnp.asarray(normal(2, 2, 64, seed=s), jnp.bfloat16) for s in (0, 1))
    exact = [x.astype(jnp.float32) for x in (student, teacher)]
    centre = jnp.zeros(64)
    rounded = step(student, teacher, centre, 0.04)
    for a, b in zip(rounded, step(*exact, centre, 0.04), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=1e-2, atol=1e-6)
    targets = losses.centred_targets(teacher, centre, 0.04)
    assert targets.dtype == jnp.float32
    assert losses.cross_view(student, targets, 0.1).dtype == jnp.float32


def test_errors():
    x = jnp.zeros((2, 2, 3))
    with pytest.raises(UserError, match="teacher's temperature is 0"):
        losses.centred_targets(x, jnp.zeros(3), 0)
    with pytest.raises(UserError, match="student's temperature is -1"):
        losses.cross_view(x, x, -1)
    with pytest.raises(UserError, match="at least 1 iteration"):
        losses.sinkhorn_targets(x, 0.1, 0)
    for student, targets in [
        ((2, 1, 3), (2, 1, 3)),
        ((2, 2, 3), (2, 3, 3)),
        ((2, 2, 3), (1, 2, 3)),
    ]:
        with pytest.raises(ValueError, match="must be"):
            losses.cross_view(jnp.zeros(student), jnp.zeros(targets), 0.1)


def test_a_centre_that_would_be_broadcast_is_refused():
    with pytest.raises(AssertionError):
        losses.centred_targets(jnp.ones((2, 2, 5)), jnp.zeros(1), 0.1)
