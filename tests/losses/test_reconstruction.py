"""Losses of masked image modelling, on numbers by hand (MAE's own: tests/methods/test_mae.py)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.losses import reconstruction


def test_a_patch_is_normalised_with_the_unbiased_variance():
    x = np.array([[1.0, 3.0, 5.0], [2.0, 2.0, 2.0]], np.float32)
    got = reconstruction.normalised_patches(x)
    # variance 8 / 2 = 4
    np.testing.assert_allclose(got, [[-1, 0, 1], [0, 0, 0]], atol=1e-6)
    # The constant stands beside the variance, under the root: 1e-3 · (−1, 0, 1) has variance 1e-6.
    small = reconstruction.normalised_patches(1e-3 * np.array([[-1.0, 0.0, 1.0]]))
    np.testing.assert_allclose(small, np.array([[-1, 0, 1]]) / np.sqrt(2), rtol=1e-5)
    with pytest.raises(ValueError, match="no variance"):
        reconstruction.normalised_patches(jnp.ones((2, 1)))


def test_masked_mse_by_hand():
    prediction = np.array([[[1.0, 1.0], [0.0, 4.0]], [[9.0, 9.0], [3.0, 0.0]]])
    target = np.zeros_like(prediction)
    mask = np.array([[True, True], [False, True]])
    # means over a patch: 1, 8, (81), 4.5; three are hidden
    got = reconstruction.masked_mse(prediction, target, mask)
    np.testing.assert_allclose(got, (1 + 8 + 4.5) / 3, rtol=1e-6)
    assert float(reconstruction.masked_mse(prediction, target, np.zeros((2, 2), bool))) == 0
    for wrong in (mask[:1], mask[..., None], mask[:, :1]):
        with pytest.raises(ValueError, match="mask"):
            reconstruction.masked_mse(prediction, target, wrong)


def test_every_hidden_patch_of_all_devices_weighs_the_same():
    rng = np.random.default_rng(0)
    prediction, target = rng.normal(size=(2, 4, 6, 5)).astype(np.float32)
    mask = np.zeros((4, 6), bool)
    mask[0, 0] = mask[3, :5] = True  # one on the first device, five on the second

    def loss(scale, prediction, target, mask, axis=None):
        # As the step has it: the mean within the differentiated function, then that of gradients.
        share = reconstruction.masked_mse(scale * prediction, target, mask, axis)
        return collectives.pmean(share, axis)

    def local(prediction, target, mask):
        axis = layout.AXIS
        both = jax.value_and_grad(loss)(scale, prediction, target, mask, axis)
        share = reconstruction.masked_mse(scale * prediction, target, mask, axis)
        explained = reconstruction.explained(share, target, mask, axis)
        return collectives.pmean((both, explained), axis)

    scale = jnp.float32(1.5)
    whole, gradient = jax.value_and_grad(loss)(scale, prediction, target, mask)
    mesh, rows = layout.mesh(jax.devices()[:2]), P(layout.AXIS)
    mapped = jax.shard_map(local, mesh=mesh, in_specs=rows, out_specs=P(), check_vma=False)
    (split, split_gradient), explained = jax.jit(mapped)(prediction, target, mask)
    np.testing.assert_allclose(split, whole, rtol=1e-6)
    np.testing.assert_allclose(split_gradient, gradient, rtol=1e-5)
    want = reconstruction.explained(whole, target, mask)
    np.testing.assert_allclose(explained, want, rtol=1e-5)


def test_explained_is_0_for_the_mean_of_a_patch_and_1_for_its_pixels():
    target = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
    mask = np.array([[True, False, True], [True, True, False]])

    def share(prediction):
        value = reconstruction.masked_mse(prediction, target, mask)
        return float(reconstruction.explained(value, target, mask))

    assert share(target) == 1
    np.testing.assert_allclose(
        share(np.broadcast_to(target.mean(-1, keepdims=True), target.shape)), 0, atol=1e-6
    )
