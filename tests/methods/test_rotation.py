"""RotNet: the authors' rotations and labels through the method's own functions."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.augment import policies
from ssl_jax.contract.method import Context, Run
from ssl_jax.methods import rotation
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(64, 16, 4, 10)


def context():
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(3), None)


def draw(method, image):
    return np.asarray(jax.jit(method.views)(jax.random.key(1), {"image": image}, context()))


@pytest.mark.parametrize("image, rotated", [("img", "rotated"), ("toprow", "toprow_rotated")])
def test_views_are_the_authors_rotations(image, rotated):
    golden = np.load(GOLDEN / "rotnet_labels.npz")
    config, _ = configs.load("configs/rotation.py:digits")
    config.views.image = policies.make("none", 4)._asdict()
    views = draw(rotation.make(config, RUN), np.stack([golden[image], golden[image][::-1]]))
    assert views.shape == (2, 4, 4, 4, 3)
    np.testing.assert_allclose(255 * views[0], golden[rotated], atol=1e-3)
    if image == "img":
        np.testing.assert_allclose(255 * views[0], golden["vissl_pil_rotated"], atol=1e-3)
    # They are rotations of one crop, whatever that is.
    np.testing.assert_array_equal(views[1, 2], np.rot90(views[1, 0], 2))


def test_loss_and_accuracy_of_known_logits(monkeypatch):
    """With an encoder that hands on four pixels and a head that hands them on as logits."""
    golden = np.load(GOLDEN / "rotnet_labels.npz")
    seen = []

    class Flat:
        dtype = jnp.float32

        def clone(self, axis):
            return self

        def apply(self, variables, x, train, mutable):
            assert train
            seen.append(x.shape)
            return x.reshape(len(x), -1), {"batch_stats": {"rows": len(x)}}

    monkeypatch.setattr(rotation.models, "make", lambda _: Flat())
    monkeypatch.setattr(rotation.heads, "MLP", lambda **_: Flat())
    config, _ = configs.load("configs/rotation.py:digits")
    method = rotation.make(config, RUN)
    logits = np.random.default_rng(0).normal(size=(3, 4, 4)).astype(np.float32)
    params = {"encoder": {}, "head": {}}
    loss, (state, metrics) = method.loss(
        params, {"encoder": {}}, jnp.asarray(logits).reshape(3, 4, 2, 2, 1), context()
    )
    # Image-major: the four rotations of an image one after the other, in one batch.
    assert seen == [(12, 2, 2, 1), (12, 4)] and state == {"encoder": {"rows": 12}}
    labels = np.tile(golden["labels"], 3)
    flat = logits.reshape(12, 4)
    log_softmax = flat - np.log(np.exp(flat).sum(1, keepdims=True))
    np.testing.assert_allclose(loss, -log_softmax[np.arange(12), labels].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (flat.argmax(1) == labels).mean())


def test_cifar_is_cropped_from_a_black_border_and_not_resized():
    config, _ = configs.load("configs/rotation.py:cifar10")
    config.views.image.mean, config.views.image.std = (0.0,), (1.0,)
    config.model.width = 8
    views = draw(rotation.make(config, RUN), np.full((64, 32, 32, 3), 255, np.uint8))
    upright = views[:, 0, :, :, 0]
    assert set(np.unique(np.round(upright, 5))) == {0, 1}
    top = [int(np.argmax(x.any(1))) for x in upright]
    bottom = [int(np.argmax(x.any(1)[::-1])) for x in upright]
    assert max(top) == max(bottom) == 4 and all(
        t * b == 0 for t, b in zip(top, bottom, strict=True)
    )
    assert {len(set(top)), len(set(bottom))} == {5}


@pytest.mark.long
def test_the_page_shows_a_view_in_its_four_rotations():
    config, _ = configs.load("configs/rotation.py:digits")
    config.views.image.update(mean=(0.2,), std=(0.5,))
    method = rotation.make(config, RUN)
    image = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    show = method.show["views"]
    assert show.variables({}, {}) == {}
    ((title, found),) = show.draw({}, {"image": image}, jax.random.key(1)).items()
    assert title == "four rotations" and found.dtype == np.uint8
    want = np.clip(draw(method, image) * 0.5 + 0.2, 0, 1)  # by the same key
    np.testing.assert_allclose(found, 255 * want, atol=0.51)
