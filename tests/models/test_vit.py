"""Vision transformers against DINO's and MAE's code (golden/models.md)."""

import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.errors import UserError
from ssl_jax.exchange import torch_weights
from ssl_jax.models.positions import resample, sincos
from ssl_jax.models.vit import Block, ViT, drop_path, patchify

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TINY = {"size": 32, "patch": 8, "width": 32, "heads": 4}


def golden(name):
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    return arrays, {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def close(got, want, tolerance=1e-5):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


@pytest.fixture(scope="module")
def dino():
    arrays, state = golden("dino_vit_tiny")
    net = ViT(**TINY, depth=3, positions="learned", initial="dino")
    return net, torch_weights.vit(net, state), arrays


@pytest.mark.parametrize("size", ["32", "48", "24", "48x32"])
def test_dino_features_at_other_sizes(dino, size):
    net, variables, arrays = dino
    close(jax.jit(net.apply)(variables, nhwc(arrays[f"img{size}"])), arrays[f"out{size}"])


@pytest.mark.parametrize("size", ["32", "48"])
def test_dino_attention(dino, size):
    net, variables, arrays = dino
    f = jax.jit(lambda v, x: net.apply(v, x, method="attention"))
    close(f(variables, nhwc(arrays[f"img{size}"])), arrays[f"attn{size}"])


def test_dino_last_blocks(dino):
    net, variables, arrays = dino
    got = jax.jit(lambda v, x: net.apply(v, x, 2, method="intermediate"))(
        variables, nhwc(arrays["img32"])
    )
    assert len(got) == 2
    close(np.stack(got), arrays["inter32_last2"])


def test_last_blocks_are_the_class_and_patch_tokens(dino):
    net, variables, arrays = dino
    want = arrays["inter32_last2"]  # [2, b, T, D]
    token, patches = jax.jit(lambda v, x: net.apply(v, x, 2, method="last_blocks"))(
        variables, nhwc(arrays["img32"])
    )
    close(token, want[:, :, 0].swapaxes(0, 1))
    close(patches, want[:, :, 1:].swapaxes(0, 1))
    for n in (0, 4):
        with pytest.raises(UserError, match="of a ViT with 3"):
            net.apply(variables, nhwc(arrays["img32"]), n, method="last_blocks")


def test_last_blocks_without_a_class_token():
    net = ViT(**TINY, depth=2, token=False, pool="mean")
    x = jnp.ones((2, 16, 16, 3))
    variables = net.init(jax.random.key(0), x)
    token, patches = net.apply(variables, x, 1, method="last_blocks")
    assert token is None and patches.shape[:2] == (2, 1)
    close(patches[:, 0], net.apply(variables, x, 1, method="intermediate")[0])


@pytest.mark.parametrize("size, grid", [("48", 6), ("24", 3)])
def test_dino_positions(dino, size, grid):
    _, variables, arrays = dino
    learned = variables["params"]["positions"]
    close(resample(learned[1:], grid, grid), arrays[f"pos{size}"][0, 1:])
    close(learned[0], arrays[f"pos{size}"][0, 0])


def test_positions_are_unchanged_on_their_own_grid():
    table = sincos(8, 3, "sincos_mae")
    assert resample(table, 3, 3) is table


def test_mae_global_pool():
    arrays, state = golden("mae_vit_globalpool")
    net = ViT(**TINY, depth=2, positions="learned", pool="mean")
    variables = torch_weights.vit(net, state, drop=("head.",))
    features = jax.jit(net.apply)(variables, nhwc(arrays["imgs"]))
    close(features, arrays["features"])
    close(features @ state["head.weight"].T + state["head.bias"], arrays["logits"])


def test_mae_encoder_of_kept_tokens():
    arrays, state = golden("mae_tiny")
    net = ViT(**TINY, depth=2)
    variables = torch_weights.vit(net, state, drop=("decoder_", "mask_token"))

    def latent(net, x, noise):
        keep = jnp.argsort(noise, 1)[:, :4]
        tokens = jnp.take_along_axis(net.embed(x), keep[..., None], 1)
        return net.normalise(net.encode(tokens))

    f = jax.jit(lambda v, x, noise: net.apply(v, x, noise, method=latent))
    close(f(variables, nhwc(arrays["imgs"]), arrays["noise"]), arrays["latent"])
    np.testing.assert_array_equal(patchify(nhwc(arrays["imgs"]), 8), arrays["patches"])
    embedded = jax.jit(lambda v, x: net.apply(v, x, method="embed"))(
        variables, nhwc(arrays["imgs"])
    )
    close(embedded - sincos(32, 4, "sincos_mae"), arrays["tokens"])


def test_sincos_of_mae():
    arrays, _ = golden("mae_sincos_pos_embed")
    for key in ("d32_g4_cls", "d16_g4", "d64_g7"):
        dim, grid = (int(part[1:]) for part in key.split("_")[:2])
        want = arrays[key][1:] if key.endswith("cls") else arrays[key]
        np.testing.assert_allclose(sincos(dim, grid, "sincos_mae"), want, atol=1e-6)


def test_sincos_of_mocov3_has_the_row_first():
    table = sincos(8, 3, "sincos_mocov3")
    # token 5 of a 3×3 grid: row 1, column 2; ω = 1, 1/100
    row, column = np.array([1.0, 0.01]), np.array([2.0, 0.02])
    want = np.concatenate([np.sin(row), np.cos(row), np.sin(column), np.cos(column)])
    np.testing.assert_allclose(table[5], want, atol=1e-6)
    np.testing.assert_array_equal(
        table, np.roll(sincos(8, 3, "sincos_mae"), 4, 1)
    )  # they differ by swapping the halves


def test_fixed_positions_are_no_parameter_and_leave_the_class_token_alone():
    net = ViT(**TINY, depth=1, positions="sincos_mocov3")
    x = jnp.zeros((1, 32, 32, 3))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    assert "positions" not in variables["params"]
    zeroed = jax.tree.map(jnp.zeros_like, variables)
    both = jax.jit(
        lambda v, x: net.apply(v, x, method=lambda net, x: (net.embed(x), net.encode(net.embed(x))))
    )
    tokens, encoded = both(zeroed, x)
    np.testing.assert_allclose(tokens[0], sincos(32, 4, "sincos_mocov3"), atol=1e-6)
    np.testing.assert_array_equal(encoded[0, 0], np.zeros(32))
    np.testing.assert_array_equal(encoded[0, 1:], tokens[0])


def test_mean_pooling_without_class_token():
    net = ViT(**TINY, depth=1, token=False, pool="mean")
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    assert "class_token" not in variables["params"]
    tokens, features = jax.jit(
        lambda v, x: net.apply(v, x, method=lambda net, x: (net.encode(net.embed(x)), net(x)))
    )(variables, x)
    assert tokens.shape == (2, 16, 32)
    mean = np.asarray(tokens).mean(1)
    want = (mean - mean.mean(1, keepdims=True)) / np.sqrt(mean.var(1, keepdims=True) + 1e-6)
    close(features, want, 1e-4)


def test_frozen_patch_embedding_gets_no_gradient():
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    for freeze in (True, False):
        net = ViT(**TINY, depth=1, freeze_patch=freeze)
        params = jax.jit(net.init)(jax.random.key(0), x)["params"]
        g = jax.jit(jax.grad(lambda p, net=net: jnp.sum(net.apply({"params": p}, x)[:, 0])))(params)
        assert np.any(g["patch_embed"]["kernel"]) != freeze
        assert np.any(g["patch_embed"]["bias"]) != freeze
        assert np.any(g["blocks_0"]["attn"]["qkv"]["kernel"])


def test_drop_path_follows_the_example_not_its_place():
    keys = jax.random.split(jax.random.key(0), 400)
    x = jnp.ones((400, 2, 3))
    y = np.asarray(drop_path(x, keys, 0.25))
    kept = y[:, 0, 0] != 0
    np.testing.assert_allclose(y[kept], 4 / 3, rtol=1e-6)
    assert not y[~kept].any()
    assert 0.67 < kept.mean() < 0.83  # 0.75, standard error 0.022
    np.testing.assert_array_equal(np.asarray(drop_path(x, keys[::-1], 0.25)), y[::-1])


def test_drop_path_in_the_encoder():
    net = ViT(**TINY, depth=2, drop_path=0.5)
    x = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    keys = jax.random.split(jax.random.key(3), 8)
    f = jax.jit(net.apply, static_argnums=2)
    plain, dropped = f(variables, x), f(variables, x, True, keys)
    np.testing.assert_array_equal(f(variables, x, False, keys), plain)
    np.testing.assert_array_equal(f(variables, x, True, keys), dropped)
    changed = np.abs(np.asarray(dropped - plain)).max(1) > 1e-6
    assert changed.any()
    with pytest.raises(UserError, match="drop_path is 0.5"):
        net.apply(variables, x, True)
    # Rates grow linearly from 0: the first block of two never drops, the last one does.
    rates = net.bind(variables)
    assert [block.rate for block in rates.blocks] == [0.0, 0.5]


def test_every_block_draws_its_own_noise():
    net = ViT(**TINY, depth=3, drop_path=0.5)
    x = jnp.zeros((2, 32, 32, 3))
    keys = jax.random.split(jax.random.key(3), 2)
    seen = []

    def spy(call, args, kwargs, context):
        if isinstance(context.module, Block) and context.method_name == "__call__":
            seen.append(jax.random.key_data(args[1]))
        return call(*args, **kwargs)

    @jax.jit
    def drawn():
        variables = net.init(jax.random.key(0), x)
        with nn.intercept_methods(spy):
            net.apply(variables, x, True, keys)
        return jnp.concatenate(seen)

    got = np.asarray(drawn())
    assert len(got) == 6 and len({tuple(key) for key in got}) == 6


@pytest.mark.parametrize(
    "name, parameters",
    # timm's deit_tiny, deit_small, vit_base, vit_large (patch 16, 224) less the classifier
    [
        ("vit_tiny", 5_717_416 - 193_000),
        ("vit_small", 22_050_664 - 385_000),
        ("vit_base", 86_567_656 - 769_000),
        ("vit_large", 304_326_632 - 1_025_000),
    ],
)
def test_parameter_counts_are_timms(name, parameters):
    net = models.make({"name": name, "positions": "learned"})
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
    assert sum(np.prod(s.shape, dtype=int) for s in jax.tree.leaves(shapes)) == parameters


def test_initial_values():
    def std(initial, *path):
        net = ViT(size=32, patch=8, width=64, depth=1, heads=4, initial=initial)
        leaf = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
        for part in path:
            leaf = leaf[part]
        return float(np.std(leaf))

    qkv = ("blocks_0", "attn", "qkv", "kernel")
    # U(±a) has standard deviation a/√3; 12,288 draws, standard error below 0.5 %
    np.testing.assert_allclose(std("mae", *qkv), np.sqrt(6 / (64 + 192) / 3), rtol=0.03)
    np.testing.assert_allclose(std("mocov3", *qkv), np.sqrt(6 / (64 + 64) / 3), rtol=0.03)
    np.testing.assert_allclose(std("dino", *qkv), 0.02, rtol=0.03)
    patch = ("patch_embed", "kernel")
    np.testing.assert_allclose(std("mocov3", *patch), np.sqrt(6 / (192 + 64) / 3), rtol=0.03)
    np.testing.assert_allclose(std("dino", *patch), np.sqrt(1 / 192 / 3), rtol=0.03)
    assert std("mocov3", "class_token") < 2e-6 < 0.01 < std("mae", "class_token")


def test_bfloat16_computes_low_and_keeps_float32():
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    full, half = (
        models.make({"name": "vit", **TINY, "depth": 1, "dtype": d})
        for d in ("float32", "bfloat16")
    )
    variables = jax.jit(half.init)(jax.random.key(0), x)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    a, b = jax.jit(full.apply)(variables, x), jax.jit(half.apply)(variables, x)
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(b, a, atol=0.1)
    assert np.abs(a - b).max() > 1e-4


def test_under_bfloat16_a_branch_is_not_rounded_away_beside_the_sum():
    """As under PyTorch's autocast: blocks add bfloat16 branches to a float32 sum."""
    net = models.make({"name": "vit", **TINY, "depth": 2, "dtype": "bfloat16"})
    x = jax.random.normal(jax.random.key(1), (2, 32, 32, 3))
    variables = jax.jit(net.init)(jax.random.key(0), x)
    tokens = jax.jit(lambda v, x: net.apply(v, x, method="embed"))(variables, x)
    encode = jax.jit(lambda v, tokens: net.apply(v, tokens, method="encode"))
    assert tokens.dtype == encode(variables, tokens).dtype == jnp.float32
    # The same constant in all channels is what LayerNorm takes away: branches do not see it.
    # Beside 512 bfloat16 has steps of 4.
    want = encode(variables, tokens)[:, 1:] - tokens
    got = encode(variables, tokens + 512.0)[:, 1:] - (tokens + 512.0)
    assert jnp.abs(want).max() > 0.1
    np.testing.assert_allclose(got, want, atol=0.1 * float(jnp.abs(want).max()))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"size": 30}, "no multiple of model.patch"),
        ({"heads": 5}, "does not divide model.width"),
        ({"positions": "sincos_mea"}, "Did you mean sincos_mae"),
        ({"pool": "max"}, "model.pool"),
        ({"token": False}, "needs model.token"),
    ],
)
def test_user_errors(fields, message):
    net = ViT(**{**TINY, "depth": 1, **fields})
    with pytest.raises(UserError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_image_that_is_not_whole_patches():
    with pytest.raises(ValueError, match="30×32"):
        patchify(jnp.zeros((1, 30, 32, 3)), 8)
