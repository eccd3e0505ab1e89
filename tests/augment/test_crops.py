"""Several views side by side: each by its own policy and its own noise."""

import functools

import jax
import numpy as np

from ssl_jax import augment


def test_every_view_has_its_policy_and_its_noise():
    image = np.random.default_rng(0).integers(0, 256, (6, 20, 20, 1), dtype=np.uint8)
    plain = augment.make("none", 12)
    crop = augment.make("digits", 12, blur=0.0, shear=0.0)
    policies = (crop, crop, plain, crop)
    draw = jax.jit(functools.partial(augment.crops, policies, axis=None))
    views = np.asarray(draw(jax.random.key(1), image=image))
    assert views.shape == (6, 4, 12, 12, 1)
    want = jax.jit(functools.partial(augment.apply, plain))(
        jax.random.split(jax.random.key(0), 6), image
    )
    np.testing.assert_allclose(views[:, 2], want, atol=1e-6)
    for i, j in ((0, 1), (0, 3), (1, 3), (0, 2)):
        assert np.abs(views[:, i] - views[:, j]).max() > 0.05
    # Row 3 alone would be drawn by the key of row 0: the noise names the global row.
    again = np.asarray(draw(jax.random.key(1), image=image[:3]))
    np.testing.assert_array_equal(again, views[:3])
    assert np.abs(np.asarray(draw(jax.random.key(2), image=image)) - views).max() > 0.05
