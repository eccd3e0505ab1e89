"""Reading PyTorch state dictionaries. (Whether the nets then agree: tests/models.)"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.exchange import torch_weights
from ssl_jax.models.heads import MLP
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.vit import ViT

NET = ResNet(blocks=(1, 1), width=4)


def resnet_state(prefix=""):
    """A state dictionary of a two-stage, four-channel network, every entry different."""
    shapes = {"conv1.weight": (4, 3, 7, 7)}
    norms = {"bn1": 4}
    for layer, c, o in (("layer1.0", 4, 4), ("layer2.0", 4, 8)):
        shapes |= {f"{layer}.conv1.weight": (o, c, 3, 3), f"{layer}.conv2.weight": (o, o, 3, 3)}
        norms |= {f"{layer}.bn1": o, f"{layer}.bn2": o}
    shapes["layer2.0.downsample.0.weight"] = (8, 4, 1, 1)
    norms["layer2.0.downsample.1"] = 8
    for name, width in norms.items():
        for entry in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{entry}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()
    rng = np.random.default_rng(0)
    return {prefix + k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}


def test_every_entry_finds_its_place():
    state = resnet_state()
    variables = torch_weights.resnet(NET, state)
    want = jax.eval_shape(NET.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, want)
    params, stats = variables["params"], variables["batch_stats"]
    kernel = params["layer2_0"]["conv1"]["kernel"]
    assert kernel[2, 0, 3, 5] == state["layer2.0.conv1.weight"][5, 3, 2, 0]
    norm = stats["layer2_0"]["downsample_bn"]
    np.testing.assert_array_equal(norm["var"], state["layer2.0.downsample.1.running_var"])
    np.testing.assert_array_equal(norm["mean"], state["layer2.0.downsample.1.running_mean"])
    scale = params["layer1_0"]["bn2"]["scale"]
    np.testing.assert_array_equal(scale, state["layer1.0.bn2.weight"])


def test_prefix_and_drop():
    state = resnet_state("module.encoder_q.")
    state |= {"module.queue": np.zeros(3), "module.encoder_q.fc.weight": np.zeros((2, 8))}
    got = torch_weights.resnet(NET, state, "module.encoder_q.", drop=("fc.",))
    want = torch_weights.resnet(NET, resnet_state())
    jax.tree.map(np.testing.assert_array_equal, got, want)
    with pytest.raises(UserError, match="nothing begins with 'encoder.'"):
        torch_weights.resnet(NET, state, "encoder.")


def test_left_over_and_missing_names():
    with pytest.raises(UserError, match=r"not used: fc.weight \(name them in `drop`"):
        torch_weights.resnet(NET, resnet_state() | {"fc.weight": np.zeros((2, 8))})
    state = resnet_state()
    del state["layer1.0.bn2.running_var"]
    with pytest.raises(UserError, match="missing: layer1.0.bn2.running_var"):
        torch_weights.resnet(NET, state)
    with pytest.raises(UserError, match="missing: bn1.bias, .*conv1.weight, .* more"):
        torch_weights.resnet(NET, {"bn1.weight": np.zeros(4)})
    # A deeper checkpoint than the net.
    with pytest.raises(UserError, match="not used: layer2.0.bn1.bias, .* more"):
        torch_weights.resnet(ResNet(blocks=(1,), width=4), resnet_state())


def test_wrong_shape():
    with pytest.raises(UserError, match=r"conv1.weight gives .*\(7, 7, 3, 4\).*\(3, 3, 3, 4\)"):
        torch_weights.resnet(ResNet(blocks=(1, 1), width=4, stem="cifar"), resnet_state())


def vit_state(net):
    """A state dictionary in timm's layout, of zeros."""
    d, p = net.width, net.patch
    shapes = {
        "cls_token": (1, 1, d),
        "pos_embed": (1, 1 + (net.size // p) ** 2, d),
        "patch_embed.proj.weight": (d, 3, p, p),
        "patch_embed.proj.bias": (d,),
        "norm.weight": (d,),
        "norm.bias": (d,),
    }
    for i in range(net.depth):
        widths = {"attn.qkv": (3 * d, d), "attn.proj": (d, d)}
        widths |= {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, shape in widths.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (d,), f"blocks.{i}.{name}.bias": (d,)}
    return {k: np.zeros(s, np.float32) for k, s in shapes.items()}


def test_fixed_positions_must_be_the_nets_own():
    net = ViT(size=8, patch=4, width=8, depth=1, heads=2, positions="sincos_mocov3")
    state = vit_state(net)
    with pytest.raises(UserError, match="not the table of model.positions 'sincos_mocov3'"):
        torch_weights.vit(net, state)
    state["pos_embed"][0, 1:] = np.roll(
        # MAE's order, from MoCo v3's by swapping the halves: still not the net's own
        own := torch_weights.sincos(8, 2, "sincos_mocov3"),
        4,
        1,
    )
    with pytest.raises(UserError, match="not the table"):
        torch_weights.vit(net, state)
    state["pos_embed"][0, 1:] = own
    assert "positions" not in torch_weights.vit(net, state)["params"]
    learned = net.clone(positions="learned")
    got = torch_weights.vit(learned, state)["params"]["positions"]
    np.testing.assert_array_equal(got[1:], own)


def test_head():
    net = MLP((3, 2), norms=("affine", "none"), biases=(False, True))
    state = {
        "0.weight": np.arange(12.0).reshape(3, 4),
        "1.weight": np.ones(3),
        "1.bias": np.zeros(3),
        "1.running_mean": np.zeros(3),
        "1.running_var": np.ones(3),
        "3.weight": np.arange(6.0).reshape(2, 3),
        "3.bias": np.ones(2),
    }
    variables = torch_weights.mlp(net, state, ("0", "3"), ("1", None))
    np.testing.assert_array_equal(variables["params"]["linear0"]["kernel"], state["0.weight"].T)
    assert set(variables["params"]["linear0"]) == {"kernel"}
    with pytest.raises(UserError, match="not used: 0.bias"):
        torch_weights.mlp(net, state | {"0.bias": np.zeros(3)}, ("0", "3"), ("1", None))
