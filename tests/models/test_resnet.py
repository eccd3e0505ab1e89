"""ResNets against the official PyTorch code (golden/models.md)."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import models
from ssl_jax.errors import UserError
from ssl_jax.exchange import torch_weights
from ssl_jax.models.heads import MLP, unit
from ssl_jax.models.resnet import ResNet

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def golden(name):
    """(arrays, state dictionary); weights are stored as int8 times a scale."""
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    state = {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}
    for k, v in arrays.items():
        if k.startswith("int8/"):
            state[k[5:]] = v.astype(np.float32) * arrays["scale/" + k[5:]]
    return arrays, state


def nhwc(x):
    return jnp.asarray(x.transpose(0, 2, 3, 1))


def run(net, variables, x):
    """(maps, features in evaluation, features in training, new statistics), compiled once."""

    @jax.jit
    def f(variables, x):
        maps = net.apply(variables, x, False, method="stages")
        trained, new = net.apply(variables, x, True, mutable=["batch_stats"])
        return maps, net.apply(variables, x), trained, new["batch_stats"]

    return f(variables, x)


def close(got, want, tolerance=1e-4):
    np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance * np.abs(want).max())


def test_resnet18():
    arrays, state = golden("resnet18_torchvision_layout")
    net = models.make({"name": "resnet18"})
    variables = torch_weights.resnet(net, state)
    x = nhwc(arrays["img"])
    maps, features, trained, new = run(net, variables, x)
    for i, m in enumerate(maps):
        close(m.mean((1, 2)), arrays[f"feat_mean_layer{i + 1}"])
    close(features, arrays["out"])
    close(trained, arrays["out_train"])
    assert net.features == 512 and features.dtype == jnp.float32

    # Statistics of the first norm, from its input by numpy alone: PyTorch's unbiased variance.
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (3, 3), (3, 3), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7), (1, 2))[:, ::2, ::2]
    y = np.einsum("bijcuv,ocuv->bijo", windows, state["conv1.weight"].astype(np.float64))
    assert y.shape == (2, 32, 32, 64)
    want_mean = 0.9 * state["bn1.running_mean"] + 0.1 * y.mean((0, 1, 2))
    want_var = 0.9 * state["bn1.running_var"] + 0.1 * y.var((0, 1, 2), ddof=1)
    close(new["bn1"]["mean"], want_mean, 1e-5)
    close(new["bn1"]["var"], want_var, 1e-5)


def test_swav_narrow_bottleneck_with_projection_and_prototypes():
    arrays, state = golden("resnet_swav_narrow")
    net = ResNet(blocks=(1, 1, 1, 1), bottleneck=True, width=16, inner=0.25)
    head = MLP((32, 8), norms=("affine", "none"), biases=(True, True))
    variables = torch_weights.resnet(net, state, drop=("projection_head.", "prototypes."))
    head_variables = torch_weights.mlp(head, state, ("0", "3"), ("1", None), "projection_head.")
    maps, features, trained, _ = run(net, variables, nhwc(arrays["img"]))
    for i, m in enumerate(maps):
        close(m.mean((1, 2)), arrays[f"feat_mean_layer{i + 1}"])
    assert net.features == features.shape[1] == 512
    z = unit(head.apply(head_variables, features))
    close(z, arrays["out"])
    close(z @ state["prototypes.weight"].T, arrays["scores"])
    z, _ = head.apply(head_variables, trained, True, mutable=["batch_stats"])
    close(unit(z), arrays["out_train"])


def shapes(net, side, channels=3):
    return jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((2, side, side, channels)))


def count(variables):
    return sum(np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(variables["params"]))


@pytest.mark.parametrize(
    "name, parameters, features",
    # torchvision's counts less the classifier (512 or 2048 weights and a bias for 1000 classes)
    [
        ("resnet18", 11_689_512 - 513_000, 512),
        ("resnet34", 21_797_672 - 513_000, 512),
        ("resnet50", 25_557_032 - 2_049_000, 2048),
    ],
)
def test_parameter_counts_are_torchvisions(name, parameters, features):
    net = models.make({"name": name})
    assert count(shapes(net, 64)) == parameters
    assert net.features == features


@pytest.mark.parametrize(
    "stem, side, sides, kernel",
    [
        ("imagenet", 65, (17, 9, 5), (7, 7, 1, 8)),
        ("cifar", 32, (32, 16, 8), (3, 3, 1, 8)),
        ("small", 28, (14, 7, 4), (3, 3, 1, 8)),
    ],
)
def test_stems(stem, side, sides, kernel):
    net = ResNet(blocks=(1, 1, 1), width=8, stem=stem)
    x = jnp.zeros((2, side, side, 1))
    variables = jax.eval_shape(net.init, jax.random.key(0), x)
    assert variables["params"]["conv1"]["kernel"].shape == kernel
    maps = jax.eval_shape(lambda v: net.apply(v, x, False, method="stages"), variables)
    assert [m.shape for m in maps] == [(2, s, s, 8 * 2**i) for i, s in enumerate(sides)]


def test_unknown_stem():
    with pytest.raises(UserError, match="Did you mean cifar"):
        shapes(ResNet(stem="cifar10"), 32)


def test_zero_init_residual_starts_every_last_norm_at_zero():
    for bottleneck, last in ((False, "bn2"), (True, "bn3")):
        net = ResNet(blocks=(1, 1), width=4, bottleneck=bottleneck, zero_init_residual=True)
        params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
        for block in ("layer1_0", "layer2_0"):
            assert not np.any(params[block][last]["scale"])
            assert np.all(params[block]["bn1"]["scale"] == 1)


def test_bfloat16_computes_low_and_keeps_float32():
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))
    nets = [
        models.make({"name": "resnet", "blocks": [1], "width": 8, "stem": "cifar", "dtype": d})
        for d in ("float32", "bfloat16")
    ]
    variables = jax.jit(nets[1].init)(jax.random.key(0), x)
    full, half = (
        jax.jit(lambda v, x, net=net: net.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
        for net in nets
    )
    for leaf in jax.tree.leaves((variables, half)):
        assert leaf.dtype == jnp.float32
    maps = jax.eval_shape(lambda v: nets[1].apply(v, x, False, method="stages"), variables)
    assert maps[0].dtype == jnp.bfloat16
    np.testing.assert_allclose(half[0], full[0], atol=0.03)
    assert np.abs(half[0] - full[0]).max() > 1e-4  # it did compute in bfloat16
