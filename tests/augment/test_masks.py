"""Masks: MAE's own on its noise, equal counts, the shapes that the names promise."""

import pathlib

import jax
import numpy as np
import pytest

from ssl_jax.augment import masks
from ssl_jax.errors import UserError

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def draw(name, side, ratio, count=400):
    masking = masks.make(name, side, ratio)
    drawn = np.asarray(jax.jit(masking.draw)(jax.random.split(jax.random.key(0), count)))
    assert drawn.shape == (count, side * side) and drawn.dtype == bool
    assert set((~drawn).sum(1)) == {masking.visible}, "all examples show equally many"
    return drawn.reshape(count, side, side)


@pytest.mark.parametrize("visible, key", [(4, "mask"), (8, "mask50")])
def test_the_smallest_noise_stays_as_in_mae(visible, key):
    golden = np.load(GOLDEN / "mae_tiny.npz")
    got = masks.smallest(golden["noise"], visible)
    np.testing.assert_array_equal(got, golden[key].astype(bool))


@pytest.mark.parametrize(
    "side, ratio, visible", [(14, 0.75, 49), (7, 0.75, 12), (14, 0.7, 58), (4, 0.5, 8)]
)
def test_the_number_of_visible_patches_is_truncated_as_in_mae(side, ratio, visible):
    assert masks.make("random", side, ratio).visible == visible
    assert masks.make("block", side, ratio).visible == visible


def test_random_masks_hide_every_patch_alike():
    share = draw("random", 4, 0.75, 2000).mean(0)
    assert abs(share - 0.75).max() < 0.04  # standard error 0.01


@pytest.mark.parametrize("side, ratio", [(14, 0.5), (7, 0.75)])
def test_block_masks_are_blocks(side, ratio):
    blocks, scattered = draw("block", side, ratio), draw("random", side, ratio)

    def alike(mask):  # neighbours that are both hidden or both visible
        return (mask[:, 1:] == mask[:, :-1]).mean()

    assert alike(blocks) > alike(scattered) + 0.15
    assert len({m.tobytes() for m in blocks}) > 350
    # A patch that is hidden has a hidden neighbour, but for the rest that is drawn at random.
    padded = np.pad(blocks, ((0, 0), (1, 1), (1, 1)))
    near = padded[:, 2:, 1:-1] | padded[:, :-2, 1:-1] | padded[:, 1:-1, 2:] | padded[:, 1:-1, :-2]
    assert (blocks & ~near).mean() < 0.002


@pytest.mark.parametrize("side, ratio, stride", [(14, 0.75, 2), (7, 0.75, 2), (7, 8 / 9, 3)])
def test_grid_masks_show_one_patch_in_a_square(side, ratio, stride):
    count = side // stride
    firsts = set()
    for mask in draw("grid", side, ratio, 100):
        rows, columns = np.nonzero(~mask.all(1))[0], np.nonzero(~mask.all(0))[0]
        for places in (rows, columns):
            np.testing.assert_array_equal(np.diff(places), stride)
            assert len(places) == count
        assert (~mask[np.ix_(rows, columns)]).all()
        firsts.add((rows[0], columns[0]))
    assert len(firsts) == (side - stride * (count - 1)) ** 2


def test_an_example_draws_from_its_own_key():
    keys = jax.random.split(jax.random.key(1), 6)
    for name in masks.MASKINGS:
        masking = masks.make(name, 6, 0.75)
        drawn = jax.jit(masking.draw)
        np.testing.assert_array_equal(drawn(keys)[::-1], drawn(keys[::-1]))


@pytest.mark.parametrize(
    "name, ratio, message",
    [
        ("rnadom", 0.75, "Did you mean random"),
        ("random", 1.5, "a share of the patches"),
        ("random", 0.99, "of 49 patches 0 would be visible"),
        ("grid", 0.5, "one of s × s patches"),
        ("grid", 0.999, "one of s × s patches"),
    ],
)
def test_user_errors(name, ratio, message):
    with pytest.raises(UserError, match=message):
        masks.make(name, 7, ratio)
