"""MoCo v1: the authors' numbers step by step, local BatchNorm and its shuffle, DCL on a queue."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kit import probed, tiny

from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.methods import moco_v1
from ssl_jax.runs import config as configs
from ssl_jax.train.state import written

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(examples=40, batch=8, steps_per_epoch=5, total_steps=5)


def context(axis=None, step=0, key=3):
    step = jnp.asarray(step, jnp.int32)
    return Context(step, step // 5, step / 5, jax.random.key(key), axis)


class Body(nn.Module):
    """The fixture's encoder: linear 12 -> 10, ReLU."""

    group: int | None = None
    dtype: jnp.dtype = jnp.float32
    axis: str | None = None

    @nn.compact
    def __call__(self, x, train=False):
        return nn.relu(nn.Dense(10, name="body")(x))


class Centred(nn.Module):
    """x − the mean of its group: of unit vectors it shows who is in the group."""

    group: int | None = None
    dtype: jnp.dtype = jnp.float32
    axis: str | None = None

    def __call__(self, x, train=False):
        if not train:
            return x
        groups = x.reshape(-1, self.group, x.shape[-1])
        return (groups - groups.mean(1, keepdims=True)).reshape(x.shape)


def stub(monkeypatch, module, **method):
    """The imagenet preset with `module` for its encoder, changed as the keywords say."""
    config, _ = configs.load("configs/moco_v1.py:imagenet")
    config.method.update(method)
    monkeypatch.setattr(moco_v1.models, "make", lambda model: module(group=model.get("group")))
    return config


def linear(golden, prefix, step=None):
    """A PyTorch linear layer as ours."""
    weight, bias = golden[f"{prefix}.weight"], golden[f"{prefix}.bias"]
    if step is not None:
        weight, bias = weight[step], bias[step]
    return {"kernel": weight.T, "bias": bias}


def network(golden, prefix, step=None):
    return {
        "encoder": {"body": linear(golden, f"{prefix}body", step)},
        "projector": {"linear0": linear(golden, f"{prefix}fc", step)},
    }


def stepper(method, devices):
    """f(params, state, views, step) -> (loss, gradients, state), over `devices`."""
    axis = layout.AXIS

    def step(params, state, views, index):
        def mean_loss(params):
            loss, (new, _) = method.loss(params, state, views, context(axis, index))
            return collectives.pmean(loss, axis), written(new)

        (loss, new), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        return loss, collectives.pmean(grads, axis), new

    mesh = layout.mesh(jax.devices()[:devices])
    specs = {"in_specs": (P(), P(), P(axis), P()), "out_specs": P()}
    return jax.jit(jax.shard_map(step, mesh=mesh, check_vma=False, **specs))


@pytest.mark.parametrize("devices", [1, 2])
def test_five_steps_of_the_official_code(monkeypatch, devices):
    """Loss, gradients, both encoders, queue and pointer. Groups that shuffle change nothing."""
    golden = np.load(GOLDEN / "moco_v1_queue.npz")
    config = stub(monkeypatch, Body, queue=24, momentum=0.9, momentum_final=0.9)
    config.method.update(group=2, shuffle=2)
    config.method.projector.widths = (4,)
    method = moco_v1.make(config, RUN)
    views = np.stack([golden["im_q"], golden["im_k"]], 2)  # [step, 8, 2, 12]
    _, state = jax.jit(method.init)(jax.random.key(0), views[0])
    params = network(golden, "init/encoder_q.")
    state["target"] = network(golden, "init/encoder_k.")
    state["queue"], state["pointer"] = golden["queue_init"].T, np.int32(golden["ptr_init"][0])
    step = stepper(method, devices)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for i in range(5):
        loss, grads, state = step(params, state, views[i], i)
        close(loss, golden["loss"][i])
        jax.tree.map(close, grads, network(golden, "grad_q/", i))
        params = jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)
        jax.tree.map(close, params, network(golden, "after_q/", i))
        jax.tree.map(close, state["target"], network(golden, "after_k/", i))
        close(state["queue"], golden["queue"][i].T)
        assert state["pointer"] == golden["ptr"][i, 0]


def keys_of(config, devices=1):
    """seed of the step -> rows that enter the queue; both views of row i are the unit vector i."""
    method = moco_v1.make(config, RUN)
    views = np.tile(np.eye(8, dtype=np.float32)[:, None], (1, 2, 1))
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    # A projector of one linear layer that changes nothing.
    same = {"linear0": {"kernel": jnp.eye(8), "bias": jnp.zeros(8)}}
    params = {**params, "projector": same}
    state = {**state, "target": params}

    def enqueued(views, seed):
        _, (new, _) = method.loss(params, state, views, context(layout.AXIS, 0, seed))
        return written(new["queue"])[:8]

    mesh = layout.mesh(jax.devices()[:devices])
    specs = {"in_specs": (P(layout.AXIS), P()), "out_specs": P()}
    mapped = jax.jit(jax.shard_map(enqueued, mesh=mesh, check_vma=False, **specs))
    return lambda seed: np.asarray(mapped(views, seed))


def test_keys_change_places_between_groups(monkeypatch):
    config = stub(monkeypatch, Centred, queue=8, group=2, shuffle=2)
    config.method.projector.widths = (8,)
    assert moco_v1.make(config, RUN).block == 2
    keys, together = keys_of(config), np.zeros((8, 8))
    for seed in range(12):
        rows = keys(seed)
        np.testing.assert_array_equal(rows.argmax(1), np.arange(8), "rows are back in order")
        # e_i − (e_i + e_j) / 2: not zero at i and at the one other row of its group.
        group = np.abs(rows) > 1e-3
        np.testing.assert_array_equal(group.sum(1), 2)
        np.testing.assert_array_equal(group, group.T)
        together += group
    # Each row has met every other row of its block of four, and no other.
    np.testing.assert_array_equal(together > 0, np.kron(np.eye(2), np.ones((4, 4))) > 0)
    for devices in (2, 4):  # of which four hold half a block each
        np.testing.assert_array_equal(keys_of(config, devices)(0), keys(0))
    config.method.shuffle = 4  # one block of all rows, as the official code
    for devices in (2, 4):
        np.testing.assert_array_equal(keys_of(config, devices)(0), keys_of(config)(0))
    config.method.shuffle = 1  # the ablation: always the same neighbour, the query's
    group = np.abs(keys_of(config)(0)) > 1e-3
    np.testing.assert_array_equal(group, np.kron(np.eye(4), np.ones((2, 2))) > 0)


@pytest.fixture(scope="module")
def small():
    """(config of SGD-sized networks with BatchNorm, 16 rows of views)."""
    config = tiny.config("moco_v1")
    views = np.random.default_rng(0).normal(size=(16, 2, 28, 28, 1)).astype(np.float32)
    return config, views


def variant(config, **method):
    config = config.copy_and_resolve_references()
    config.method.update(method)
    return moco_v1.make(config, Run(160, 16, 10, 10))


def test_groups_are_gpus(small):
    """Without shuffling, groups of 4 rows on one device are 4 GPUs with BatchNorm of their own."""
    config, views = small
    local = variant(config, group=4, shuffle=1)
    params, state = jax.jit(local.init)(jax.random.key(0), views)
    loss, (new, _) = jax.jit(local.loss)(params, state, views, context())
    gpu = jax.jit(variant(config, group=0, shuffle=1).loss)
    parts = [gpu(params, state, x, context()) for x in np.split(views, 4)]
    np.testing.assert_allclose(loss, np.mean([part[0] for part in parts]), rtol=1e-5)
    keys = np.concatenate([written(part[1][0]["queue"])[:4] for part in parts])
    np.testing.assert_allclose(written(new["queue"])[:16], keys, rtol=1e-3, atol=1e-5)
    whole, _ = gpu(params, state, views, context())
    assert abs(whole - loss) > 1e-4, "BatchNorm over all rows is something else"


def test_the_key_encoder_has_statistics_of_its_own(small):
    """At first both encoders are equal: the keys' statistics are those of queries of that view."""
    config, views = small
    method = variant(config, group=0, shuffle=1)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    f = jax.jit(method.loss)
    _, (new, _) = f(params, state, views, context())
    _, (swapped, _) = f(params, state, views[:, ::-1], context())
    for a, b, c in zip(
        *map(jax.tree.leaves, (new["target_stats"]["encoder"], swapped["encoder"])),
        jax.tree.leaves(new["encoder"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        assert np.abs(np.asarray(a) - c).max() > 1e-5, "not those of the query's view"


def test_micro_batches_share_one_update_of_the_key_encoder(small):
    config, views = small
    config = config.copy_and_resolve_references()
    config.accumulate = 2
    method = variant(config, momentum=0.9, momentum_final=0.9)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    start = jax.tree.map(lambda p: p + 1.0, state["target"])
    state["target"] = start
    for micro in np.split(views, 2):
        _, (state, _) = jax.jit(method.loss)(params, state, micro, context())
        state = written(state)
    want = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, start, params)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), state["target"], want)
    assert state["pointer"] == 16


def test_momentum_follows_its_schedule(small):
    config, views = small
    method = variant(config, momentum=0.8, momentum_final=1.0)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    state["target"] = jax.tree.map(jnp.zeros_like, params)
    # Halfway through ten steps the cosine stands at 0.9.
    _, (new, _) = jax.jit(method.loss)(params, state, views, context(step=5))
    for target, p in zip(*map(jax.tree.leaves, (written(new["target"]), params)), strict=True):
        np.testing.assert_allclose(target, 0.1 * np.asarray(p), rtol=1e-4, atol=1e-7)


def test_decoupled_and_weighted_are_the_losses_of_dcl(monkeypatch):
    golden = np.load(GOLDEN / "moco_v1_queue.npz")
    config = stub(monkeypatch, Body, queue=24, group=0, shuffle=1)
    config.method.projector.widths = (4,)
    views = np.stack([golden["im_q"][0], golden["im_k"][0]], 1)
    params = network(golden, "init/encoder_q.")
    losses = {}
    for name, switches in {
        "infonce": {},
        "dcl": {"decoupled": True},
        "dclw": {"decoupled": True, "weighted": True, "sigma": 0.3},
    }.items():
        config.method.update({"decoupled": False, "weighted": False, **switches})
        method = moco_v1.make(config, RUN)
        _, state = jax.jit(method.init)(jax.random.key(0), views)
        state |= {"target": params, "queue": golden["queue_init"].T}
        losses[name] = jax.jit(method.loss)(params, state, views, context())[0]
    # The authors' logits of the first step: the positive, then the queue, over T.
    positive, negatives = golden["logits"][0, :, 0], golden["logits"][0, :, 1:]
    repelled = np.log(np.exp(negatives.astype(np.float64)).sum(1))
    raised = np.exp(positive * 0.07 / 0.3)
    weights = 2 - raised / raised.mean()
    np.testing.assert_allclose(losses["infonce"], golden["loss"][0], rtol=1e-4)
    np.testing.assert_allclose(losses["dcl"], np.mean(repelled - positive), rtol=1e-4)
    np.testing.assert_allclose(losses["dclw"], np.mean(repelled - weights * positive), rtol=1e-4)


def test_probing_reads_either_encoder(small):
    config, views = small
    params, state = jax.jit(variant(config).init)(jax.random.key(0), views)
    online = probed.variables(variant(config), params, state)
    assert online == {"params": params["encoder"], "batch_stats": state["encoder"]}
    target = probed.variables(variant(config, encoder="target"), params, state)
    assert target["params"] is state["target"]["encoder"]
    assert target["batch_stats"] is state["target_stats"]["encoder"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("encoder", "onlin", "Did you mean online"),
        ("queue", 40, "queue=40 is not a multiple of the 16 rows"),
        ("shuffle", 0, "shuffle"),
        ("weighted", True, "needs --config.method.decoupled"),
    ],
)
def test_user_errors(small, field, value, words):
    with pytest.raises(UserError, match=words):
        variant(small[0], **{field: value})
