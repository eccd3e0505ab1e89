"""MoCo v3: the authors' step with its statistics, the frozen patches, the target's momentum."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kit import probed, tiny

from ssl_jax.augment import policies
from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.methods import METHODS, moco_v3
from ssl_jax.runs import config as configs
from ssl_jax.train.state import written

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(examples=160, batch=16, steps_per_epoch=10, total_steps=10)


def context(axis=None, step=0):
    step = jnp.asarray(step, jnp.int32)
    return Context(step, step // 10, step / 10, jax.random.key(3), axis)


class Body(nn.Module):
    """The fixture's encoder: linear 12 -> 10, ReLU."""

    dtype: jnp.dtype = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(nn.Dense(10, name="body")(x))


def sequential(golden, prefix, last_norm):
    """(params, running statistics) of Linear, BatchNorm, ReLU, Linear (, BatchNorm)."""
    params = {f"linear{i}": {"kernel": golden[f"{prefix}.{3 * i}.weight"].T} for i in (0, 1)}
    if f"{prefix}.1.weight" in golden:
        params["norm0"] = {
            "scale": golden[f"{prefix}.1.weight"],
            "bias": golden[f"{prefix}.1.bias"],
        }
    stats = {}
    for layer in (0, 1) if last_norm else (0,):
        running = f"{prefix}.{3 * layer + 1}.running_"
        if running + "mean" in golden:
            stats[f"norm{layer}"] = {
                "mean": golden[running + "mean"],
                "var": golden[running + "var"],
            }
    return params, stats


def networks(golden, prefix, which):
    """(params, running statistics) of encoder and projector."""
    body = f"{prefix}/{which}.body"
    encoder = {"body": {"kernel": golden[f"{body}.weight"].T, "bias": golden[f"{body}.bias"]}}
    projector, stats = sequential(golden, f"{prefix}/{which}.fc", last_norm=True)
    return {"encoder": encoder, "projector": projector}, {"encoder": {}, "projector": stats}


@pytest.mark.parametrize("devices", [1, 2])
def test_one_step_of_the_official_code(monkeypatch, devices):
    """Loss, gradients, the target, and the running statistics of every BatchNorm after it."""
    golden = np.load(GOLDEN / "mocov3_resnet_step.npz")
    config, _ = configs.load("configs/moco_v3.py:imagenet")
    config.method.update(temperature=0.2, momentum=0.9)
    config.method.projector.widths = config.method.predictor.widths = (14, 6)
    monkeypatch.setattr(moco_v3.models, "make", lambda model: Body())
    method = moco_v3.make(config, RUN)
    views = np.stack([golden["x1"], golden["x2"]], 1)  # [8, 2, 12]
    params, stats = networks(golden, "before", "base_encoder")
    target, target_stats = networks(golden, "before", "momentum_encoder")
    predictor, predictor_stats = sequential(golden, "before/predictor", last_norm=False)
    params["predictor"] = predictor
    state = {
        **stats,
        "predictor": predictor_stats,
        "target": target,
        "target_stats": target_stats,
    }
    made, made_state = jax.jit(method.init)(jax.random.key(0), views)
    for ours, theirs in ((made, params), (made_state, state)):
        assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)

    def step(views):
        def mean_loss(params):
            loss, (new, _) = method.loss(params, state, views, context(layout.AXIS))
            return collectives.pmean(loss, layout.AXIS), written(new)

        (loss, new), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return loss, collectives.pmean(grads, layout.AXIS), new

    mesh = layout.mesh(jax.devices()[:devices])
    specs = {"in_specs": P(layout.AXIS), "out_specs": P()}
    loss, grads, new = jax.jit(jax.shard_map(step, mesh=mesh, check_vma=False, **specs))(views)

    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-6)
    close(loss, golden["loss"])
    want, _ = networks(golden, "grad", "base_encoder")
    want["predictor"], _ = sequential(golden, "grad/predictor", last_norm=False)
    jax.tree.map(close, grads, want)
    _, stats = networks(golden, "after", "base_encoder")
    jax.tree.map(close, {name: new[name] for name in stats}, stats)
    jax.tree.map(close, new["predictor"], sequential(golden, "after/predictor", False)[1])
    target, target_stats = networks(golden, "after", "momentum_encoder")
    jax.tree.map(close, new["target"], target)
    jax.tree.map(close, new["target_stats"], target_stats)


def vit(**method):
    config = tiny.config("moco_v3")
    config.model.unlock()
    config.model = {
        "name": "vit",
        "size": 28,
        "patch": 14,
        "width": 16,
        "depth": 1,
        "heads": 2,
        "positions": "sincos_mocov3",
        "initial": "mocov3",
    }
    config.method.update(method)
    return config


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).normal(size=(8, 2, 28, 28, 1)).astype(np.float32)


def test_frozen_patches(images):
    gradients = {}
    for freeze in (False, True):
        method = moco_v3.make(vit(freeze_patch_embed=freeze), RUN)
        params, state = jax.jit(method.init)(jax.random.key(0), images)
        grads, _ = jax.jit(jax.grad(method.loss, has_aux=True))(params, state, images, context())
        gradients[freeze] = grads
        names = method.labels(params)
        assert jax.tree.structure(names) == jax.tree.structure(params)
        patch = names["encoder"].pop("patch_embed")
        assert set(jax.tree.leaves(patch)) == {"frozen" if freeze else "default"}
        assert set(jax.tree.leaves(names)) == {"default"}
    patch = [np.abs(g["encoder"]["patch_embed"]["kernel"]).max() for g in gradients.values()]
    assert patch[0] > 0 and patch[1] == 0
    # All else learns as before.
    for freeze in gradients:
        gradients[freeze]["encoder"].pop("patch_embed")
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), *gradients.values())


def test_every_view_has_its_own_augmentation():
    config = vit()
    config.views.second = policies.make("none", 28)._asdict()
    method = moco_v3.make(config, RUN)
    image = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), dtype=np.uint8)
    views = jax.jit(lambda x: method.views(jax.random.key(1), {"image": x}, context()))(image)
    np.testing.assert_allclose(views[:, 1], image / 255, atol=1e-6)
    assert np.abs(views[:, 0] - image / 255).max() > 0.1


def test_the_vit_recipe():
    config, _ = configs.load("configs/moco_v3.py:imagenet_vit_small")
    method = METHODS["moco_v3"](config, RUN)
    views = jax.ShapeDtypeStruct((2, 2, 224, 224, 3), "float32")
    params, state = jax.eval_shape(method.init, jax.random.key(0), views)
    widths = {
        head: [params[head][f"linear{i}"]["kernel"].shape for i in range(len(stats))]
        for head, stats in ((h, state[h]) for h in ("projector", "predictor"))
    }
    assert widths == {
        "projector": [(384, 4096), (4096, 4096), (4096, 256)],
        "predictor": [(256, 4096), (4096, 256)],
    }
    # Every layer has a BatchNorm, the last one without parameters; no linear layer has a bias.
    for head, count in (("projector", 3), ("predictor", 2)):
        assert set(state[head]) == {f"norm{i}" for i in range(count)}
        assert f"norm{count - 1}" not in params[head] and "norm0" in params[head]
        assert all(set(params[head][f"linear{i}"]) == {"kernel"} for i in range(count))
    assert config.model.heads == 12 and method.labels(params)["encoder"]["patch_embed"] == {
        "kernel": "frozen",
        "bias": "frozen",
    }


@pytest.mark.parametrize(("step", "momentum"), [(0, 0.9), (5, 0.95), (10, 1.0)])
def test_the_target_moves_ever_slower_and_before_the_keys(images, step, momentum):
    method = moco_v3.make(vit(momentum=0.9), RUN)
    params, state = jax.jit(method.init)(jax.random.key(0), images)
    before = jax.jit(method.init)(jax.random.key(1), images)[1]["target"]
    state["target"] = before
    f = jax.jit(method.loss)
    loss, (new, _) = f(params, state, images, context(step=step))
    new = written(new)
    for name in ("encoder", "projector"):
        trees = new["target"][name], before[name], params[name]
        for got, t, p in zip(*map(jax.tree.leaves, trees), strict=True):
            want = momentum * t + (1 - momentum) * p
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    # Keys of the moved target: with it put in place beforehand, momentum 1 gives the same loss.
    moved, _ = f(params, {**state, "target": new["target"]}, images, context(step=10))
    np.testing.assert_allclose(loss, moved, rtol=1e-5)


def test_micro_batches_share_one_update_of_the_target(images):
    config = vit(momentum=0.9)
    config.accumulate = 2
    method = moco_v3.make(config, RUN)
    params, state = jax.jit(method.init)(jax.random.key(0), images)
    state["target"] = jax.tree.map(jnp.ones_like, state["target"])
    for micro in np.split(images, 2):
        _, (state, _) = jax.jit(method.loss)(params, state, micro, context())
        state = written(state)
    p = params["encoder"]["class_token"]
    got = state["target"]["encoder"]["class_token"]
    np.testing.assert_allclose(got, 0.9 + 0.1 * p, rtol=1e-5)


def test_probing_reads_either_encoder(images):
    config = vit()
    params, state = jax.jit(moco_v3.make(config, RUN).init)(jax.random.key(0), images)
    online = probed.variables(moco_v3.make(config, RUN), params, state)
    assert online["params"] is params["encoder"]
    config.method.encoder = "target"
    target = probed.variables(moco_v3.make(config, RUN), params, state)
    assert target["params"] is state["target"]["encoder"]


def test_user_errors():
    config = tiny.config("moco_v3")
    config.method.encoder = "momentum"
    with pytest.raises(UserError, match="encoder is 'momentum'"):
        moco_v3.make(config, RUN)
    config.method.update(encoder="online", freeze_patch_embed=True)
    with pytest.raises(UserError, match="has no patches"):
        moco_v3.make(config, RUN)
