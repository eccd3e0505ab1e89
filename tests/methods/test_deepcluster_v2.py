"""DeepCluster-v2: the authors' three epochs, step by step, and their two processes."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.methods import deepcluster_v2
from ssl_jax.runs import config as configs
from ssl_jax.train.state import written

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
HEADS = (5, 4, 3)


class Identity:
    dtype = jnp.float32

    def clone(self, axis):
        return self

    def apply(self, variables, x, train, mutable):
        return x, {}


def context(run, step, axis=None):
    step = jnp.asarray(step, jnp.int32)
    return Context(step, step // run.steps_per_epoch, step / 100, jax.random.key(3), axis)


@pytest.fixture
def setting(monkeypatch):
    """make(run, local crops) -> (method without an encoder, state at the start), and the draws.

    What is laid into `draws` is what k-means begins with, head by head.
    """
    draws = []

    def make(run, local_crops, iterations=10):
        config, _ = configs.load("configs/deepcluster_v2.py:imagenet")
        config.method.prototypes = HEADS
        config.method.local_crops, config.method.iterations = local_crops, iterations
        config.method.projector = {"widths": (6,), "norms": ("none",), "biases": (True,)}
        monkeypatch.setattr(deepcluster_v2.models, "make", lambda _: Identity())
        monkeypatch.setattr(
            deepcluster_v2.clustering, "draw_members", lambda key, member, count: draws.pop(0)
        )
        method = deepcluster_v2.make(config, run)
        made = {"params": {}, "batch_stats": {}}
        monkeypatch.setattr(
            deepcluster_v2.network, "create", lambda net, key, x: (made, jnp.zeros((1, 6)))
        )
        _, state = method.init(jax.random.key(0), {"global": jnp.zeros((1, 2, 6))})
        return method, state

    return make, draws


def test_three_epochs_are_the_official_ones(setting):
    make, draws = setting
    data = np.load(GOLDEN / "deepclusterv2.npz")
    # Its pass over the data before the first epoch is our first epoch, in the same order.
    run = Run(examples=20, batch=8, steps_per_epoch=2, total_steps=8)
    method, state = make(run, local_crops=1)
    orders = np.concatenate([data["orders"][:1], data["orders"]])

    def parameters(weight, bias):
        body = {"kernel": jnp.asarray(weight).T, "bias": jnp.asarray(bias)}
        return {"encoder": {}, "projector": {"linear0": body}}

    @jax.jit
    def learn(params, state, views, step):
        def loss(params):
            return method.loss(params, state, views, context(run, step))

        (value, (after, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        after = written(after)
        return value, after, metrics, grads, jax.tree.map(lambda p, g: p - 0.5 * g, params, grads)

    @jax.jit
    def finish(params, state, step, first):
        draws[:] = list(first)
        return method.after_step(params, state, context(run, step))

    params = parameters(data["before/body.weight"], data["before/body.bias"])
    for step in range(8):
        epoch, half = divmod(step, 2)
        if step >= 2:  # what the epoch began with
            for head in range(3):
                np.testing.assert_array_equal(
                    state["labels"][head], data["assignments"][epoch - 1, head]
                )
                np.testing.assert_allclose(
                    state["prototypes"][head].T,
                    data[f"centroids{head}"][epoch - 1],
                    rtol=1e-4,
                    atol=1e-6,
                )
        index = orders[epoch, 8 * half :][:8].astype(np.int32)
        x = data["X"][index]
        views = {"global": x[:, :2], "local": x[:, 2:], "index": jnp.asarray(index)}
        value, state, metrics, grads, moved = learn(params, state, views, step)
        if step < 2:
            assert float(value) == 0 and float(metrics["labelled"]) == 0
        else:
            k = step - 2
            np.testing.assert_allclose(value, data["loss"][k], rtol=1e-4)
            known = (data["targets"][k] >= 0).mean()
            np.testing.assert_allclose(metrics["labelled"], known, rtol=1e-6)
            for name, own in (("weight", "kernel"), ("bias", "bias")):
                for what, tree in (("grad", grads), ("after", moved)):
                    got = tree["projector"]["linear0"][own].T
                    want = data[f"{what}_body_{name}"][k]
                    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
        ahead = min(epoch, 2)  # the clustering at the end of this epoch is that of the next
        first = [
            jnp.asarray(data["mem_index"][ahead][data[f"init_idx_ep{ahead}_head{head}"]])
            for head in range(3)
        ]
        params, state = finish(moved, state, step, first)
        if half == 1 and epoch < 3:
            place = data["mem_index"][epoch]
            for crop in range(2):
                got = state["bank"][crop][place]
                np.testing.assert_allclose(got, data["mem_emb"][epoch, crop], rtol=1e-4, atol=1e-6)


def test_two_devices_cluster_what_two_processes_did(setting):
    make, draws = setting
    data = np.load(GOLDEN / "world2_deepclusterv2_kmeans.npz")
    run = Run(examples=45, batch=40, steps_per_epoch=1, total_steps=8)
    method, state = make(run, local_crops=0)
    body = {"kernel": jnp.eye(6), "bias": jnp.zeros(6)}
    params = {"encoder": {}, "projector": {"linear0": body}}
    memory = jnp.asarray(data["mem"])  # [rank, bank, 20, 6]
    views = {
        "global": jnp.swapaxes(memory, 1, 2).reshape(40, 2, 6),
        "index": jnp.asarray(data["ids"].reshape(40), jnp.int32),
    }
    draws[:] = [jnp.asarray(data["ids"][0][data[f"init_idx_rank0_head{h}"]]) for h in range(3)]

    def step(params, state, views):
        ctx = context(run, 0, layout.AXIS)
        _, (after, _) = method.loss(params, state, views, ctx)
        _, after = method.after_step(params, written(after), ctx)
        return jax.tree.map(lambda x: x[None], after)  # of each device

    mesh = layout.mesh(jax.devices()[:2])
    specs = {"in_specs": (P(), P(), P("batch")), "out_specs": P("batch"), "check_vma": False}
    after = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(params, state, views)
    for device in range(2):
        np.testing.assert_array_equal(after["labels"][device], data["assignments"])
        for head in range(3):
            np.testing.assert_allclose(
                after["prototypes"][head][device].T, data[f"centroids{head}"], rtol=1e-4, atol=1e-6
            )


@pytest.mark.parametrize("iterations", [1, 3])
def test_kmeans_has_as_many_iterations_as_the_config_says(setting, iterations):
    make, draws = setting
    data = np.load(GOLDEN / "deepclusterv2.npz")
    run = Run(examples=40, batch=40, steps_per_epoch=1, total_steps=8)
    method, state = make(run, local_crops=0, iterations=iterations)
    state |= {"bank": list(jnp.asarray(data["km_mem"])), "seen": jnp.zeros(40, jnp.int32)}
    draws[:] = [jnp.asarray(data[f"km_init_idx{head}"]) for head in range(3)]
    _, after = method.after_step({}, state, context(run, 0))
    np.testing.assert_array_equal(after["labels"], data[f"km_assign_it{iterations}"])
    for head in range(3):
        want = data[f"km_centroid{head}_it{iterations}"].T
        np.testing.assert_allclose(after["prototypes"][head], want, rtol=1e-4, atol=1e-6)


def test_clustering_waits_for_a_step_that_was_not_skipped(setting):
    make, draws = setting
    run = Run(examples=20, batch=8, steps_per_epoch=2, total_steps=8)
    method, state = make(run, local_crops=0)
    rng = np.random.default_rng(0)
    bank = rng.normal(size=(2, 20, 6)).astype(np.float32)
    state["bank"] = list(jnp.asarray(bank / np.linalg.norm(bank, axis=-1, keepdims=True)))
    state["seen"] = jnp.where(jnp.arange(20) < 16, 0, -1).at[3].set(1)

    @jax.jit
    def finish(state, step):
        draws[:] = [jnp.arange(k) for k in HEADS]
        return method.after_step({}, state, context(run, step))[1]

    assert int(finish(state, 0)["clustered"]) == 0
    on_time, late = finish(state, 1), finish(state, 2)  # the step at the end; the one after it
    for after in (on_time, late):
        assert int(after["clustered"]) == 1
        labels = np.asarray(after["labels"])
        assert (labels[:, :16] >= 0).all() and (labels[:, 16:] == -100).all()
        assert int(finish(after, 2)["clustered"]) == 1
    # In the next epoch, only what it has seen: example 3.
    assert (np.asarray(finish(late, 3)["labels"]) >= 0).sum() == 3
    assert (np.asarray(finish(late, 3)["labels"])[:, 3] >= 0).all()


def test_centroids_are_no_parameters_and_the_first_epoch_rests():
    config, _ = configs.load("configs/deepcluster_v2.py:digits")
    config.model.width, config.model.blocks = 8, (1,)
    method = deepcluster_v2.make(config, Run(4000, 256, 15, 315))
    batch = {
        "image": jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.uint8),
        "index": jax.ShapeDtypeStruct((8,), jnp.int32),
    }
    ctx = context(Run(4000, 256, 15, 315), 0)
    views = jax.eval_shape(lambda x: method.views(jax.random.key(1), x, ctx), batch)
    params, state = jax.eval_shape(lambda v: method.init(jax.random.key(0), v), views)
    assert set(params) == {"encoder", "projector"}
    assert set(jax.tree.leaves(method.labels(params))) == {"default"}
    assert [x.shape for x in state["prototypes"]] == [(128, 200)] * 3
    assert [x.shape for x in state["bank"]] == [(4000, 128)] * 2
    assert state["labels"].shape == (3, 4000)
    for preset in ("imagenet", "cifar10", "digits"):
        config, _ = configs.load(f"configs/deepcluster_v2.py:{preset}")
        assert config.optimizer.freeze_epochs == 1.0 and not config.optimizer.groups


def test_what_cannot_be_is_refused(setting):
    make, _ = setting
    with pytest.raises(UserError, match="method.prototypes has 5, more than the 4 examples"):
        make(Run(examples=20, batch=4, steps_per_epoch=1, total_steps=8), local_crops=0)
    config, _ = configs.load("configs/deepcluster_v2.py:cifar10")
    config.method.local_crops = 2
    with pytest.raises(UserError, match="local_crops is 2, but there is no views.local"):
        deepcluster_v2.make(config, Run(50_000, 256, 195, 1000))
