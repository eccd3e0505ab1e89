"""Spread of embeddings: hand-computed values, and the same on four devices as on one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import layout
from ssl_jax.losses.spread import DIMENSIONS, spread


def gaussian(n, d, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_isotropic_vectors_have_spread_one_and_full_rank():
    found = spread(gaussian(20_000, 16), None)
    np.testing.assert_allclose(found["embedding_std"], 1, rtol=0.01)
    np.testing.assert_allclose(found["embedding_rank"], 16, rtol=0.02)


def test_equal_variance_in_three_directions_is_rank_three():
    corners = np.concatenate([np.eye(3, 8), -np.eye(3, 8)]).astype(np.float32)
    found = spread(5 * corners, None)
    np.testing.assert_allclose(found["embedding_rank"], 3, rtol=1e-5)
    # Three of eight dimensions with a variance of 1/3: mean std 3/8 · √⅓, times √8.
    np.testing.assert_allclose(found["embedding_std"], 3 / 8 * np.sqrt(8 / 3), rtol=1e-5)


def test_a_line_has_rank_one_and_a_point_no_spread():
    line = spread(gaussian(100, 1) @ gaussian(1, 32), None)
    np.testing.assert_allclose(line["embedding_rank"], 1, rtol=1e-3)
    assert line["embedding_std"] > 0.5
    point = spread(np.ones((64, 32), np.float32) + 1e-3 * gaussian(64, 32), None)
    assert point["embedding_std"] < 2e-3
    huge = spread(1e30 * gaussian(100, 8), None)
    np.testing.assert_allclose(huge["embedding_std"], 1, rtol=0.1)
    for nothing in (np.ones, np.zeros):
        found = spread(nothing((8, 4), np.float32), None)
        assert found["embedding_std"] < 1e-3 and np.isfinite(found["embedding_rank"])


def test_wide_embeddings_are_judged_by_a_part():
    z = gaussian(4_000, 2 * DIMENSIONS)
    np.testing.assert_allclose(spread(z, None)["embedding_std"], 1, rtol=0.02)
    assert spread(z, None)["embedding_rank"] <= DIMENSIONS


@pytest.mark.parametrize("shape", [(16, 6), (16, 3, 6)])
def test_four_devices_equal_one_and_no_gradient(shape):
    z = gaussian(16, int(np.prod(shape[1:])), seed=1).reshape(shape)
    mapped = jax.jit(
        jax.shard_map(
            lambda z: spread(z, layout.AXIS),
            mesh=layout.mesh(),
            in_specs=P(layout.AXIS),
            out_specs=P(),
            check_vma=False,
        )
    )
    for name, value in mapped(z).items():
        np.testing.assert_allclose(value, spread(z, None)[name], rtol=1e-5)
    gradient = jax.grad(lambda z: sum(spread(z, None).values()))(jnp.asarray(z))
    assert not np.any(gradient)
