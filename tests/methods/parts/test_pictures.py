"""Pictures of views, patches and puzzles, on known values."""

import numpy as np
import pytest

from ssl_jax.augment import policies
from ssl_jax.methods.parts import pictures
from ssl_jax.models.vit import patchify


def test_unpatchify_undoes_patchify():
    x = np.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3)
    np.testing.assert_array_equal(pictures.unpatchify(patchify(x, 2), 2, 3), x)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_undone(channels):
    policy = policies.make("none", 2, mean=(0.1, 0.3, 0.5), std=(0.5, 0.25, 0.75))
    mean, std = np.array(policy.mean), np.array(policy.std)
    if channels == 1:  # the averages of the three
        mean, std = mean.mean(), std.mean()
    x = np.random.default_rng(0).integers(0, 256, (2, 2, 2, channels))
    views = ((x / 255 - mean) / std).astype(np.float32)
    found = pictures.of_views(views, policy)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(pictures.of_views(views + 100, policy), np.full_like(x, 255))


def test_patches_of_any_size_are_put_back():
    policy = policies.make("none", 6)
    x = np.random.default_rng(0).integers(0, 256, (2, 6, 6, 3))
    found = pictures.of_patches(patchify(np.float32(x / 255), 3), 3, policy)
    np.testing.assert_array_equal(found, x)


def test_puzzles_are_grey_where_a_tile_is_at_its_mean_and_black_between():
    tiles = np.arange(9.0)[None, :, None, None, None] / 4 - 1  # tile i is all i / 4 − 1
    whole = np.asarray(pictures.of_puzzles(np.broadcast_to(tiles, (1, 9, 2, 2, 1))))[0, :, :, 0]
    gap = pictures.GAP
    assert whole.shape == (6 + 2 * gap, 6 + 2 * gap) and whole.dtype == np.uint8
    assert (whole[2 : 2 + gap] == 0).all() and (whole[:, 2 : 2 + gap] == 0).all()
    step = 2 + gap
    grey = np.round(255 * (0.5 + (np.arange(9.0) / 4 - 1) / 4)).reshape(3, 3)
    np.testing.assert_array_equal(whole[::step, ::step], grey)
    np.testing.assert_array_equal(whole[1::step, 1::step], grey)
