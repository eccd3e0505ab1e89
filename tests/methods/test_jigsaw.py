"""Jigsaw: tiles, orders and labels that belong together, and the loss on them."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import probed

from ssl_jax.augment import policies, tiles
from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.methods import jigsaw
from ssl_jax.methods.parts import pictures
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(64, 16, 4, 10)


def context():
    zero = jnp.zeros((), jnp.int32)
    return Context(zero, zero, jnp.zeros(()), jax.random.key(3), None)


def make(**fields):
    config, _ = configs.load("configs/jigsaw.py:digits")
    config.model.width, config.model.blocks = 8, (1,)
    if fields.pop("official", False):
        config.views.image = policies.make("none", 255)._asdict()
    config.method.update(fields)
    return jigsaw.make(config, RUN)


def draw(method, image, seed=1):
    return jax.jit(method.views)(jax.random.key(seed), {"image": image}, context())


def test_place_t_holds_the_official_tile_of_the_labelled_order():
    golden = np.load(GOLDEN / "jigsaw_tiles.npz")
    image, count = golden["im"], 30
    method = make(official=True, tile=86, jitter=0, permutations=count, permutation_seed=1)
    views = draw(method, np.stack([image] * 4))
    assert views["tiles"].shape == (4, 9, 86, 86, 3)
    orders = np.load(GOLDEN / "jigsaw_permutations.npz")["max_seed1"]
    padded = np.pad(image, ((0, 1), (0, 1), (0, 0))) / 255
    for placed, label in zip(np.asarray(views["tiles"]), np.asarray(views["label"]), strict=True):
        for place, n in enumerate(orders[label]):
            top, left, h, w = golden["py2_boxes"][n]
            raw = padded[top : top + h, left : left + w]
            want = (raw - raw.mean((0, 1))) / raw.std((0, 1), ddof=1)
            np.testing.assert_allclose(placed[place], want, rtol=1e-4, atol=3e-5)


def test_every_offset_and_every_order_is_drawn():
    # Pixel values name their place: rows in steps of 1, columns in steps of 15.
    rows, columns = np.mgrid[:15, :15]
    image = np.stack([(rows * 15 + columns)[..., None]] * 500).astype(np.uint8)
    config, _ = configs.load("configs/jigsaw.py:digits")
    config.views.image = policies.make("none", 15)._asdict()
    config.method.update(tile=3, jitter=2, permutations=5)
    seen = []
    normalise = tiles.normalise
    try:
        tiles.normalise = lambda x: seen.append(x) or x
        views = jigsaw.make(config, RUN).views(jax.random.key(0), {"image": image}, context())
    finally:
        tiles.normalise = normalise
    place = np.rint(255 * np.asarray(seen[0])[:, :, 0, 0, 0]).astype(int)  # [500, 9]
    corner = np.stack(np.divmod(place, 15), -1)  # [500, 9, 2]
    offsets = corner - 5 * np.stack(np.divmod(np.arange(9), 3), 1)
    values, counts = np.unique(offsets, return_counts=True)
    assert list(values) == [0, 1, 2] and counts.min() > 0.3 * counts.sum()
    flat = offsets.reshape(500, 18).astype(float)
    assert np.abs(np.corrcoef(flat.T) - np.eye(18)).max() < 0.25, "drawn on their own"
    assert np.bincount(views["label"], minlength=5).min() > 60


@pytest.mark.parametrize("projector", [(), (3,)])
def test_loss_is_a_classification_of_the_nine_joined_in_their_order(monkeypatch, projector):
    class Flat:
        dtype = jnp.float32

        def init(self, key, x, train):
            return {}

        def clone(self, axis):
            return self

        def apply(self, variables, x, train, mutable=None):
            x = x.reshape(len(x), -1)
            return (x, {}) if mutable else x

    monkeypatch.setattr(jigsaw.models, "make", lambda _: Flat())
    method = make(permutations=6, projector=projector, hidden=())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 9, 2, 2, 1)).astype(np.float32)
    views = {"tiles": jnp.asarray(x), "label": jnp.asarray([0, 5, 2, 2, 1])}
    params, state = method.init(jax.random.key(0), views)
    loss, (_, metrics) = method.loss(params, state, views, context())

    each = x.reshape(45, 4)
    if projector:
        layer = params["projector"]["linear0"]
        each = each @ np.asarray(layer["kernel"]) + layer["bias"]
        each = np.maximum((each - each.mean(0)) / np.sqrt(each.var(0) + 1e-5), 0)
    head = params["head"]["linear0"]
    logits = each.reshape(5, -1) @ np.asarray(head["kernel"]) + head["bias"]
    assert logits.shape == (5, 6)
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    labels = np.asarray(views["label"])
    np.testing.assert_allclose(loss, -log_softmax[np.arange(5), labels].mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (logits.argmax(1) == labels).mean())


def test_the_encoder_reads_whole_images():
    method = make(permutations=6, hidden=())
    image = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)
    params, state = jax.jit(method.init)(jax.random.key(0), draw(method, image))
    config, _ = configs.load("configs/jigsaw.py:digits")
    config.model.width, config.model.blocks = 8, (1,)
    encoder = jigsaw.models.make(config.model)
    features = encoder.apply(probed.variables(method, params, state), jnp.ones((2, 36, 36, 1)))
    assert features.shape == (2, 8)


@pytest.mark.parametrize("preset", ["imagenet", "cifar10", "digits"])
def test_presets_fit(preset):
    config, _ = configs.load(f"configs/jigsaw.py:{preset}")
    config.method.permutations = 10
    jigsaw.make(config, RUN)


@pytest.mark.parametrize("fields", [{"tile": 12, "jitter": 2}, {"tile": 1}, {"jitter": -1}])
def test_tiles_that_do_not_fit_their_cells(fields):
    with pytest.raises(UserError, match="a cell, which has 12"):
        make(**fields)


def test_making_the_method_leaves_the_devices_to_be_chosen():
    """A run counts its devices after `make`; a JAX array made there would have chosen them."""
    code = (
        "import jax; from ssl_jax.runs import config; from ssl_jax.methods import METHODS;"
        "from ssl_jax.contract.method import Run;"
        "c, _ = config.load('configs/jigsaw.py:digits');"
        "METHODS['jigsaw'](c, Run(64, 16, 4, 10));"
        "jax.config.update('jax_num_cpu_devices', 3)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=GOLDEN.parents[1], timeout=120)
    assert done.returncode == 0


@pytest.mark.long
def test_the_page_shows_puzzles():
    method = make(permutations=6)
    image = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    show = method.show["views"]
    assert show.variables({}, {}) == {}
    ((title, found),) = show.draw({}, {"image": image}, jax.random.key(1)).items()
    tiles = np.asarray(draw(method, np.repeat(image, pictures.VIEWS, 0))["tiles"])
    side, gap = tiles.shape[2], pictures.GAP
    assert title == "shuffled tiles" and found.dtype == np.uint8
    assert found.shape == (2, pictures.VIEWS, 3 * side + 2 * gap, 3 * side + 2 * gap, 1)
    corner = np.clip(0.5 + tiles.reshape(2, pictures.VIEWS, *tiles.shape[1:])[:, :, 0] / 4, 0, 1)
    np.testing.assert_allclose(found[:, :, :side, :side], 255 * corner, atol=0.51)
    assert (found[:, :, side : side + gap] == 0).all()
