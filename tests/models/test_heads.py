"""Heads: which parameters exist, hand-computed values, DINO's official head."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ssl_jax.errors import UserError
from ssl_jax.exchange import torch_weights
from ssl_jax.models.heads import MLP, DINOHead, Prototypes, unit
from ssl_jax.models.linear import initializers

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def parameters(head, width=4):
    shapes = jax.eval_shape(head.init, jax.random.key(0), jnp.zeros((3, width)))["params"]
    return {k: v.shape for k, v in traverse_util.flatten_dict(shapes, sep="/").items()}


def train(head, x):
    """(variables, (new statistics, output)) of a fresh head."""
    variables = head.init(jax.random.key(1), x)
    y, new = head.apply(variables, x, True, mutable=["batch_stats"])
    return variables, (new, y)


@pytest.mark.parametrize(
    "fields, names",
    [
        # MoCo v2: Linear, ReLU, Linear
        (
            {"widths": (6, 2), "norms": ("none", "none"), "biases": (True, True)},
            "linear0/kernel linear0/bias linear1/kernel linear1/bias",
        ),
        # BYOL: the first bias exists, the last does not
        (
            {"widths": (6, 2), "norms": ("affine", "none"), "biases": (True, False)},
            "linear0/kernel linear0/bias norm0/scale norm0/bias linear1/kernel",
        ),
        # SimSiam: last BN without parameters, its Linear's bias exists
        (
            {"widths": (6, 2), "norms": ("affine", "plain"), "biases": (False, True)},
            "linear0/kernel norm0/scale norm0/bias linear1/kernel linear1/bias",
        ),
        # SimCLR: last BN with a scale and no bias
        (
            {"widths": (6, 2), "norms": ("affine", "scale"), "biases": (False, False)},
            "linear0/kernel norm0/scale norm0/bias linear1/kernel norm1/scale",
        ),
    ],
)
def test_which_parameters_exist(fields, names):
    assert set(parameters(MLP(**fields))) == set(names.split())


def test_mlp_by_hand():
    head = MLP((2, 1), norms=("none", "none"), biases=(True, True))
    params = {
        "linear0": {"kernel": jnp.array([[1.0, -1.0], [2.0, 0.5]]), "bias": jnp.array([0.5, 0.0])},
        "linear1": {"kernel": jnp.array([[2.0], [-3.0]]), "bias": jnp.array([-20.0])},
    }
    x = jnp.array([[1.0, 2.0], [-1.0, 4.0]])
    # hidden (5.5, 0), (7.5, 3); 2·5.5 − 20 = −9 (no activation after the last layer), 15 − 9 − 20
    np.testing.assert_allclose(head.apply({"params": params}, x), [[-9.0], [-14.0]])


def test_norm_of_the_last_layer():
    head = MLP((3,), norms=("plain",), biases=(False,))
    x = jax.random.normal(jax.random.key(0), (16, 4))
    _, (new, y) = jax.jit(lambda: train(head, x))()
    np.testing.assert_allclose(y.mean(0), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(y.std(0), np.ones(3), rtol=1e-3)
    assert new["batch_stats"]["norm0"]["mean"].shape == (3,)


def test_bfloat16_head_returns_float32_from_float32_parameters():
    head = MLP((8, 4), norms=("affine", "plain"), biases=(True, True), dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(0), (16, 4))
    variables, (new, y) = jax.jit(lambda: train(head, x))()
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((variables, new, y)))
    # The last norm is not rounded to bfloat16 on its way out.
    assert np.any(y != y.astype(jnp.bfloat16).astype(jnp.float32))


def test_errors():
    x = jnp.zeros((2, 3))
    with pytest.raises(UserError, match="Did you mean affine"):
        MLP((2,), ("afine",), (True,)).init(jax.random.key(0), x)
    with pytest.raises(UserError, match="Did you mean relu"):
        MLP((2,), ("none",), (True,), activation="rellu").init(jax.random.key(0), x)
    with pytest.raises(UserError, match="Did you mean haiku"):
        MLP((2,), ("none",), (True,), initial="haikus").init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="one entry per layer"):
        MLP((2, 2), ("none",), (True,)).init(jax.random.key(0), x)


def test_dino_head_is_the_official_one():
    arrays = dict(np.load(GOLDEN / "dino_head.npz"))
    state = {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}
    head = DINOHead(out=12, hidden=16, bottleneck=6)
    layers = ("mlp.0", "mlp.2", "mlp.4")
    mlp = MLP((16, 16, 6), ("none",) * 3, (True,) * 3, activation="gelu")
    params = {
        "mlp": torch_weights.mlp(mlp, state, layers, (None,) * 3, drop=("last_layer",))["params"],
        "v": jnp.asarray(state["last_layer.weight_v"].T),
    }
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(
        jnp.shape, jax.eval_shape(head.init, jax.random.key(0), arrays["x"])["params"]
    )

    @jax.jit
    def f(params, x):
        y, vjp = jax.vjp(lambda p, x: head.apply({"params": p}, x), params, x)
        return y, *vjp(jnp.asarray(arrays["cotangent"]))

    y, gradient, grad_x = f(params, arrays["x"])
    np.testing.assert_allclose(y, arrays["y"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grad_x, arrays["grad_x"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        gradient["v"].T, arrays["grad/last_layer.weight_v"], rtol=1e-4, atol=1e-6
    )
    for i, name in enumerate(layers):
        got = gradient["mlp"][f"linear{i}"]
        np.testing.assert_allclose(
            got["kernel"].T, arrays[f"grad/{name}.weight"], rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(got["bias"], arrays[f"grad/{name}.bias"], rtol=1e-4, atol=1e-6)


def test_dino_head_with_learned_lengths():
    x = jax.random.normal(jax.random.key(0), (3, 4))
    free = DINOHead(out=5, hidden=8, bottleneck=4, norm_last=False)
    fixed = DINOHead(out=5, hidden=8, bottleneck=4)
    params = jax.jit(free.init)(jax.random.key(1), x)["params"]
    np.testing.assert_array_equal(params.pop("g"), np.ones(5))
    g = jnp.arange(5.0)
    y, got = jax.jit(
        lambda p: (fixed.apply({"params": p}, x), free.apply({"params": {**p, "g": g}}, x))
    )(params)
    assert np.abs(y).max() <= 1 + 1e-6
    np.testing.assert_allclose(got, y * g, rtol=1e-5, atol=1e-6)


def test_dino_head_initial_values():
    head = DINOHead(out=64, hidden=64, bottleneck=64)
    params = jax.jit(head.init)(jax.random.key(0), jnp.zeros((1, 64)))["params"]
    # 4096 draws: standard error 1.1 %
    for i in range(3):
        np.testing.assert_allclose(np.std(params["mlp"][f"linear{i}"]["kernel"]), 0.02, rtol=0.05)
        assert not params["mlp"][f"linear{i}"]["bias"].any()
    np.testing.assert_allclose(np.std(params["v"]), 1 / np.sqrt(3 * 64), rtol=0.05)


def test_dino_head_norm_layers():
    names = parameters(DINOHead(out=5, hidden=8, bottleneck=4, norm=True))
    assert {"mlp/norm0/scale", "mlp/norm1/scale"} <= set(names)
    assert "mlp/norm2/scale" not in names
    assert names["v"] == (4, 5)


def test_prototypes_are_cosines_of_unit_vectors():
    x = jnp.array([[3.0, 4.0], [0.0, -2.0]])
    kernel = jnp.array([[1.0, 0.0, 3.0], [0.0, 2.0, 4.0]])
    head = Prototypes(3)
    assert parameters(head, 2) == {"kernel": (2, 3)}
    got = head.apply({"params": {"kernel": unit(kernel, 0)}}, unit(x))
    np.testing.assert_allclose(got, [[0.6, 0.8, 1.0], [0.0, -1.0, -0.8]], atol=1e-6)


def test_unit_has_a_finite_gradient_at_zero():
    x = jnp.array([[0.0, 0.0], [3.0, 4.0]])
    np.testing.assert_allclose(unit(x), [[0, 0], [0.6, 0.8]], atol=1e-6)
    gradient = jax.grad(lambda x: unit(x)[:, 0].sum())(x)
    assert np.isfinite(gradient).all()
    # d(x₀/‖x‖) = (x₁², −x₀x₁) / ‖x‖³
    np.testing.assert_allclose(gradient[1], [16 / 125, -12 / 125], rtol=1e-5)


@pytest.mark.parametrize(
    "name, kernel, bias",
    [
        ("torch", 1 / np.sqrt(3 * 100), 1 / np.sqrt(3 * 100)),
        ("normal", 0.02, 0),
        ("xavier", np.sqrt(6 / 400 / 3), 0),
        ("xavier_qkv", np.sqrt(6 / 200 / 3), 0),
        ("simclr", 0.01, 0),
        ("haiku", 0.8796 / np.sqrt(100), 0),
    ],
)
def test_standard_deviation_of_initial_values(name, kernel, bias):
    kernel_init, bias_init = initializers(name, 100, 300)
    draws = kernel_init(jax.random.key(0), (100, 300))
    # 30,000 draws: standard error 0.4 %
    np.testing.assert_allclose(np.std(draws), kernel, rtol=0.02)
    np.testing.assert_allclose(np.std(bias_init(jax.random.key(0), (30_000,))), bias, rtol=0.02)
