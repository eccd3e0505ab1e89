"""Mixup and CutMix: timm's loops in numpy, its distributions, and any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ssl_jax.augment import mixing
from ssl_jax.augment.mixing import Drawn, Mixing
from ssl_jax.devices import layout, mapping


def batch(b=8, height=6, width=5, classes=3, seed=0):
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(b, height, width, 2)).astype(np.float32)
    labels = generator.integers(0, classes, b)
    return images, np.asarray(mixing.soft_targets(jnp.asarray(labels), classes, 0.1))


def loops(images, targets, lam, cutmix, boxes):
    """timm's _mix_elem, one image after the other, with neighbours as pairs."""
    x, t = images.copy(), targets.copy()
    for i in range(len(images)):
        j = i + 1 if i % 2 == 0 else i - 1
        if cutmix[i]:
            top, bottom, left, right = boxes[i]
            x[i, top:bottom, left:right] = images[j, top:bottom, left:right]
        else:
            x[i] = lam[i] * images[i] + (1 - lam[i]) * images[j]
        t[i] = lam[i] * targets[i] + (1 - lam[i]) * targets[j]
    return x, t


def draws(m, n=4000, height=32, width=24, seed=0):
    keys = jax.random.split(jax.random.key(seed), n)
    drawn = jax.jit(jax.vmap(lambda key: mixing.draw(m, key, height, width)))(keys)
    return jax.tree.map(np.asarray, drawn)


def test_blend_is_timms_loop():
    images, targets = batch()
    generator = np.random.default_rng(1)
    lam = generator.uniform(size=8).astype(np.float32)
    cutmix = generator.uniform(size=8) < 0.5
    assert 0 < cutmix.sum() < 8
    boxes = np.stack([[1, 4, 0, 3]] * 4 + [[0, 6, 2, 5], [2, 2, 1, 3], [0, 6, 0, 5], [5, 6, 4, 5]])
    x, t = mixing.blend(Drawn(lam, cutmix, boxes.astype(np.int32)), images, targets)
    expected = loops(images, targets, lam, cutmix, boxes)
    np.testing.assert_allclose(x, expected[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(t, expected[1], rtol=1e-6)
    for is_cut in (True, False):  # one draw for the batch
        x, t = mixing.blend(Drawn(lam[0], np.asarray(is_cut), boxes[0]), images, targets)
        expected = loops(images, targets, [lam[0]] * 8, [is_cut] * 8, boxes[[0] * 8])
        np.testing.assert_allclose(x, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(t, expected[1], rtol=1e-6)


@pytest.mark.parametrize(
    "lam, u, expected",
    [
        (0.75, (0.5, 0.5), (2, 6, 2, 4)),  # sides 4 and ⌊3.5⌋ = 3, halves 2 and 1, around 4 and 3
        (0.75, (0.0, 0.99), (0, 2, 5, 7)),  # cut at the border
        (1.0, (0.3, 0.6), (2, 2, 4, 4)),  # nothing
        (0.0, (0.5, 0.5), (0, 8, 0, 6)),  # all but what an odd side leaves
    ],
)
def test_the_rectangle_of_cutmix_by_hand(lam, u, expected):
    got = mixing.rectangle(jnp.asarray(lam), jnp.asarray(u), 8, 7)
    np.testing.assert_array_equal(got, expected)


def test_label_smoothing_by_hand():
    got = mixing.soft_targets(jnp.asarray([1, -1]), 4, 0.2)
    np.testing.assert_allclose(got, [[0.05, 0.85, 0.05, 0.05], [0] * 4], rtol=1e-6)


def test_lambda_of_mixup_is_a_beta():
    drawn = draws(Mixing(mixup=0.8))
    assert not drawn.cutmix.any()
    assert stats.kstest(drawn.lam, stats.beta(0.8, 0.8).cdf).pvalue > 0.01


def test_cutmix_as_timms_loop_draws_it():
    height, width, alpha = 32, 24, 0.7
    drawn = draws(Mixing(cutmix=alpha))
    assert drawn.cutmix.all()
    top, bottom, left, right = drawn.box.T
    share = 1 - (bottom - top) * (right - left) / (height * width)
    np.testing.assert_allclose(drawn.lam, share, rtol=1e-5, atol=1e-6)
    generator, expected = np.random.default_rng(0), []
    for _ in range(4000):
        side = np.sqrt(1 - generator.beta(alpha, alpha))
        area = 1
        for length in (height, width):
            cut, centre = int(length * side), generator.integers(0, length)
            ends = np.clip([centre - cut // 2, centre + cut // 2], 0, length)
            area *= ends[1] - ends[0]
        expected.append(1 - area / (height * width))
    assert stats.ks_2samp(drawn.lam, expected).pvalue > 0.01
    assert top.min() == left.min() == 0 and bottom.max() == height and right.max() == width


def test_how_often():
    drawn = draws(Mixing(mixup=0.8, cutmix=1.0, probability=0.6, switch=0.3))
    assert abs(drawn.cutmix.mean() - 0.3) < 0.03
    untouched = drawn.lam == 1
    assert abs(untouched[~drawn.cutmix].mean() - 0.4) < 0.03


@pytest.mark.parametrize(
    "mode, group, shared",
    [
        pytest.param("batch", 0, 16, marks=pytest.mark.long),
        ("batch", 8, 8),
        pytest.param("elem", 32, 1, marks=pytest.mark.long),
    ],
)
def test_four_devices_equal_one(mode, group, shared):
    """Rows with one λ may lie on several devices, or be some of one's."""
    m = Mixing(mixup=0.8, cutmix=1.0, mode=mode, group=group)
    images, targets = batch(b=16)
    whole = mapping.compile_rows(
        lambda key, rows: mixing.mix(m, key, *rows, layout.AXIS), layout.mesh()
    )
    one = jax.jit(lambda key: mixing.mix(m, key, images, targets, None))
    partners = targets.reshape(8, 2, 3)[:, ::-1].reshape(16, 3)
    differ = np.flatnonzero(np.abs(targets - partners).max(1))
    assert len(differ) > 4
    most = np.abs(targets - partners).argmax(1)[differ]  # a class in which they differ
    seen = set()
    for seed in range(4):
        key = jax.random.key(seed)
        x, t = one(key)
        for got, expected in zip(whole(key, (images, targets)), (x, t), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)
        assert np.abs(x - images).max() > 0.1
        lam = (t - partners)[differ, most] / (targets - partners)[differ, most]
        same, together = np.abs(lam[:, None] - lam) < 1e-5, differ // shared
        assert same[together[:, None] == together].all()
        # (Two groups may both have drawn a CutMix that covers nothing.)
        assert same.all() == (len(set(together)) == 1)
        seen.add(np.asarray(x).tobytes())
    assert len(seen) == 4, "every key mixes differently"


def test_what_cannot_be_mixed_is_an_error():
    images, targets = batch(b=3)
    with pytest.raises(ValueError, match="whole pairs"):
        mixing.mix(Mixing(mixup=1.0), jax.random.key(0), images, targets, None)
    with pytest.raises(ValueError, match="pair"):
        mixing.mix(Mixing(mixup=1.0, mode="pair"), jax.random.key(0), images, targets, None)
    with pytest.raises(ValueError, match="share their λ"):
        mixing.mix(Mixing(mixup=1.0, group=3), jax.random.key(0), images, targets, None)
