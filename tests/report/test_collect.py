"""What the page shows, computed: neighbours, planes, prototypes, reconstructions, attention."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import tiny
from ml_collections import ConfigDict
from sklearn.neighbors import NearestNeighbors

from ssl_jax import augment, models
from ssl_jax.contract.batch import image
from ssl_jax.contract.method import Context, Run
from ssl_jax.contract.source import Source
from ssl_jax.evaluate.features.representation import Part
from ssl_jax.methods import METHODS
from ssl_jax.models.vit import patchify
from ssl_jax.report import attention, collect, prototypes, reconstructions
from ssl_jax.runs import commands, completion
from ssl_jax.runs import config as configs
from ssl_jax.train import past


def source(count, classes=3):
    """Image i is all i, of class i mod `classes`."""

    def read(rows):
        image = np.broadcast_to(
            np.asarray(rows, np.uint8)[:, None, None, None], (len(rows), 4, 4, 1)
        )
        return {"image": image, "index": rows, "label": np.asarray(rows) % classes}

    return Source("test", count, classes, image(4, 1), read, lambda: [])


def seen(bank, features, labels=None, learn=None, shown=None):
    learn = learn or Part(source(len(bank)), np.arange(len(bank)))
    shown = shown or Part(source(len(features)), np.arange(len(features)))
    none = np.full(len(features), -1)
    names = () if labels is None else ("a", "b", "c")
    labels = none if labels is None else labels
    return collect.Seen(learn, shown, bank, features, features, labels, None, names, {})


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_nearest_is_that_of_scikit_learn():
    queries, bank = random(5, 6), random(40, 6, seed=1)
    found, cosines = collect.nearest(queries, bank, 7)
    exact = NearestNeighbors(n_neighbors=7, metric="cosine").fit(bank)
    distances, rows = exact.kneighbors(queries)
    np.testing.assert_array_equal(found, rows)
    np.testing.assert_allclose(cosines, 1 - distances, atol=1e-5)


def test_the_neighbours_of_one_query_of_each_class():
    bank, features = random(40, 6), random(12, 6, seed=1)
    labels = np.array([2, 2, 0, 1, 0, 1, 2, 0, 1, -1, 0, 1])
    n = collect.neighbours(seen(bank, features, labels))
    np.testing.assert_array_equal(n.query_labels, [0, 1, 2])
    np.testing.assert_array_equal(n.queries[:, 0, 0, 0], [2, 3, 0])  # the first of each class
    found, _ = collect.nearest(features[[2, 3, 0]], bank, 8)
    np.testing.assert_array_equal(n.images[..., 0, 0, 0], found)
    np.testing.assert_array_equal(n.labels, found % 3)


def test_a_query_is_not_its_own_neighbour():
    bank = random(30, 6)
    part = Part(source(100), np.arange(30) * 2)
    n = collect.neighbours(seen(bank, bank, learn=part, shown=part))
    assert n.images.shape[:2] == (collect.QUERIES, collect.NEAREST)
    own = n.queries[:, 0, 0, 0]
    assert not (n.images[..., 0, 0, 0] == own[:, None]).any()
    assert (n.labels == -1).all() and (n.query_labels == -1).all()
    one = Part(source(1), np.arange(1))
    assert collect.neighbours(seen(bank[:1], bank[:1], learn=one, shown=one)) is None


def test_principal_components_are_those_of_an_svd():
    x = random(50, 8) * 3.0 ** -np.arange(8)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    u, s, _ = np.linalg.svd(unit - unit.mean(0), full_matrices=False)
    ((name, found),) = collect.principal(x).items()
    exact = u[:, :2] * s[:2]
    for axis in (0, 1):
        assert abs(np.corrcoef(found[:, axis], exact[:, axis])[0, 1]) > 0.9999
    # One scale for both: their ratio is that of the components.
    np.testing.assert_allclose(found.std(0)[1] / found.std(0)[0], s[1] / s[0], rtol=1e-4)
    assert np.abs(found).max() == pytest.approx(1)
    shares = 100 * s**2 / (s**2).sum()
    assert name == f"PCA ({shares[0]:.0f} % + {shares[1]:.0f} %)"


def test_a_collapse_is_seen_in_the_plane():
    r = np.random.default_rng(0)
    to, away = r.normal(size=(2, 32))
    line = to + 0.3 * np.outer(r.normal(size=300), away) + 1e-3 * r.normal(size=(300, 32))
    ((name, found),) = collect.principal(line).items()
    assert found[:, 1].std() < 0.3 * found[:, 0].std() and name.startswith("PCA (9")
    ((name, found),) = collect.principal(to + 1e-4 * r.normal(size=(300, 32))).items()
    # 1e-4 away along 31 directions across: the variance is 31e-8 / |to|².
    assert float(name.split(" ")[-1][:-1]) == pytest.approx(31e-8 / (to @ to), rel=0.6)


@pytest.mark.parametrize("shape", [(30, 4), (1, 4), (30, 1), (2, 2)])
def test_principal_components_of_degenerate_features_are_finite(shape):
    (found,) = collect.principal(np.ones(shape)).values()
    assert found.shape == (shape[0], 2) and np.isfinite(found).all()


def test_usage_counts_the_highest_scores():
    # A projector that changes nothing, and two prototypes: the first two axes.
    projector = {"widths": (3,), "norms": ("none",), "biases": (False,)}
    config = ConfigDict(
        {
            "method": {"name": "swav", "projector": projector},
            "model": {"name": "resnet", "width": 8, "blocks": (1,)},
        }
    )
    params = {
        "projector": {"linear0": {"kernel": jnp.eye(3)}},
        "prototypes": {"kernel": jnp.eye(3, 2)},
    }
    features = np.array([[2, 1, 0], [0, 3, 1], [0, 1, 0], [-1, 2, 9]], np.float32)
    picked = prototypes.select(config, params, {"projector": {}})
    np.testing.assert_array_equal(prototypes.usage(config, picked, features)["prototypes"], [1, 3])


def test_perplexity():
    assert prototypes.perplexity(np.array([0, 7, 0])) == 1
    assert prototypes.perplexity(np.array([5, 5, 5, 5, 0])) == pytest.approx(4)
    p = np.array([0.25, 0.75])
    assert prototypes.perplexity(np.array([1, 3])) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("name", ["swav", "dino", "sela_v2", "deepcluster_v2", "simclr"])
def test_prototypes_of_every_method_that_has_them(name):
    """Of a fresh state, without running it: the leaves are picked and the shapes fit."""
    config = tiny.config(name)
    method = METHODS[name](config, Run(64, 16, 4, 12))
    zero = jnp.zeros((), jnp.int32)
    batch = {
        "image": jnp.zeros((16, 28, 28, 1), jnp.uint8),
        "index": jnp.arange(16),
        "label": jnp.full(16, -1),
    }

    def first(key):
        ctx = Context(zero, zero, jnp.zeros(()), key, None)
        return method.init(key, method.views(key, batch, ctx))

    params, state = jax.eval_shape(first, jax.random.key(0))
    picked = prototypes.select(config, params, state)
    if name == "simclr":
        assert picked is None
        return
    leaves = {id(x) for x in jax.tree.leaves((params, state))}
    assert all(id(x) in leaves for x in jax.tree.leaves(picked))  # for `restore_part`
    weights = jax.tree.map(lambda x: random(*x.shape), picked)
    found = prototypes.usage(config, weights, random(20, models.make(config.model).features))
    sizes = {
        "swav": [12], "dino": [32], "sela_v2": [6, 5, 4], "deepcluster_v2": [6, 5, 4],
    }[name]  # fmt: skip
    assert [len(c) for c in found.values()] == sizes
    assert [c.sum() for c in found.values()] == [20] * len(sizes)


def test_the_centre_of_dino_is_taken_off():
    config = tiny.config("dino")
    rows = random(200, models.make(config.model).features)
    head = {"v": random(8, 32), "mlp": {}}
    widths = (rows.shape[1], 16, 16, 8)
    for i in range(3):
        kernel = random(*widths[i : i + 2], seed=i)
        head["mlp"][f"linear{i}"] = {"kernel": kernel, "bias": np.zeros(widths[i + 1], np.float32)}
    variables = {"params": head, "batch_stats": {}}

    def used(centre):
        picked = prototypes.Prototypes(variables, (), centre)
        return prototypes.usage(config, picked, rows)["prototypes"]

    plain = used(None)
    best = plain.argmax()
    # No cosine is above 1: an output whose centre is 10 never wins.
    assert plain[best] > 0 and used(np.where(np.arange(32) == best, 10.0, 0.0))[best] == 0


@pytest.fixture(scope="module")
def mae():
    config = tiny.config("mae")
    method = METHODS["mae"](config, Run(64, 16, 4, 12))
    zero = jnp.zeros((), jnp.int32)
    images = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
    ctx = Context(zero, zero, jnp.zeros(()), jax.random.key(1), None)
    batch = {"image": images, "index": np.arange(16), "label": np.full(16, -1)}

    @jax.jit
    def first(key):
        return method.init(key, method.views(key, batch, ctx))[0]

    return config, first(jax.random.key(0)), images[:3]


@pytest.mark.parametrize("normalise", [True, False])
def test_reconstructions(mae, normalise):
    config, params, images = mae
    config = ConfigDict(config.to_dict())
    config.method.normalise_pixels = normalise
    # A decoder that says 0 for every pixel: of a normalised patch that is its mean.
    predict = jax.tree.map(jnp.zeros_like, params["decoder"]["predict"])
    blank = {**params, "decoder": {**params["decoder"], "predict": predict}}
    found = reconstructions.draw(config, blank, images)
    view, patch = config.views.image, config.model.patch
    np.testing.assert_array_equal(found["original"], images)  # as large as the view
    grey = np.full_like(images, 128)  # round(255 · 0.5)
    visible = found["visible"]
    hidden = (patchify(visible, patch) == patchify(grey, patch)).all(-1)  # [n, N]
    side = view.size // patch
    assert (hidden.sum(1) == side**2 - int(side**2 * (1 - config.method.ratio))).all()
    np.testing.assert_array_equal(
        patchify(visible, patch)[~hidden], patchify(images, patch)[~hidden]
    )
    true = np.asarray(patchify(images / 255, patch))
    zero = true.mean(-1, keepdims=True) if normalise else np.float32(view.mean[0])
    expected = np.round(255 * np.clip(np.broadcast_to(zero, true.shape), 0, 1))
    close = np.abs(patchify(found["prediction"].astype(float), patch) - expected)
    assert close.max() <= 1  # rounding
    filled = patchify(found["filled in"], patch)
    np.testing.assert_array_equal(filled[~hidden], patchify(images, patch)[~hidden])
    np.testing.assert_array_equal(filled[hidden], patchify(found["prediction"], patch)[hidden])


def test_unpatchify_undoes_patchify():
    x = np.arange(2 * 6 * 6 * 3).reshape(2, 6, 6, 3)
    np.testing.assert_array_equal(reconstructions.unpatchify(patchify(x, 2), 2, 3), x)


def test_attention_is_that_of_the_class_token(mae):
    config, params, images = mae
    variables = {"params": params["encoder"]}
    found = attention.draw(config, variables, images)
    x = augment.evaluate(images, 28, config.evaluate.mean, config.evaluate.std, 1.0)
    weights = models.make(config.model).apply(variables, x, method="attention")
    np.testing.assert_array_equal(found.images, images)
    np.testing.assert_allclose(found.maps.reshape(3, 2, -1), weights[:, :, 0, 1:], rtol=1e-4)
    assert (found.maps.sum((2, 3)) < 1).all()
    for other in ({"name": "resnet18"}, {**config.model.to_dict(), "token": False, "pool": "mean"}):
        plain = ConfigDict({"model": other})
        assert attention.draw(plain, variables, images) is None


def test_views_are_shown_as_the_network_sees_them_without_the_normalisation():
    c, _ = configs.load("configs/mae.py:digits")
    view = c.views.image
    view.update(area=(1.0, 1.0), aspect=(1.0, 1.0), shear=0.0, flip=0.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    found = collect.views_of(c, images)["image"]
    assert found.shape == (2, collect.VIEWS, 28, 28, 1) and view.mean != (0.0,)
    np.testing.assert_allclose(found.astype(int), np.repeat(images[:, None], 6, 1), atol=1)


def test_puzzles_and_rotations_are_shown_as_the_network_gets_them():
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    c, _ = configs.load("configs/rotation.py:digits")
    (found,) = collect.views_of(c, images).values()
    assert found.shape == (2, 4, *found.shape[2:])
    for k in range(4):
        np.testing.assert_array_equal(found[:, k], np.rot90(found[:, 0], k, (1, 2)))
    c, _ = configs.load("configs/jigsaw.py:digits")
    side, gap = c.method.tile, collect.GAP
    (found,) = collect.views_of(c, images).values()
    assert found.shape == (2, collect.VIEWS, *2 * [3 * side + 2 * gap], 1)
    assert (found[:, :, side : side + gap] == 0).all()
    tiles = np.arange(9.0)[None, :, None, None, None] / 4 - 1  # tile i is all i / 4 − 1
    whole = collect.joined(np.broadcast_to(tiles, (1, 9, 2, 2, 1)))[0, :, :, 0]
    step = 2 + gap
    grey = np.round(255 * (0.5 + (np.arange(9.0) / 4 - 1) / 4)).reshape(3, 3)
    np.testing.assert_array_equal(whole[::step, ::step], grey)
    np.testing.assert_array_equal(whole[1::step, 1::step], grey)


def test_the_command_brings_the_config_back():
    from absl import flags

    from ssl_jax import main

    c, _ = configs.load("configs/simclr.py:digits")
    c.epochs, c.method.temperature, c.model.blocks = 18.0, 0.3, (1, 2)
    c.data.source = "folder:/a picture's place"
    command = commands.run_command(c, "runs/my run")
    import shlex

    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ssl_jax.main"]
    again, _, _ = main.parse(words[3:], flags, configs)
    assert configs.differences(c, again) == [] and again.workdir == "runs/my run"


def test_a_field_that_came_after_the_run_is_as_it_was_without_it():
    c, _ = configs.load("configs/simclr.py:digits")
    whole = c.to_dict()
    del whole["optimizer"]["weight_decay"], whole["method"]["encoder_rows"]
    del whole["monitor"]["linear"]
    old = ConfigDict(whole)
    expected = {"optimizer.weight_decay": 0.0, "method.encoder_rows": 0, "monitor.linear": 0.1}
    assert completion.added(old, past.complete(old)) == expected
    # The preset says 0.01, which is not what the run did.
    command = commands.run_command(past.complete(old), "W")
    words = "--config simclr:digits --config.optimizer.weight_decay=0.0 --workdir W"
    assert command == f"python -m ssl_jax.main {words}"
    # Another model has fields of its own.
    old.model = ConfigDict({"name": "resnet18"})
    assert not any(f.startswith("model.") for f in completion.added(old, past.complete(old)))


def test_no_command_where_flags_cannot_say_it():
    c, _ = configs.load("configs/simclr.py:digits")
    with c.unlocked():
        c.method.mine = 3
    assert commands.run_command(c, "W") is None
    c.method.name = "of_my_own"
    assert commands.run_command(c, "W") is None


def test_a_folder_without_metrics_and_result(tmp_path):
    from ssl_jax.runs import workdir

    c, _ = configs.load("configs/simclr.py:digits")
    workdir.write_config(tmp_path, workdir.Saved(c, Run(64, 16, 4, 12), 1))
    run = collect.run_of(pathlib.Path(tmp_path), None)
    assert run.records == [] and run.result is None and run.width == 128
    assert len(run.notes) == 2 and "not finished" in run.notes[0]
