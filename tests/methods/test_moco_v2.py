"""MoCo v2 is MoCo v1 with another config: what the official flags set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import tiny

from ssl_jax import models
from ssl_jax.contract.method import Context, Run
from ssl_jax.methods import METHODS, moco_v2
from ssl_jax.optim import schedules
from ssl_jax.processes import host
from ssl_jax.runs import config as configs
from ssl_jax.train import experiment
from ssl_jax.train.state import written


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def test_one_step_through_the_mlp_head():
    """The loss and the queue from the features, in NumPy."""
    config = tiny.config("moco_v2")
    config.method.update(group=0, shuffle=1)
    method = moco_v2.make(config, Run(160, 16, 10, 10))
    views = np.random.default_rng(0).normal(size=(16, 2, 28, 28, 1)).astype(np.float32)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    zero = jnp.zeros((), jnp.int32)
    ctx = Context(zero, zero, jnp.zeros(()), jax.random.key(1), None)
    loss, (new, metrics) = jax.jit(method.loss)(params, state, views, ctx)

    encoder = models.make(config.model)
    variables = {"params": params["encoder"], "batch_stats": state["encoder"]}

    @jax.jit
    def features(x):
        return encoder.apply(variables, x, train=True, mutable=["batch_stats"])[0]

    def head(h):
        first, second = params["projector"]["linear0"], params["projector"]["linear1"]
        hidden = np.maximum(h @ first["kernel"] + first["bias"], 0)
        return unit(hidden @ second["kernel"] + second["bias"])

    q, k = (head(np.asarray(features(views[:, v]), np.float64)) for v in (0, 1))
    logits = np.concatenate([np.sum(q * k, 1)[:, None], q @ np.asarray(state["queue"]).T], 1) / 0.2
    want = np.mean(np.log(np.exp(logits).sum(1)) - logits[:, 0])
    np.testing.assert_allclose(loss, want, rtol=1e-4)
    hits = np.argmax(logits, 1) == 0
    np.testing.assert_allclose(metrics["contrastive_accuracy"], np.mean(hits), rtol=1e-6)
    queue = written(new["queue"])
    np.testing.assert_allclose(queue[:16], k, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(queue[16:], state["queue"][16:])


def test_the_official_flags():
    """--mlp --moco-t 0.2 --aug-plus --cos, on top of v1's command."""
    one, two = (configs.load(f"configs/moco_v{v}.py:imagenet")[0] for v in (1, 2))
    method = METHODS[two.method.name](two, Run(1_281_167, 256, 5004, 1_000_800))
    views = jax.ShapeDtypeStruct((32, 2, 224, 224, 3), "float32")
    params, state = jax.eval_shape(method.init, jax.random.key(0), views)
    shapes = jax.tree.map(lambda p: p.shape, params["projector"])
    assert shapes["linear0"] == {"kernel": (2048, 2048), "bias": (2048,)}
    assert shapes["linear1"] == {"kernel": (2048, 128), "bias": (128,)}
    assert state["queue"].shape == (65536, 128) and not state["projector"]
    assert two.method.temperature == 0.2 and one.method.temperature == 0.07
    assert two.views.both.blur == 0.5 and one.views.both.blur == 0
    rates = [
        schedules.make(c.optimizer, 256, 5004, 1_000_800)(jnp.arange(0, 1_000_800, 5003))
        for c in (one, two)
    ]
    epochs = np.arange(0, 1_000_800, 5003) // 5004
    drops = np.searchsorted([120, 160], epochs, side="right")
    np.testing.assert_allclose(rates[0], 0.03 * 0.1**drops, rtol=1e-5)
    np.testing.assert_allclose(rates[1], 0.015 * (1 + np.cos(np.pi * epochs / 200)), atol=1e-6)
    # All else is v1's.
    for field in ("queue", "momentum", "momentum_final", "group", "shuffle"):
        assert one.method[field] == two.method[field]
    assert one.optimizer.weight_decay == two.optimizer.weight_decay == 1e-4
    assert two.optimizer.decay_exclude == ()


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        *((f"moco_v2:{preset}", 4) for preset in ("cifar10", "digits", "peer")),
        # 8 GPUs of 32 images, as the official codes.
        *((f"{method}:imagenet", 8) for method in ("moco_v1", "moco_v2", "ressl")),
    ],
)
def test_presets_divide_over_devices(name, devices):
    config, _ = configs.load(name)
    method = METHODS[config.method.name](config, Run(50_000, config.batch, 195, 195))
    assert config.batch % (devices * method.block) == 0
    if devices == 8:
        assert (config.batch, method.block) == (256, 32)
        alone = host.Cluster(1, 0, 1)
        said = experiment.undivided(config, alone, method, 16)
        assert "in blocks of 32 (--config.method.group=32): 1, 2, 4, 8 devices would" in said
