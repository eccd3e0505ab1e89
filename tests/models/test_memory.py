"""Less memory for the same numbers: blocks that are computed again, encoders in pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit import programs, tiny

from ssl_jax import models
from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.methods import METHODS
from ssl_jax.models import network

NETS = {
    "resnet": {"name": "resnet18", "width": 8, "blocks": (1, 1), "stem": "small"},
    "bottleneck": {"name": "resnet50", "width": 8, "blocks": (1, 1), "stem": "small"},
    "vit": {"name": "vit", "size": 32, "patch": 4, "width": 32, "depth": 6, "heads": 4},
}


def equal(a, b, rtol, atol):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def distance(a, b):
    """‖a − b‖ / ‖a‖ of two trees."""
    a, b = jax.tree.map(np.asarray, (a, b))
    return float(optax.tree.norm(jax.tree.map(np.subtract, a, b)) / optax.tree.norm(a))


@pytest.mark.parametrize(
    "name", ["resnet", *(pytest.param(n, marks=pytest.mark.long) for n in ("bottleneck", "vit"))]
)
def test_remat_keeps_less_for_the_same_numbers(name):
    """What the forward pass hands to the backward pass; `benchmarks.memory` shows whole steps."""
    x = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    found, kept = [], []
    for remat in (False, True):
        net = models.make({**NETS[name], "remat": remat})
        variables, _ = network.create(net, jax.random.key(0), x)
        stats = variables["batch_stats"]

        def forward(params, net=net, stats=stats):
            return network.forward(net, params, stats, x, None)

        def gradient(params, forward=forward):
            y, backward, after = jax.vjp(forward, params, has_aux=True)
            return y, backward(jnp.cos(y)), after

        found.append((variables, jax.jit(gradient)(variables["params"])))
        backward = jax.eval_shape(lambda p, f=forward: jax.vjp(f, p)[1], variables["params"])
        kept.append(sum(r.size * r.dtype.itemsize for r in jax.tree.leaves(backward)))
    equal(*found, rtol=1e-4, atol=1e-5)
    assert kept[1] < 0.5 * kept[0]


@pytest.mark.long
def test_a_step_with_remat_keeps_less():
    """MAE's encoder and its decoder, as compiled: what is to be computed again must not be kept."""
    shape = (1, 64, 28, 28, 1)
    image = np.random.default_rng(0).integers(0, 255, shape, dtype=np.uint8)
    mesh = layout.mesh(jax.devices()[:1])
    whole = layout.replicated(mesh)
    zero = jnp.zeros((), jnp.int32)
    ctx = Context(zero, zero, jnp.zeros(()), jax.random.key(3), None)
    found, temporary, again = [], [], []
    for remat in (False, True):
        config = tiny.config("mae")
        with config.unlocked():
            config.model = dict(NETS["vit"], size=28, depth=4, remat=remat)
            config.method.decoder.update(width=32, depth=3, heads=4)
        one = METHODS["mae"](config, Run(examples=64, batch=64, steps_per_epoch=1, total_steps=9))

        def gradient(params, batch, axis, one=one):
            local = ctx._replace(axis=axis)
            views = one.views(ctx.key, {"image": batch["image"][0]}, local)
            return params, jax.grad(lambda p: one.loss(p, {}, views, local)[0])(params)

        views = one.views(ctx.key, {"image": image[0]}, ctx)
        params = jax.jit(one.init, out_shardings=whole)(jax.random.key(0), views)[0]
        batch = layout.put_batch({"image": image}, mesh)
        traced = jax.make_jaxpr(lambda p, v=views, o=one: o.loss(p, {}, v, ctx)[0])(params)
        again.append(str(traced).count("remat2["))
        compiled = mapping.compile_step(gradient, mesh).lower(params, batch).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
        found.append(compiled(params, batch)[1])
    assert distance(*found) < 1e-5
    assert again == [0, 4 + 3]
    assert temporary[1] < 0.5 * temporary[0]


def method(name, rows):
    """In float64, of an encoder without BatchNorm, so that pieces can equal the whole."""
    config = tiny.config(name)
    with config.unlocked():
        config.model = dict(NETS["vit"], size=28, depth=2, dtype="float64")
        config.method.encoder_rows = rows
    return METHODS[name](config, Run(examples=64, batch=16, steps_per_epoch=4, total_steps=10))


@functools.cache
def begun(name):
    """(params, state, views, what pieces draw them from, context) of 16 images."""
    one, later = method(name, 0), method(name, 4)
    zero = jnp.zeros((), jnp.int32)
    ctx = Context(zero, zero, jnp.zeros(()), jax.random.key(3), None)
    image = np.random.default_rng(0).integers(0, 255, (16, 28, 28, 1), dtype=np.uint8)
    views = jax.jit(lambda x: one.views(ctx.key, {"image": x}, ctx))(image)
    undrawn = jax.jit(lambda x: later.views(ctx.key, {"image": x}, ctx))(image)
    assert undrawn.image.dtype == jnp.uint8
    return *jax.jit(one.init)(jax.random.key(0), views), views, undrawn, ctx


@pytest.mark.parametrize(
    "name", ["simclr", *(pytest.param(n, marks=pytest.mark.long) for n in ("dcl", "moco_v3"))]
)
def test_an_encoder_in_pieces_has_the_gradient_of_the_whole_batch(name):
    with programs.float64():
        assert_pieces_are_the_whole(name)


def assert_pieces_are_the_whole(name):
    params, state, views, undrawn, ctx = begun(name)

    def gradient(rows, views=views):
        loss = method(name, rows).loss
        compiled = jax.jit(jax.value_and_grad(lambda p: loss(p, state, views, ctx), has_aux=True))
        return compiled(params)

    (value, aux), whole = gradient(0)
    (other_value, other_aux), pieces = gradient(4, undrawn)
    assert abs(value - other_value) < 1e-9 * abs(value) and distance(whole, pieces) < 1e-9
    equal(aux, other_aux, rtol=1e-6, atol=1e-7)  # metrics are float32
    # Micro-batches, each with negatives of its own, are something else.
    halves = [gradient(0, some)[1] for some in (views[:8], views[8:])]
    assert distance(whole, jax.tree.map(lambda a, b: (a + b) / 2, *halves)) > 0.01
    with pytest.raises(UserError, match=r"encoder_rows is 5; it must divide the (32|16) views"):
        gradient(5, undrawn)
    # The network begins alike, whether its views are drawn or not.
    equal(jax.jit(method(name, 4).init)(jax.random.key(0), undrawn), (params, state), 0, 0)


@pytest.mark.parametrize("mode", ["shard_map", pytest.param("jit", marks=pytest.mark.long)])
def test_pieces_on_four_devices_are_those_of_one(mode):
    with programs.float64():
        assert_four_devices_equal_one(mode)


def assert_four_devices_equal_one(mode):
    params, state, *_, ctx = begun("simclr")
    image = np.random.default_rng(0).integers(0, 255, (1, 16, 28, 28, 1), dtype=np.uint8)
    found = []
    for devices, rows in ((1, 0), (4, 4 if mode == "shard_map" else 8)):
        one = method("simclr", rows)

        def gradient(state, batch, axis, one=one):
            local = ctx._replace(axis=axis)
            seen = one.views(ctx.key, jax.tree.map(lambda x: x[0], batch), local)

            def mean(params):
                loss = one.loss(params, state["state"], seen, local)[0]
                return collectives.pmean(loss, axis)

            value, grads = jax.value_and_grad(mean)(state["params"])
            return state, collectives.pmean((value, grads), axis)

        mesh = layout.mesh(jax.devices()[:devices])
        step = mapping.compile_step(gradient, mesh, mode)
        whole = jax.device_put({"params": params, "state": state}, layout.replicated(mesh))
        whole = jax.tree.map(jnp.copy, whole)
        found.append(step(whole, layout.put_batch({"image": image}, mesh, mode))[1])
    assert distance(*found) < 1e-9


def test_views_are_drawn_a_piece_at_a_time():
    """What the gradient of 1,024 images needs is less than half of their views."""
    config = tiny.config("simclr")
    with config.unlocked():
        config.model = dict(NETS["vit"], size=28, patch=14, width=8, depth=1, heads=1)
        config.method.update(encoder_rows=32, chunk=16)
    one = METHODS["simclr"](
        config, Run(examples=1024, batch=1024, steps_per_epoch=1, total_steps=9)
    )
    *_, ctx = begun("simclr")
    image = jax.ShapeDtypeStruct((1024, 28, 28, 1), jnp.uint8)

    def create(image):
        return one.init(ctx.key, one.views(ctx.key, {"image": image}, ctx))

    def gradient(params, state, image):
        views = one.views(ctx.key, {"image": image}, ctx)
        return jax.grad(lambda p: one.loss(p, state, views, ctx)[0])(params)

    params, state = jax.eval_shape(create, image)
    compiled = jax.jit(gradient).lower(params, state, image).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1024 * 2 * 28 * 28 * 4 / 2


@pytest.mark.long
def test_pieces_need_the_memory_of_one():
    """What the encoder of 256 views keeps, in pieces of 16: a small part of the whole."""
    net = models.make(NETS["vit"])
    x = jax.random.normal(jax.random.key(1), (256, 32, 32, 3))
    params = network.create(net, jax.random.key(0), x[:2])[0]["params"]

    def temporary(rows):
        def loss(params):
            z, _ = network.forward_in_pieces(net, params, {}, x, None, rows)
            return jnp.sum(jax.nn.logsumexp(z @ z.T, 1))  # needs every row at once

        compiled = jax.jit(jax.grad(loss)).lower(params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(16) < 0.15 * temporary(0)
