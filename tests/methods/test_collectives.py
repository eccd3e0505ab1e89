"""What a compiled step sends between devices: gradients, statistics, embeddings; no images."""

import collections
import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from kit import tiny
from kit.hlo import collectives as listed

from ssl_jax.contract.method import Run
from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.methods import METHODS
from ssl_jax.models import conv
from ssl_jax.optim import optimizers, schedules
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step

# Images of 28×28 and 8 rows a device: thousands of numbers, where embeddings have 8 a row.
BATCH, DEVICES, WIDTH = 32, 4, 8
RUN = Run(examples=64, batch=BATCH, steps_per_epoch=2, total_steps=12)
# Where no axis is named the partitioner decides what travels; it has most to decide where views
# are joined, permuted or picked. All methods under it: `python -m benchmarks.collectives`.
GLOBAL_VIEW = ("simclr", "moco_v1", "swav", "mae", "jigsaw")


def text_of(step, mode, state, batch):
    """The optimised HLO of a step for shapes of the state and of the global batch [1, B, …]."""
    mesh = layout.mesh(jax.devices()[:DEVICES])
    whole = layout.replicated(mesh)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    lowered = mapping.compile_step(step, mesh, mode).lower(
        state, layout.like_batch(batch, mesh, mode)
    )
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()


def lower(method, config, mode):
    """(optimised HLO of one step, shapes of its state)."""
    counts = {"batch": BATCH, "steps_per_epoch": 2, "total_steps": 12}

    def optimizer_of(params):
        return optimizers.make(config.optimizer, params, method.labels(params), **counts)

    def rows(*shape):
        return {
            "image": jax.ShapeDtypeStruct((*shape, 28, 28, 1), "uint8"),
            "index": jax.ShapeDtypeStruct(shape, "int32"),
            "label": jax.ShapeDtypeStruct(shape, "int32"),
        }

    create = make_create(method, optimizer_of, rows(BATCH // DEVICES))
    state = jax.eval_shape(create, jax.random.key(0))
    rate = schedules.make(config.optimizer, **counts)
    step = make_step(method, optimizer_of(state.params), RUN, rate)
    return text_of(step, mode, state, rows(1, BATCH)), state


def configured(name):
    config = tiny.config(name)
    with config.unlocked():
        config.batch, config.data.size = BATCH, 28
        if config.method.get("queue"):
            config.method.queue = 3 * BATCH
    return config


@functools.cache
def compiled(name, mode="shard_map"):
    """(optimised HLO, shapes of the state, config) of a method's step."""
    config = configured(name)
    return *lower(METHODS[name](config, RUN), config, mode), config


def sent(name, mode="shard_map"):
    text, state, config = compiled(name, mode)
    return listed.read(text, DEVICES), state, config


def leaf_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def batch_statistics(state):
    """Bytes of the running means and variances, those of targets included."""
    names = [(jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(state)]
    return leaf_bytes([x for name, x in names if name.endswith(("['mean']", "['var']"))])


@pytest.mark.parametrize("name", METHODS)
def test_no_image_and_nothing_needless_crosses_devices(name):
    found, state, config = sent(name)
    assert not listed.image_sized(found, listed.images(config, DEVICES, state.params))
    size = collections.Counter()
    for c in found:
        size[listed.part(c)] += listed.size(c)
    # Every parameter's gradient once.
    assert size["gradients"] == leaf_bytes(state.params)
    # Forward and backward, and again for views of another size.
    statistics = batch_statistics(state.state)
    assert statistics / 2 <= size["BatchNorm"] <= 4 * statistics
    # Rows of two views of every example; DINO's Sinkhorn sends a row of its outputs a device.
    for c in found:
        if c.kind != "all-reduce":
            outputs = config.method.projector.out * DEVICES if name == "dino" else 0
            assert listed.elements(c) <= max(2 * BATCH * WIDTH, outputs), c
    assert size["statistics"] + size["metrics"] < 8_192


@pytest.mark.parametrize("name", GLOBAL_VIEW)
def test_nor_where_the_partitioner_decides(name, monkeypatch):
    # As with large maps, of which fewer are taken at a time than there are devices.
    monkeypatch.setattr(conv, "CONTRACTION", 1)
    found, state, config = sent(name, "jit")
    assert not listed.image_sized(found, listed.images(config, DEVICES, state.params))
    gradients = [c for c in found if listed.part(c) == "gradients"]
    rest = [c for c in found if c not in gradients]
    # Those of BatchNorm's parameters are among the rest; a kernel has one for each size of views.
    once, sizes = leaf_bytes(state.params), len({v.size for v in config.views.values()})
    assert 0.75 * once < sum(map(listed.size, gradients)) <= sizes * once
    assert sum(map(listed.size, found)) >= once
    assert sum(map(listed.size, rest)) < 16_384
    assert all(c.times == 1 for c in gradients), "none in the loop over the images"
    for c in found:
        assert c.kind == "all-reduce" or listed.elements(c) <= 2 * BATCH * WIDTH, c


def test_nor_where_views_are_drawn_in_pieces():
    """The rows of a piece are picked out of the batch in a loop, on every device its own."""
    config = configured("simclr")
    config.method.encoder_rows = BATCH  # half of both views
    text, state = lower(METHODS["simclr"](config, RUN), config, "jit")
    found = listed.read(text, DEVICES)
    assert not listed.image_sized(found, listed.images(config, DEVICES, state.params))
    assert all(c.dtype != "u8" for c in found)


def test_pmap_sends_what_shard_map_sends():
    kinds = [
        collections.Counter((c.kind, c.dtype, c.shape, c.times) for c in sent("simclr", mode)[0])
        for mode in ("shard_map", "pmap")
    ]
    assert kinds[0] == kinds[1] and kinds[0]["all-gather", "f32", (BATCH, 2, WIDTH), 1] == 1


@pytest.mark.parametrize("mode", ["shard_map", "jit"])
def test_a_method_that_moves_images_is_caught(mode):
    """MoCo's shuffle as first published: the images themselves change devices."""
    config = configured("simclr")
    method = METHODS["simclr"](config, RUN)

    def shuffled(key, batch, ctx):
        views = method.views(key, batch, ctx)
        everyone = collectives.gather(views, ctx.axis)[jax.random.permutation(key, BATCH)]
        first = collectives.rank(ctx.axis) * len(views)
        return lax.dynamic_slice_in_dim(everyone, first, len(views))

    text, state = lower(method._replace(views=shuffled), config, mode)
    found = listed.read(text, DEVICES)
    caught = listed.image_sized(found, listed.images(config, DEVICES, state.params))
    assert caught and max(map(listed.elements, caught)) >= BATCH * 2 * 28 * 28


def test_bytes_by_hand():
    """A gather, its gradient, a sum in a loop of three, and bytes that nothing should send."""

    def step(state, batch, axis):
        x = batch["x"][0]  # [b, 5]

        def loss(w):
            return jnp.sum(jnp.sin(collectives.gather(x * w, axis)) ** 2)

        grad = jax.grad(loss)(state)
        total, _ = lax.scan(
            lambda sum, _: (collectives.pmean(jnp.sin(sum), axis), None), x.sum(0), length=3
        )
        images = collectives.gather(batch["image"][0], axis)
        return state, {"g": grad, "t": total, "i": images[0, 0]}

    batch = {
        "x": jax.ShapeDtypeStruct((1, 8, 5), "float32"),
        "image": jax.ShapeDtypeStruct((1, 8, 3), "uint8"),
    }
    text = text_of(step, "shard_map", jax.ShapeDtypeStruct((5,), "float32"), batch)
    found = {(c.kind, c.dtype, c.shape): c for c in listed.read(text, DEVICES)}
    assert found.keys() == {
        ("all-gather", "f32", (8, 5)),
        ("all-gather", "u8", (8, 3)),
        ("reduce-scatter", "f32", (8, 5)),
        ("all-reduce", "f32", (5,)),
    }
    assert listed.size(found["all-reduce", "f32", (5,)]) == 3 * 20
    assert listed.size(found["reduce-scatter", "f32", (8, 5)]) == 160
    own = listed.Images(1_000, DEVICES, 0)
    assert [c.dtype for c in listed.image_sized(found.values(), own)] == ["u8"]
