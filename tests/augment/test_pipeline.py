"""Whole views: probabilities, noise by example, any split of the batch, every policy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kit import programs

from ssl_jax import augment
from ssl_jax.augment import policies
from ssl_jax.devices import collectives, layout

apply = jax.jit(augment.apply, static_argnums=0)


def _keys(n, seed=0):
    return collectives.example_keys(jax.random.key(seed), n, None)


def _images(b, height, width, channels=3, seed=0):
    r = np.random.default_rng(seed)
    return r.integers(0, 256, (b, height, width, channels), dtype=np.uint8)


def _distinct():
    """One name of each group of equal policies."""
    return sorted(
        {p: name for name in policies.POLICIES for p in [policies.make(name, 24)]}.values()
    )


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.long), 3])
@pytest.mark.parametrize("name", _distinct())
def test_every_policy_gives_finite_views(name, channels):
    policy = policies.make(name, 24)
    images = _images(4, 26, 30, channels)
    images[0], images[1] = 0, 255
    x = apply(policy, _keys(4), images)
    assert x.shape == (4, 24, 24, channels) and x.dtype == jnp.float32
    assert np.isfinite(x).all()
    mean, std = np.mean(policy.mean), np.mean(policy.std)
    low, high = (0 - mean) / std, (1 - mean) / std
    assert low - 0.5 < x.min() and x.max() < high + 0.5
    if name != "none":
        other = apply(policy, _keys(4, seed=1), images)
        assert np.abs(x[2:] - other[2:]).max() > 0.01


@pytest.mark.parametrize("name", ["simclr", "barlow_2"])
def test_a_view_depends_on_its_key_alone(name):
    policy, images, keys = policies.make(name, 16), _images(8, 20, 20), _keys(8)
    whole = apply(policy, keys, images)
    np.testing.assert_array_equal(whole, apply(policy, keys, images))
    halves = [apply(policy, keys[i : i + 4], images[i : i + 4]) for i in (0, 4)]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-5)
    order = np.array([3, 1, 7, 0, 2, 6, 5, 4])
    np.testing.assert_allclose(whole[order], apply(policy, keys[order], images[order]), atol=1e-5)
    same = apply(policy, jnp.broadcast_to(keys[:1], (8,)), np.tile(images[:1], (8, 1, 1, 1)))
    np.testing.assert_allclose(same, np.tile(whole[:1], (8, 1, 1, 1)), atol=1e-5)


def test_the_same_noise_on_four_devices():
    policy, images, key = policies.make("simclr", 16), _images(8, 20, 20), jax.random.key(3)

    def local(images, axis):
        keys = collectives.example_keys(key, images.shape[0], axis)
        return augment.apply(policy, keys, images)

    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), (layout.AXIS,))
    spread = jax.jit(
        jax.shard_map(
            functools.partial(local, axis=layout.AXIS),
            mesh=mesh,
            in_specs=P(layout.AXIS),
            out_specs=P(layout.AXIS),
            check_vma=False,
        )
    )(images)
    alone = jax.jit(functools.partial(local, axis=None))(images)
    np.testing.assert_allclose(spread, alone, atol=1e-5)


@pytest.mark.parametrize("name,channels", [("simclr", 3), ("barlow_2", 3), ("digits", 1)])
def test_one_by_one_gives_the_same_views(name, channels):
    """At 96 pixels the filters of a single image go in two runs (geometry.banded_dot)."""
    policy, images = policies.make(name, 96), _images(12, 110, 100, channels)
    loop = jax.jit(functools.partial(augment.apply, policy, one_by_one=True))
    with programs.float64():
        keys = _keys(12)
        np.testing.assert_allclose(loop(keys, images), apply(policy, keys, images), atol=1e-9)


def test_leaving_an_operation_out_does_not_change_the_others():
    images, keys = _images(8, 20, 20), _keys(8)
    shared = {"area": (0.2, 1.0), "flip": 0.5}
    plain = apply(policies.make("none", 16, **shared), keys, images)
    # Solarizes nothing: no value reaches the threshold.
    more = policies.make("none", 16, **shared, solarize=0.5, threshold=2.0)
    np.testing.assert_allclose(apply(more, keys, images), plain, atol=1e-6)


N = 3000
BOUND = 3.3 * 0.5 / np.sqrt(N)  # 0.1% of fair samples go beyond


def _draws(**overrides):
    """Views of N copies of one 4 × 4 image whose channels, columns and rows all differ."""
    image = np.linspace(10, 245, 48).reshape(1, 4, 4, 3).astype(np.uint8)
    policy = policies.make("none", 4, **overrides)
    return np.asarray(apply(policy, _keys(N), np.tile(image, (N, 1, 1, 1)))), image / 255.0


def test_probability_of_a_flip():
    views, image = _draws(flip=0.3)
    flipped = np.abs(views - image[:, :, ::-1]).max((1, 2, 3)) < 1e-5
    kept = np.abs(views - image).max((1, 2, 3)) < 1e-5
    assert (flipped ^ kept).all() and abs(flipped.mean() - 0.3) < BOUND


@pytest.mark.parametrize(
    "operation", [{"gray": 0.3}, {"solarize": 0.3}, {"blur": 0.3, "blur_radius": 1}]
)
def test_probability_of_an_operation(operation):
    views, image = _draws(**operation, sigma=(1.0, 1.0))
    changed = np.abs(views - image).max((1, 2, 3)) > 1e-3
    assert abs(changed.mean() - 0.3) < BOUND
    assert np.abs(views[changed] - views[changed][0]).max() < 1e-5  # all changed alike


def test_jitter_probability_range_and_order():
    views, image = _draws(jitter=0.8, brightness=0.4)
    factor = views[:, 0, 0, 0] / image[0, 0, 0, 0]
    changed = np.abs(factor - 1) > 1e-4
    assert abs(changed.mean() - 0.8) < BOUND
    factor = factor[changed]
    assert 0.6 <= factor.min() < 0.61 and 1.39 < factor.max() <= 1.4
    assert abs(factor.mean() - 1.0) < 0.02 and abs(np.quantile(factor, 0.25) - 0.8) < 0.02


def test_strength_above_one_never_inverts_an_image():
    views, image = _draws(jitter=1.0, brightness=1.5)
    assert views.min() >= 0 and (views[:, 0, 0, 0] < 0.01 * image[0, 0, 0, 0]).mean() < 0.05


def test_byol_brightness_is_a_symmetric_difference():
    views, image = _draws(jitter=1.0, brightness=0.2, semantics="byol")
    delta = views[:, 2, 2, 1] - image[0, 2, 2, 1]
    assert -0.2 <= delta.min() < -0.19 and 0.19 < delta.max() <= 0.2 and abs(delta.mean()) < 0.01


def test_sigma_is_uniform_in_its_range():
    white, keys = np.full((N, 4, 4, 1), 255, np.uint8), _keys(N)
    blurred = {"blur": 1.0, "blur_radius": 1, "blur_padding": "zero"}

    def corner(low, high):  # falls with sigma: more of the dark padding comes in
        policy = policies.make("none", 4, **blurred, sigma=(low, high))
        return np.asarray(apply(policy, keys, white))[:, 0, 0, 0]

    drawn = corner(0.5, 2.0)
    narrow, middle, wide = (corner(s, s)[0] for s in (0.5, 1.25, 2.0))
    assert wide - 1e-6 <= drawn.min() < drawn.max() <= narrow + 1e-6
    assert abs((drawn > middle).mean() - 0.5) < BOUND


def test_draws_of_one_image_are_independent():
    views, _ = _draws(gray=0.5, solarize=0.5, flip=0.5)
    gray = np.abs(views[..., 0] - views[..., 2]).max((1, 2)) < 1e-5
    solarized = views.max((1, 2, 3)) <= 0.5
    flipped = views[:, 0, 0, 0] > views[:, 0, 3, 0]  # the dark first row is never inverted
    for a, b in ((gray, solarized), (gray, flipped), (solarized, flipped)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.06
        assert abs((a & b).mean() - 0.25) < BOUND


def test_order_is_gray_blur_solarize_normalise():
    image = _images(2, 6, 6)
    policy = policies.make(
        "none", 6, gray=1.0, blur=1.0, sigma=(1.0, 1.0), blur_radius=1, solarize=1.0,
        mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0),
    )  # fmt: skip
    x = np.repeat((image / 255.0) @ np.array([[0.2989], [0.587], [0.114]]), 3, -1)
    taps = np.exp(-(np.arange(-1, 2) ** 2) / 2)
    taps /= taps.sum()
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "edge")
    x = sum(t * x[:, i : i + 6] for i, t in enumerate(taps))
    x = sum(t * x[:, :, i : i + 6] for i, t in enumerate(taps))
    x = np.where(x >= 0.5, 1 - x, x)
    want = (x - np.array([0.1, 0.2, 0.3])) / np.array([0.5, 0.25, 2.0])
    np.testing.assert_allclose(apply(policy, _keys(2), image), want, atol=1e-5)


def test_gray_before_or_after_the_jitter():
    images, keys = _images(16, 8, 8), _keys(16)
    after = policies.make(
        "moco_v2", 8, gray=1.0, jitter=1.0, hue=0.4, blur=0, mean=[0.0], std=[1.0]
    )
    first = after._replace(gray_first=True)
    a, b = apply(after, keys, images), apply(first, keys, images)
    for x in (a, b):  # gray either way
        np.testing.assert_allclose(x[..., 0], x[..., 2], atol=1e-5)
    assert np.abs(a - b).max() > 0.02  # the hue of a gray image cannot turn


def test_gray_images_are_normalised_by_the_average():
    images = np.full((1, 4, 4, 1), 51, np.uint8)
    policy = policies.make("none", 4, mean=(0.1, 0.2, 0.3), std=(0.1, 0.1, 0.4))
    np.testing.assert_allclose(apply(policy, _keys(1), images), 0.0, atol=1e-6)
    policy = policies.make("none", 4, mean=(0.1,), std=(0.5,))
    np.testing.assert_allclose(apply(policy, _keys(1), images), 0.2, rtol=1e-5)


def test_digits_stay_on_a_black_ground():
    images = np.zeros((8, 28, 28, 1), np.uint8)
    images[:, 6:22, 12:16] = 255
    x = np.asarray(apply(policies.make("digits", 28), _keys(8), images))
    assert x.min() >= 0 and x.max() <= 1 and (x > 0.2).any((1, 2, 3)).all()
    assert len({round(float(v), 4) for v in x.sum((1, 2, 3))}) == 8


def test_evaluate_is_the_image_itself_at_its_own_size():
    images = _images(3, 9, 9)
    np.testing.assert_allclose(augment.evaluate(images, 9), images / 255.0, atol=1e-6)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    want = (images / 255.0 - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(augment.evaluate(images, 9, mean, std), want, atol=1e-5)


def test_evaluate_is_the_policy_none():
    images = _images(3, 20, 20, 1)
    view = apply(policies.make("none", 12), _keys(3), images)
    np.testing.assert_allclose(augment.evaluate(images, 12), view, atol=1e-6)


@pytest.mark.parametrize("shape,dtype", [((2, 8, 8, 3), np.float32), ((2, 8, 8, 4), np.uint8)])
def test_wrong_images_are_refused(shape, dtype):
    images = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match="not uint8"):
        augment.apply(policies.make("none", 8), _keys(2), images)
    with pytest.raises(ValueError, match="not uint8"):
        augment.evaluate(images, 8)


def test_one_key_for_each_image():
    with pytest.raises(ValueError, match=r"keys have shape \(3,\)"):
        augment.apply(policies.make("none", 8), _keys(3), _images(2, 8, 8))


def test_crop_fraction_is_a_fraction():
    with pytest.raises(ValueError, match="crop_fraction is 224"):
        augment.evaluate(_images(1, 8, 8), 8, crop_fraction=224)
