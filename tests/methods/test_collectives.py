"""What a compiled step sends between devices: gradients, statistics, embeddings; no images."""

import collections
import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from kit import programs
from kit.hlo import collectives as listed

from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.models import conv

# Images of 28×28 and 4 rows a device: thousands of numbers, where embeddings have 8 a row.
BATCH, DEVICES, WIDTH = programs.BATCH, 4, 8
# Where no axis is named the partitioner decides what travels; it has most to decide where views
# are joined, permuted or picked. All methods under it: `python -m benchmarks.collectives`.
GLOBAL_VIEW = ("moco_v1", "simclr", "swav", "mae", "jigsaw")


def text_of(step, mode, state, batch):
    """The optimised HLO of a step for shapes of the state and of the global batch [1, B, …]."""
    mesh = layout.mesh(jax.devices()[:DEVICES])
    whole = layout.replicated(mesh)
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    lowered = mapping.compile_step(step, mesh, mode).lower(
        state, layout.like_batch(batch, mesh, mode)
    )
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0}).as_text()


def lower(built, mode):
    """(optimised HLO of one step, shapes of its state, config)."""
    program = programs.compile(built, DEVICES, mode)
    return program.text, built.like, built.config


@functools.cache
def compiled(name, mode="shard_map"):
    """The same of a method's step."""
    return lower(programs.build(programs.config(name)), mode)


def sent(name, mode="shard_map"):
    text, state, config = compiled(name, mode)
    return listed.read(text, DEVICES), state, config


def leaf_bytes(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    "name", ["moco_v1", *(pytest.param(n, marks=pytest.mark.long) for n in GLOBAL_VIEW[1:])]
)
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
    config = programs.config("simclr", method__encoder_rows=BATCH)  # half of both views
    text, state, _ = lower(programs.build(config), "jit")
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

    def shuffle_images(method):
        def shuffled(key, batch, ctx):
            views = method.views(key, batch, ctx)
            everyone = collectives.gather(views, ctx.axis)[jax.random.permutation(key, BATCH)]
            first = collectives.rank(ctx.axis) * len(views)
            return lax.dynamic_slice_in_dim(everyone, first, len(views))

        return method._replace(views=shuffled)

    built = programs.build(programs.config("simclr"), change=shuffle_images)
    text, state, config = lower(built, mode)
    found = listed.read(text, DEVICES)
    caught = listed.image_sized(found, listed.images(config, DEVICES, state.params))
    assert caught and max(map(listed.elements, caught)) >= BATCH * 2 * 16 * 16


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
