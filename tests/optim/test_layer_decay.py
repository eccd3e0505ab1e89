"""Layer-wise learning-rate decay: MAE's groups, the stages of a ResNet, and what a step becomes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssl_jax import models
from ssl_jax.optim import layer_decay, optimizers, rules
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def params_of(**fields):
    model = models.make(fields)
    made = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3))))
    head = {"kernel": jnp.zeros((model.features, 5)), "bias": jnp.zeros(5)}
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape), made["params"])
    return {"encoder": zeros, "head": head}


def by_name(tree):
    return {rules.name_of(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def ours(name):
    """Our path of a parameter of timm's ViT."""
    *folders, last = name.split(".")
    if name in ("cls_token", "pos_embed"):
        return {"cls_token": "encoder/class_token", "pos_embed": "encoder/positions"}[name]
    norm = any("norm" in f for f in folders)
    last = {"weight": "scale" if norm else "kernel", "bias": "bias"}[last]
    if folders[0] == "head":
        return f"head/{last}"
    if folders[0] == "blocks":
        folders = [f"blocks_{folders[1]}", *(f for f in folders[2:] if f != "mlp")]
    folders = ["norm" if f == "fc_norm" else f for f in folders if f != "proj" or "attn" in folders]
    return "/".join(["encoder", *folders, last])


@pytest.fixture(scope="module")
def vit():
    return params_of(
        name="vit", size=8, patch=4, width=8, depth=3, heads=2, positions="learned", pool="mean"
    )


def test_layers_factors_and_weight_decay_of_a_vit_are_those_of_mae(vit):
    golden = np.load(GOLDEN / "mae_lr_decay_groups.npz")
    ids, last = layer_decay.layer_ids(vit)
    ids, factors = by_name(ids), by_name(layer_decay.scales(vit, 0.75))
    config = configs.load("configs/finetune.py:mae_vit_base")[0]
    decays = by_name(rules.outside(tuple(config.optimizer.decay_exclude), vit))
    names = [ours(str(n)) for n in golden["names"]]
    assert sorted(names) == sorted(ids) and last == 4
    for i, name in enumerate(names):
        assert ids[name] == golden["layer_id"][i], name
        assert factors[name] == golden["lr_scale"][i], name
        assert config.optimizer.weight_decay * decays[name] == golden["weight_decay"][i], name


def test_layers_of_a_resnet_are_its_stages():
    params = params_of(name="resnet", blocks=(1, 2), width=4, stem="small", bottleneck=True)
    ids, last = layer_decay.layer_ids(params)
    ids = by_name(ids)
    assert last == 3
    assert ids["encoder/conv1/kernel"] == ids["encoder/bn1/scale"] == 0
    assert ids["encoder/layer1_0/conv1/kernel"] == ids["encoder/layer1_0/downsample_bn/bias"] == 1
    assert ids["encoder/layer2_0/bn1/scale"] == ids["encoder/layer2_1/conv3/kernel"] == 2
    assert ids["head/kernel"] == ids["head/bias"] == 3


def test_no_layers_are_an_error():
    with pytest.raises(ValueError, match="neither blocks"):
        layer_decay.layer_ids({"encoder": {"dense": jnp.zeros(2)}})


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_is_that_of_a_lower_rate(vit, name):
    """As PyTorch's groups: rate · factor, the weight decay of AdamW in the rate."""
    generator = np.random.default_rng(0)
    params, grads = (
        jax.tree.map(lambda p: jnp.asarray(generator.normal(size=p.shape), jnp.float32), vit)
        for _ in range(2)
    )
    counts = {"batch": 1, "steps_per_epoch": 10, "total_steps": 10}
    fields = {"name": name, "schedule": "constant", "weight_decay": 0.1, "decay_exclude": ()}

    def step(rate, *after):
        made = optimizers.make(fields | {"learning_rate": rate}, params, **counts)
        chain = optax.chain(made, *after)
        state = chain.init(params)
        for _ in range(2):  # the second has momentum
            updates, state = chain.update(grads, state, params)
        return by_name(updates)

    ids = by_name(layer_decay.layer_ids(vit)[0])
    scaled = step(0.01, layer_decay.scale_by_layer(layer_decay.scales(vit, 0.5)))
    for layer in range(5):
        slower = step(0.01 * 0.5 ** (4 - layer))
        for path in ids:
            if ids[path] == layer:
                np.testing.assert_allclose(scaled[path], slower[path], rtol=1e-6)
                assert np.abs(scaled[path]).max() > 0
