"""Rows change places within their block, by its global number, and come back."""

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.methods.parts import shuffle

X = np.random.default_rng(0).normal(size=(16, 2, 3)).astype(np.float32)


def places(key, block, b=16):
    """Global rows in their new order."""
    order = shuffle.draw(jax.random.key(key), b, block, None)
    return np.asarray(shuffle.shuffle(np.arange(b), order, None))


@pytest.mark.parametrize("block", [1, 4, 8, 16])
def test_back_in_place(block):
    order = shuffle.draw(jax.random.key(0), 16, block, None)
    moved = shuffle.shuffle(X, order, None)
    np.testing.assert_array_equal(shuffle.unshuffle(moved, order, None), X)
    np.testing.assert_array_equal(moved, X[places(0, block)])
    assert np.array_equal(moved, X) == (block == 1)


def test_blocks_keep_their_rows_and_have_orders_of_their_own():
    rows = places(0, 8)
    np.testing.assert_array_equal(np.sort(rows[:8]), np.arange(8))
    np.testing.assert_array_equal(np.sort(rows[8:]), np.arange(8, 16))
    assert np.any(rows[:8] != rows[8:] - 8)
    assert np.any(rows != places(1, 8))


def test_groups_mix_evenly():
    # Groups of 2 in blocks of 8: a row comes into each of the four groups equally often.
    counts = np.zeros((8, 4))
    for key in range(200):
        counts[places(key, 8, 8), np.arange(8) // 2] += 1
    assert np.abs(counts / 200 - 1 / 4).max() < 0.12  # four standard deviations


@pytest.mark.parametrize("block", [2, 8, 16])
def test_any_number_of_devices_draws_the_same(block):
    """Four rows a device: two blocks of it, half of one, and a quarter of the only one."""

    def there_and_back(x):
        order = shuffle.draw(jax.random.key(3), 4, block, layout.AXIS)
        moved = shuffle.shuffle(x, order, layout.AXIS)
        return moved, shuffle.unshuffle(moved, order, layout.AXIS)

    mapped = jax.shard_map(
        there_and_back,
        mesh=layout.mesh(),
        in_specs=P(layout.AXIS),
        out_specs=P(layout.AXIS),
        check_vma=False,
    )
    moved, back = jax.jit(mapped)(np.arange(16))
    np.testing.assert_array_equal(moved, places(3, block))
    np.testing.assert_array_equal(back, np.arange(16))


def test_whole_blocks_alone():
    with pytest.raises(ValueError, match="6 rows are not whole blocks of 4"):
        shuffle.draw(jax.random.key(0), 6, 4, None)
    shuffle.check(32, 8, 512, 2)
    shuffle.check(0, 8, 100, 1)  # nothing is shuffled
    said = "batch=100 in 1 .* blocks of 256 rows, .*group=32 times --config.method.shuffle=8"
    with pytest.raises(UserError, match=said):
        shuffle.check(32, 8, 100, 1)
