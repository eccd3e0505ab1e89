"""Puzzles: the authors' permutations, boxes and normalisation."""

import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.augment import tiles
from ssl_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(GOLDEN / "jigsaw_tiles.npz"))


@pytest.mark.parametrize("seed", [0, 1])
def test_permutations_are_those_of_the_official_script(seed):
    tiles.permutations.cache_clear()
    start = time.perf_counter()
    got = tiles.permutations(30, seed)
    assert time.perf_counter() - start < 2
    np.testing.assert_array_equal(
        got, np.load(GOLDEN / "jigsaw_permutations.npz")[f"max_seed{seed}"]
    )
    assert tiles.permutations(30, seed) is got and not got.flags.writeable
    np.testing.assert_array_equal(tiles.permutations(7, seed), got[:7])


def test_more_permutations_differ_and_stay_far_from_each_other():
    many = tiles.permutations(300, 0)
    np.testing.assert_array_equal(np.sort(many, 1), np.tile(np.arange(9), (300, 1)))
    assert len({tuple(row) for row in many}) == 300
    distance = (many[:, None] != many).sum(-1)[~np.eye(300, dtype=bool)]
    assert distance.mean() > 8.02 and distance.min() >= 2  # two permutations differ in 8 on average


@pytest.mark.parametrize("count", [0, 362_881])
def test_there_are_so_many_permutations(count):
    with pytest.raises(UserError, match="362,880"):
        tiles.permutations(count, 0)


def test_cells_are_the_official_ones(golden):
    image = jnp.asarray(golden["im"], jnp.float32)[None]
    cells = np.asarray(
        jax.jit(tiles.cut, static_argnums=(2, 3))(image, jnp.zeros((1, 9, 2), int), 86, 0)
    )
    assert cells.shape == (1, 9, 86, 86, 3)
    np.testing.assert_array_equal(cells[0, 4], golden["tile4_raw"])
    padded = np.pad(golden["im"], ((0, 1), (0, 1), (0, 0)))
    for got, (top, left, height, width) in zip(cells[0], golden["py2_boxes"], strict=True):
        np.testing.assert_array_equal(got, padded[top : top + height, left : left + width])


def test_a_tile_lies_where_its_offset_says(golden):
    """PyContrast's boxes, its offsets read back from them."""
    boxes = golden["pycontrast_boxes"]
    offsets = boxes[:, :2] - 85 * np.stack(np.divmod(np.arange(9), 3), 1)
    assert offsets.min() >= 0 and 20 < offsets.max() <= 21
    image = jnp.asarray(np.stack([golden["im"], golden["im"][::-1]]), jnp.float32)
    both = jnp.asarray(np.stack([offsets, 21 - offsets]))
    got = np.asarray(jax.jit(tiles.cut, static_argnums=(2, 3))(image, both, 64, 21))
    for i, offset in enumerate(both):
        for n, (down, right) in enumerate(np.asarray(offset)):
            top, left = 85 * (n // 3) + down, 85 * (n % 3) + right
            want = image[i, top : top + 64, left : left + 64]
            np.testing.assert_array_equal(got[i, n], want)


def test_a_tile_is_normalised_and_shuffled_as_the_official_code_does(golden):
    image = jnp.asarray(golden["im"], jnp.float32)[None] / 255
    cells = tiles.normalise(tiles.cut(image, jnp.zeros((1, 9, 2), int), 86, 0))

    def close(got, want):
        np.testing.assert_allclose(got[::5, ::5].transpose(2, 0, 1), want, rtol=1e-4, atol=2e-5)

    close(np.asarray(cells[0, 4]), golden["tile4_normalized"])
    placed = np.asarray(tiles.shuffle(cells, golden["permutation"][None]))[0]
    close(placed[0], golden["data_tile0"])
    for place, tile in enumerate(golden["permutation"]):
        np.testing.assert_array_equal(placed[place], cells[0, tile])


def test_the_deviation_is_unbiased_and_1_where_it_is_0():
    tile = np.array([0.0, 2.0, 4.0, 6.0], np.float32).reshape(2, 2, 1)
    # variance 20 / 3
    want = (tile - 3) / np.sqrt(20 / 3)
    np.testing.assert_allclose(tiles.normalise(tile), want, rtol=1e-6)
    np.testing.assert_array_equal(tiles.normalise(jnp.full((2, 2, 1), 0.25)), np.zeros((2, 2, 1)))
