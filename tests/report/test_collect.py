"""What the page shows, computed: neighbours, planes, prototypes, reconstructions, attention."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit import tiny
from ml_collections import ConfigDict
from sklearn.neighbors import NearestNeighbors

from ssl_jax import augment, models
from ssl_jax.contract.batch import image, specs
from ssl_jax.contract.encoder import Encoder
from ssl_jax.contract.method import Method, Prototypes, Run, Show
from ssl_jax.contract.source import Source
from ssl_jax.evaluate.features.representation import Part
from ssl_jax.methods import METHODS
from ssl_jax.methods.parts import image_encoder
from ssl_jax.report import attention, collect, prototypes
from ssl_jax.runs import commands, completion, workdir
from ssl_jax.runs import config as configs
from ssl_jax.train import past
from ssl_jax.train.state import make_create


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
    """Two prototypes, the first two axes; and two more, the others."""
    axes = Prototypes(
        lambda params, state: params["axes"],
        lambda axes, x: {"a": x @ axes[:, :2], "b": x @ axes[:, 2:]},
    )
    features = np.array([[2, 1, 0, 1], [0, 3, 1, 0], [0, 1, 0, 2], [-1, 2, 9, 0]], np.float32)
    variables = axes.variables({"axes": np.eye(4)}, {})
    found = prototypes.usage(axes, variables, features)
    assert {k: v.tolist() for k, v in found.items()} == {"a": [1, 3], "b": [2, 2]}


def test_perplexity():
    assert prototypes.perplexity(np.array([0, 7, 0])) == 1
    assert prototypes.perplexity(np.array([5, 5, 5, 5, 0])) == pytest.approx(4)
    p = np.array([0.25, 0.75])
    assert prototypes.perplexity(np.array([1, 3])) == pytest.approx(np.exp(-(p * np.log(p)).sum()))


@pytest.mark.parametrize("name", ["swav", "dino", "sela_v2", "deepcluster_v2", "simclr", "mae"])
def test_what_the_page_needs_of_a_run_are_leaves_of_its_state(name):
    """Of a fresh state, without running it: what `restore_part` reads, and nothing made anew."""
    config = tiny.config(name)
    run = Run(64, 16, 4, 12, image(28, 1))
    method = METHODS[name](config, run)
    create = make_create(method, lambda params: optax.identity(), specs(run.fields, 16))
    state = jax.eval_shape(create, jax.random.key(0))
    picked = collect.weights(method, state)
    leaves = {id(x) for x in jax.tree.leaves((state.params, state.state))}
    assert all(id(x) in leaves for x in jax.tree.leaves(picked))
    sizes = {
        "swav": [12], "dino": [32], "sela_v2": [6, 5, 4], "deepcluster_v2": [6, 5, 4],
    }.get(name)  # fmt: skip
    assert (picked.prototypes is not None) == (sizes is not None)
    assert set(picked.show) == ({"reconstructions"} if name == "mae" else set())
    saved = workdir.Saved(config, run, 1)
    assert collect.width_of(saved) == models.make(config.model).features
    if sizes:
        weights = jax.tree.map(lambda x: random(*x.shape), picked.prototypes)
        features = random(20, collect.width_of(saved))
        found = prototypes.usage(method.prototypes, weights, features)
        assert [len(c) for c in found.values()] == sizes
        assert [c.sum() for c in found.values()] == [20] * len(sizes)


def test_a_run_of_another_version_has_no_width():
    config = tiny.config("simclr")
    config.method.name = "of_another_version"
    assert collect.width_of(workdir.Saved(config, Run(64, 16, 4, 12, image(28, 1)), 1)) is None


def test_what_a_method_shows_keeps_its_order_and_its_noise():
    def draw(variables, batch, key):
        noise = jax.random.randint(key, (2,), 0, 255)
        shown = (batch["x"] + variables).astype(jnp.uint8)
        return {"b": shown[:, None, None, None], "a": noise.astype(jnp.uint8)[:, None, None, None]}

    show = Show(lambda params, state: params["plus"], draw, "What it is.")
    method = Method(None, None, None, {}, show={"pictures": show})
    (found,) = collect.shown_by(method, {"pictures": 3}, {"x": np.array([1, 2])}, 7).values()
    assert list(found.pictures) == ["b", "a"] and found.said == "What it is."
    assert found.pictures["b"].ravel().tolist() == [4, 5]
    noise = jax.random.randint(jax.random.key(7), (2,), 0, 255)
    assert found.pictures["a"].ravel().tolist() == noise.tolist()


def test_attention_is_that_of_the_class_token():
    c = tiny.config("mae")
    model = models.make(c.model)
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    view = augment.fixed(c.evaluate)
    x = augment.evaluate(images, *view)
    variables = jax.jit(model.init)(jax.random.key(0), x)

    def encoder(network):
        return image_encoder.image_encoder(network, image_encoder.online("encoder"), view)

    found = attention.draw(encoder(model), variables, images)
    weights = model.apply(variables, x, method="attention")
    np.testing.assert_array_equal(found.images, images)  # as large as the view
    np.testing.assert_allclose(found.maps.reshape(3, 2, -1), weights[:, :, 0, 1:], rtol=1e-4)
    assert (found.maps.sum((2, 3)) < 1).all()
    for other in ({"name": "resnet18"}, {**c.model.to_dict(), "token": False, "pool": "mean"}):
        plain = encoder(models.make(ConfigDict(other)))
        assert attention.draw(plain, variables, images) is None
    assert attention.draw(encoder(model)._replace(network=None), variables, images) is None


def test_examples_that_are_no_images_are_called_by_their_rows():
    """Everything that needs a picture is left out, and nothing else is."""
    fields = {"tokens": jax.ShapeDtypeStruct((4,), jnp.int32)}

    def read(rows):
        rows = np.asarray(rows)
        return {"tokens": np.tile(rows[:, None], 4), "index": rows, "label": rows % 3}

    def part(count, describe=None):
        words = Source("words", count, 3, fields, read, lambda: [], describe=describe)
        return Part(words, np.arange(count))

    bank, features = random(40, 6), random(12, 6, seed=1)
    labels = np.arange(12) % 3
    s = seen(bank, features, labels, part(40, lambda row: f"text {row}"), part(12))
    s = s._replace(predicted=labels, untrained=features)
    first = Encoder(lambda params, state: params, lambda variables, batch: batch["tokens"])
    method = Method(None, None, None, {"encoder": first})
    c, _ = configs.load("configs/simclr.py:digits")
    found = collect.draw(c, method, collect.Weights({}, {}, None), s)
    assert found.originals is None and found.attention is None
    assert found.views == {} == found.shown and found.points.images is None
    assert found.points.files[11] == "row 11" and found.files[-1] == "text 39"
    assert found.confusion.tolist() == [[4, 0, 0], [0, 4, 0], [0, 0, 4]]
    near, _ = collect.nearest(features[:3], bank, 8)
    assert found.neighbours.queries is None and found.neighbours.images is None
    assert found.neighbours.files == tuple(tuple(f"text {i}" for i in row) for row in near)
    np.testing.assert_array_equal(found.neighbours.labels, near % 3)


def test_views_are_shown_as_the_network_sees_them_without_the_normalisation():
    c, _ = configs.load("configs/mae.py:digits")
    view = c.views.image
    view.update(area=(1.0, 1.0), aspect=(1.0, 1.0), shear=0.0, flip=0.0)
    images = np.random.default_rng(0).integers(0, 256, (2, 28, 28, 1), dtype=np.uint8)
    found = collect.views_of(c, images)["image"]
    assert found.shape == (2, collect.VIEWS, 28, 28, 1) and view.mean != (0.0,)
    np.testing.assert_allclose(found.astype(int), np.repeat(images[:, None], 6, 1), atol=1)


@pytest.mark.parametrize("name, pictures", [("rotation", 4), ("jigsaw", 6)])
def test_views_of_a_methods_own_take_the_place_of_those_by_policies(name, pictures):
    c, _ = configs.load(f"configs/{name}.py:digits")
    train = source(20)._replace(fields=image(28, 1))
    noise = np.random.default_rng(0).integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)
    train = train._replace(read=lambda rows: {"image": noise[rows], "index": rows, "label": rows})
    method = METHODS[name](c, Run(20, 4, 5, 5, train.fields))
    weights = collect.Weights({}, {"views": {}}, None)
    drawn = collect.draw_sample(c, method, weights, train)
    assert drawn.views == {} and list(drawn.shown) == [collect.OWN]
    (views,) = drawn.shown[collect.OWN].pictures.values()
    assert views.shape[:2] == (collect.SAMPLE, pictures) and views.std() > 20


def test_the_command_brings_the_config_back():
    from absl import flags

    from ssl_jax import main

    c, _ = configs.load("configs/simclr.py:digits")
    c.epochs, c.method.temperature, c.model.blocks = 18.0, 0.3, (1, 2)
    c.data.source = "folder:/a picture's place"
    # Not of the recipe; but without them it would not be continued as it was.
    c.data.dir, c.data.max_bad, c.checkpoint.best, c.extend = "/tf ds", 0.2, "min:loss", 2.0
    command = commands.run_command(c, "runs/my run")
    import shlex

    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "ssl_jax.main"]
    again, _, _ = main.parse(words[3:], flags, configs)
    assert configs.differences(c, again, ("workdir",)) == [] and again.workdir == "runs/my run"


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
    c, _ = configs.load("configs/simclr.py:digits")
    workdir.write_config(tmp_path, workdir.Saved(c, Run(64, 16, 4, 12, image(28, 1)), 1))
    run = collect.run_of(pathlib.Path(tmp_path), None)
    assert run.records == [] and run.result is None and run.width == 128
    assert len(run.notes) == 2 and "not finished" in run.notes[0]
