"""The convolution and its gradients against flax's, however it is compiled and mapped."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from kit.hlo import collectives

from ssl_jax.devices import layout
from ssl_jax.models import conv

MANY = (32, 130)  # channels in and out that have the gradient made from patches


def both(size, stride, features=5):
    padding = (size - 1) // 2
    ours = conv.Conv(features, size, stride)
    flax = nn.Conv(features, (size, size), stride, [(padding, padding)] * 2, use_bias=False)
    return ours, flax


def value_and_gradients(module, params, x, seed=0):
    y, vjp = jax.vjp(lambda p, x: module.apply({"params": p}, x), params, x)
    cotangent = jax.random.normal(jax.random.key(seed), y.shape, y.dtype)
    return y, *vjp(cotangent)


@pytest.mark.parametrize("channels", [(4, 5), MANY])
@pytest.mark.parametrize("size, stride, side", [(3, 1, 6), (3, 2, 7), (7, 2, 12), (1, 2, 5)])
def test_values_and_gradients_equal_flax(size, stride, side, channels, monkeypatch):
    # 5 images, at most 2 at a time: three chunks, the last one filled up.
    out = (side + 2 * ((size - 1) // 2) - size) // stride + 1
    monkeypatch.setattr(conv, "CONTRACTION", 2 * out * out)
    monkeypatch.setattr(conv, "CONTRACTION_OF_PATCHES", 2 * out * out)
    monkeypatch.setattr(conv, "_by_patches" if channels != MANY else "_by_convolution", None)
    c, o = channels
    x = jax.random.normal(jax.random.key(1), (5, side, side, c))
    ours, flax = both(size, stride, o)
    params = ours.init(jax.random.key(2), x)["params"]
    assert jax.tree.map(jnp.shape, params) == {"kernel": (size, size, c, o)}
    got = jax.jit(functools.partial(value_and_gradients, ours))(params, x)
    want = jax.jit(functools.partial(value_and_gradients, flax))(params, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, channels", [(1, (1, 1)), (3, (1, 1)), (3, MANY)])
def test_bfloat16_gradient_is_summed_in_float32(size, channels, monkeypatch):
    # Three chunks of 257 ones. 771 is 772 in bfloat16; chunks rounded on their own are 256 each.
    monkeypatch.setattr(conv, "CONTRACTION", 257)
    monkeypatch.setattr(conv, "CONTRACTION_OF_PATCHES", 257)
    c, o = channels
    x = jnp.ones((3, 1, 257, c), jnp.bfloat16)
    module = conv.Conv(o, size, dtype=jnp.bfloat16)

    def total(kernel):
        return jnp.sum(module.apply({"params": {"kernel": kernel}}, x), dtype=jnp.float32)

    gradient = jax.jit(jax.grad(total))(jnp.ones((size, size, c, o)))
    assert gradient.dtype == jnp.float32
    assert (gradient[size // 2, size // 2] == 772).all()


@pytest.mark.parametrize("mode", ["shard_map", "pmap", "vmap", "scan"])
def test_gradient_under_maps(mode):
    module, _ = both(3, 1, features=2)
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 3))
    params = module.init(jax.random.key(2), x)["params"]

    def gradient(params, x):
        return jax.grad(lambda p: jnp.sum(jnp.square(module.apply({"params": p}, x))))(params)

    want = gradient(params, x)["kernel"]
    if mode == "shard_map":
        f = jax.shard_map(
            lambda p, x: jax.lax.psum(gradient(p, x), layout.AXIS),
            mesh=layout.mesh(),
            in_specs=(P(), P(layout.AXIS)),
            out_specs=P(),
            check_vma=False,
        )
        got = jax.jit(f)(params, x)["kernel"]
    elif mode == "pmap":
        f = jax.pmap(gradient, in_axes=(None, 0))
        got = f(params, x.reshape(4, 2, 4, 4, 3))["kernel"].sum(0)
    elif mode == "vmap":
        f = jax.vmap(gradient, in_axes=(None, 0))
        got = f(params, x.reshape(4, 2, 4, 4, 3))["kernel"].sum(0)
    else:
        f = jax.jit(lambda p, x: jax.lax.scan(lambda c, x: (c, gradient(p, x)), 0, x)[1])
        got = f(params, x.reshape(4, 2, 4, 4, 3))["kernel"].sum(0)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "size, stride, channels",
    [(3, 1, (3, 5)), (7, 2, (3, 5)), (1, 1, (3, 5)), (1, 2, (3, 5)), (3, 2, MANY)],
)
def test_maps_stay_on_their_device_where_jit_splits_the_batch(size, stride, channels, monkeypatch):
    """With 16 images at a time and with one, which is less than one a device."""
    mesh = layout.mesh()
    c, o = channels
    module, flax = both(size, stride, o)
    x = jax.random.normal(jax.random.key(1), (16, 4, 4, c))
    params = module.init(jax.random.key(0), x)["params"]

    def gradient(module, params, x):
        return jax.grad(lambda p: jnp.sum(jnp.square(module.apply({"params": p}, x))))(params)

    want = gradient(flax, params, x)["kernel"]
    split = jax.device_put(x, NamedSharding(mesh, P(layout.AXIS)))
    whole = jax.device_put(params, layout.replicated(mesh))
    for images in (16, 1):
        for name in ("CONTRACTION", "CONTRACTION_OF_PATCHES"):
            monkeypatch.setattr(conv, name, images * (4 // stride) ** 2)
        compiled = jax.jit(functools.partial(gradient, module)).lower(whole, split).compile()
        found = collectives.read(compiled.as_text(), mesh.devices.size)
        sent = [(c.kind, collectives.elements(c), c.times) for c in found]
        assert sent == [("all-reduce", size * size * c * o, 1)], "the gradient, and that once"
        np.testing.assert_allclose(compiled(whole, split)["kernel"], want, rtol=1e-4, atol=1e-4)


def test_only_cpu_takes_a_few_images_at_a_time():
    module, _ = both(3, 1)
    x = jnp.zeros((4, 8, 8, 3))
    params = module.init(jax.random.key(0), x)["params"]
    traced = jax.jit(jax.grad(lambda p, x: jnp.sum(module.apply({"params": p}, x)))).trace(
        params, x
    )
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.while" not in traced.lower(lowering_platforms=("tpu",)).as_text()


def test_all_convolutions_are_in_the_order_that_is_fast_on_cpu_in_a_loop_too():
    module, _ = both(3, 2)
    params = module.init(jax.random.key(0), jnp.zeros((4, 8, 8, 3)))["params"]

    def gradients(params, x):
        return jax.grad(lambda p, x: jnp.sum(module.apply({"params": p}, x) ** 2), (0, 1))(
            params, x
        )

    traced = jax.jit(gradients).trace(params, jnp.zeros((4, 8, 8, 3)))
    text = traced.lower(lowering_platforms=("cpu",)).as_text()
    orders = re.findall(r"stablehlo.convolution.*dim_numbers = (.*), window", text)
    assert orders == ["[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"] * 3, orders


def test_initial_kernel_is_kaiming_fan_out():
    kernel = conv.Conv(256, 3).init(jax.random.key(0), jnp.zeros((1, 4, 4, 32)))["params"]["kernel"]
    # 73,728 draws: the standard error of the standard deviation is 0.26 %
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 256)), rtol=0.01)
    np.testing.assert_allclose(np.mean(kernel), 0, atol=5e-4)
