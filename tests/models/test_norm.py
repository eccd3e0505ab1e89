"""BatchNorm against hand-computed numbers, and over four devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.models.norm import BatchNorm, normalise

ROWS = jnp.array([[1.0], [3.0], [10.0], [20.0]])


def variables(channels=1, mean=0.0, **fields):
    norm = BatchNorm(**fields)
    v = jax.jit(lambda: norm.init(jax.random.key(0), jnp.zeros((4, channels)), False))()
    v["batch_stats"]["mean"] = jnp.full((channels,), mean)
    return v


def train(norm, v, x):
    return jax.jit(lambda v, x: norm.apply(v, x, True, mutable=["batch_stats"]))(v, x)


def test_global_statistics_by_hand():
    # mean 8.5; biased variance (56.25 + 30.25 + 2.25 + 132.25) / 4 = 55.25; unbiased 221 / 3
    y, new = train(BatchNorm(), variables(), ROWS)
    np.testing.assert_allclose(y, (ROWS - 8.5) / np.sqrt(55.25 + 1e-5), rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.85], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9 + 0.1 * 221 / 3], rtol=1e-6)


def test_biased_running_variance_momentum_and_epsilon():
    norm = BatchNorm(unbiased=False, momentum=0.5, epsilon=1.0)
    y, new = train(norm, variables(), ROWS)
    np.testing.assert_allclose(y, (ROWS - 8.5) / np.sqrt(56.25), rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.5 + 0.5 * 55.25], rtol=1e-6)


def test_groups_by_hand():
    # groups (1, 3) and (10, 20): means 2 and 15, biased variances 1 and 25, unbiased 2 and 50
    y, new = train(BatchNorm(group=2), variables(), ROWS)
    a, b = 1 / np.sqrt(1 + 1e-5), 5 / np.sqrt(25 + 1e-5)
    np.testing.assert_allclose(y, [[-a], [a], [-b], [b]], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["mean"], [0.1 * 8.5], rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], [0.9 + 0.1 * 26], rtol=1e-6)


def test_groups_of_images_share_their_pixels():
    x = jax.random.normal(jax.random.key(1), (4, 3, 5, 2)) * 3 + 1
    y, _ = train(BatchNorm(group=2), variables(2), x)
    assert y.shape == x.shape
    for rows in (slice(0, 2), slice(2, 4)):
        part = np.asarray(x[rows], np.float64)
        want = (part - part.mean((0, 1, 2))) / np.sqrt(part.var((0, 1, 2)) + 1e-5)
        np.testing.assert_allclose(y[rows], want, rtol=1e-4, atol=1e-5)


def test_incomplete_group_is_an_error():
    with pytest.raises(ValueError, match="4 local rows are not whole groups of 3"):
        train(BatchNorm(group=3), variables(), ROWS)


def test_evaluation_uses_running_statistics_and_parameters():
    v = {
        "params": {"scale": jnp.array([2.0]), "bias": jnp.array([0.5])},
        "batch_stats": {"mean": jnp.array([3.0]), "var": jnp.array([4.0])},
    }
    y = BatchNorm().apply(v, ROWS, False)
    np.testing.assert_allclose(y, (ROWS - 3) / np.sqrt(4 + 1e-5) * 2 + 0.5, rtol=1e-6)


def test_which_parameters_exist():
    assert set(variables()["params"]) == {"scale", "bias"}
    assert set(variables(use_bias=False)["params"]) == {"scale"}
    assert "params" not in variables(use_scale=False, use_bias=False)


def test_variance_of_far_mean_survives_the_one_pass_form():
    # q − m² of values near 4096 would be rounded to multiples of 1 in float32.
    x = 4096 + jax.random.normal(jax.random.key(0), (512, 3))
    y, _ = train(BatchNorm(), variables(3, mean=4095.0), x)
    x = np.asarray(x, np.float64)
    np.testing.assert_allclose(y, (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5), atol=2e-3)


def test_bfloat16_keeps_float32_statistics():
    x = (100 + jax.random.normal(jax.random.key(0), (256, 3))).astype(jnp.bfloat16)
    norm = BatchNorm(dtype=jnp.bfloat16)
    v = variables(3)
    y, new = train(norm, v, x)
    assert y.dtype == jnp.bfloat16
    for leaf in jax.tree.leaves((v, new)):
        assert leaf.dtype == jnp.float32
    want = np.asarray(x, np.float64).mean(0)  # a bfloat16 sum would be off by whole units
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * want, rtol=1e-6)


def head(norm, params, stats, x, target):
    """A linear layer, the norm, a loss with a gradient into everything."""
    y, new = norm.apply(
        {"params": params["norm"], "batch_stats": stats},
        x @ params["w"],
        True,
        mutable=["batch_stats"],
    )
    return jnp.mean(jnp.square(y - target)), (y, new["batch_stats"])


def compute(norm, axis, params, stats, x, target):
    """(y, stats, gradient): the loss averaged over devices, as the train step does."""

    def loss(params):
        value, aux = head(norm.clone(axis=axis), params, stats, x, target)
        return collectives.pmean(value, axis), aux

    gradient, (y, stats) = jax.grad(loss, has_aux=True)(params)
    return y, stats, collectives.pmean(gradient, axis)


@pytest.mark.parametrize("group", [None, 4])
def test_four_devices_equal_one(group):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], (32, 6))
    # Rows differ in mean from device to device, so that local statistics would show.
    x = x + jnp.arange(32.0)[:, None] // 8
    target = jax.random.normal(keys[1], (32, 5))
    params = {
        "w": jax.random.normal(keys[2], (6, 5)),
        "norm": {"scale": jnp.linspace(0.5, 2.0, 5), "bias": jnp.linspace(-1.0, 1.0, 5)},
    }
    stats = {"mean": jnp.ones(5), "var": jnp.full(5, 2.0)}
    norm = BatchNorm(group=group)
    want = jax.jit(functools.partial(compute, norm, None))(params, stats, x, target)

    mesh = layout.mesh()
    assert mesh.size == 4
    # The statistics come back with one row per device, so that a device that differs is seen.
    mapped = jax.shard_map(
        lambda p, s, x, t: (lambda y, s, g: (y, jax.tree.map(lambda a: a[None], s), g))(
            *compute(norm, layout.AXIS, p, s, x, t)
        ),
        mesh=mesh,
        in_specs=(P(), P(), P(layout.AXIS), P(layout.AXIS)),
        out_specs=(P(layout.AXIS), P(layout.AXIS), P()),
        check_vma=False,
    )
    y, new, gradient = jax.jit(mapped)(params, stats, x, target)
    np.testing.assert_allclose(y, want[0], rtol=1e-5, atol=1e-6)
    for name in ("mean", "var"):
        for device in range(4):
            np.testing.assert_allclose(new[name][device], want[1][name], rtol=1e-5)
            np.testing.assert_array_equal(new[name][device], new[name][0])
    for got, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(want[2]), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape, reduced", [((6, 5, 3), (0, 1)), ((2, 4, 5, 3), (1, 2))])
def test_written_gradient_is_the_derivative(shape, reduced, affine):
    """Of the definition, with the whole batch and in groups; the shift plays no part in it."""
    x, dy = jax.random.normal(jax.random.key(0), (2, *shape))
    x = 3 * x + 2
    parameters = (
        (jnp.array([0.5, 1.0, 2.0]), jnp.array([1.0, -1.0, 0.0])) if affine else (None,) * 2
    )

    def definition(x, scale, bias):
        mean, var = (f(x, reduced, keepdims=True) for f in (jnp.mean, jnp.var))
        y = (x - mean) / jnp.sqrt(var + 0.1)
        return y if scale is None else y * scale + bias

    def written(x, scale, bias):
        shift = jnp.array([2.0, 1.0, 0.0])
        return normalise(x, shift, scale, bias, 0.1, reduced, None)[0]

    want, pullback = jax.vjp(definition, x, *parameters)
    got, written_pullback = jax.vjp(written, x, *parameters)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(*map(jax.tree.leaves, (written_pullback(dy), pullback(dy))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
