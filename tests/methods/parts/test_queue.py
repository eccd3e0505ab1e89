"""The ring: newest over oldest, rows of all devices in order, whole batches alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.methods.parts import queue
from ssl_jax.train.state import written

ROWS = np.random.default_rng(0).normal(size=(5, 4, 3)).astype(np.float32)  # [step, B, d]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_random_directions():
    rows = queue.create(jax.random.key(0), 50, 4)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-6)
    # Gaussian noise has no preferred direction; uniform noise would prefer the corners.
    assert rows.shape == (50, 4) and np.abs(np.mean(rows, 0)).max() < 0.3
    assert len(np.unique(rows, axis=0)) == 50
    assert np.any(rows != queue.create(jax.random.key(1), 50, 4))


@pytest.mark.parametrize("devices", [1, 2])
def test_newest_over_oldest_in_row_order(devices):
    mesh = layout.mesh(jax.devices()[:devices])
    enqueue = jax.jit(
        jax.shard_map(
            functools.partial(queue.enqueue, axis=layout.AXIS),
            mesh=mesh,
            in_specs=(P(), P(), P(layout.AXIS)),
            out_specs=P(),
            check_vma=False,
        )
    )
    start = np.asarray(queue.create(jax.random.key(0), 12, 3))
    ring, pointer = jnp.asarray(start), jnp.zeros((), jnp.int32)
    want = start.copy()
    for step, rows in enumerate(ROWS):
        ring, pointer = written(enqueue(ring, pointer, rows))
        first = 4 * step % 12
        want[first : first + 4] = unit(rows)
        np.testing.assert_allclose(ring, want, rtol=1e-6, err_msg=f"step {step}")
        assert pointer == (first + 4) % 12 and pointer.dtype == jnp.int32


def test_no_gradient_flows_into_the_queue():
    def total(rows):
        ring, _ = queue.enqueue(jnp.zeros((8, 3)), jnp.int32(4), rows, None)
        return jnp.sum(written(ring) * jnp.arange(3.0))

    np.testing.assert_array_equal(jax.grad(total)(jnp.asarray(ROWS[0])), np.zeros((4, 3)))


@pytest.mark.parametrize(("size", "fits"), [(10, "8"), (3, "4"), (15, "16"), (0, "4")])
def test_only_whole_batches_fit(size, fits):
    with pytest.raises(UserError, match=rf"queue={size} .* 4 rows .* choose {fits}$"):
        queue.check(size, 4)


def test_enqueue_checks_the_rows_of_all_devices():
    with pytest.raises(UserError, match="not a multiple of the 4 rows"):
        queue.enqueue(jnp.zeros((6, 3)), jnp.int32(0), ROWS[0], None)
