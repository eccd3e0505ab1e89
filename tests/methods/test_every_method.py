"""What every method of the dictionary must do: a method is under these tests by being in it.

One device, four devices by every mapping; a stop and a restart; probing.
"""

import functools

import jax
import numpy as np
import pytest
from kit import probed, tiny

from ssl_jax.checkpoints import store
from ssl_jax.contract.method import Run
from ssl_jax.devices import layout, mapping
from ssl_jax.evaluate.features import encoder
from ssl_jax.methods import METHODS
from ssl_jax.optim import optimizers, schedules
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step

BATCH, STEPS = 16, 10
# Epochs of four steps, so that what happens at the turn of an epoch happens twice.
RUN = Run(examples=64, batch=BATCH, steps_per_epoch=4, total_steps=12)
MODES = ("shard_map", "pmap", "jit")


def batches(mesh, mode):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (64, 28, 28, 1), dtype=np.uint8)
    for step in range(STEPS):
        if step % 4 == 0:
            order = rng.permutation(64).astype(np.int32)
        index = order[step % 4 * BATCH :][:BATCH]
        rows = {"image": image[index], "index": index, "label": np.full_like(index, -1)}
        yield layout.put_batch({k: v[None] for k, v in rows.items()}, mesh, mode)


@functools.cache
def compiled(name, devices, mode):
    """(mesh, step, state at the start on that mesh)."""
    config = tiny.config(name)
    method = METHODS[name](config, RUN)
    counts = {"batch": BATCH, "steps_per_epoch": 4, "total_steps": 12}

    def optimizer_of(params):
        return optimizers.make(config.optimizer, params, method.labels(params), **counts)

    mesh = layout.mesh(jax.devices()[:devices])
    local = {
        "image": jax.ShapeDtypeStruct((BATCH, 28, 28, 1), "uint8"),
        "index": jax.ShapeDtypeStruct((BATCH,), "int32"),
        "label": jax.ShapeDtypeStruct((BATCH,), "int32"),
    }
    if devices == 1:
        state = jax.jit(make_create(method, optimizer_of, local))(jax.random.key(5))
    else:
        state = compiled(name, 1, "shard_map")[2]()
    rate = schedules.make(config.optimizer, **counts)
    step = make_step(method, optimizer_of(state.params), RUN, rate)
    kept = on_host(state)

    def start():  # a copy: the step donates what it gets
        return on_devices(kept, mesh)

    return mesh, mapping.compile_step(step, mesh, mode), start


def on_host(state):
    return jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key)))


def on_devices(kept, mesh):
    state = kept._replace(key=jax.random.wrap_key_data(kept.key))
    return jax.device_put(state, layout.replicated(mesh))


@functools.cache
def trained(name, devices=1, mode="shard_map"):
    """(losses of all steps, final state)."""
    mesh, step, start = compiled(name, devices, mode)
    state, losses = start(), []
    for batch in batches(mesh, mode):
        state, metrics = step(state, batch)
        losses.append(metrics["loss"])
    return np.array(jax.device_get(losses)), state


def paths(tree):
    return [(jax.tree_util.keystr(p), x) for p, x in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize("name", METHODS)
def test_one_device_trains(name):
    losses, state = trained(name)
    assert np.isfinite(losses).all() and int(state.skipped) == 0
    first = compiled(name, 1, "shard_map")[2]()
    frozen = jax.tree.leaves(METHODS[name](tiny.config(name), RUN).labels(first.params))
    for (path, a), b, label in zip(
        paths(first.params), jax.tree.leaves(state.params), frozen, strict=True
    ):
        if label == "frozen":
            np.testing.assert_array_equal(a, b, err_msg=path)
    moved = [
        not np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (first.params, state.params)), strict=True)
    ]
    assert sum(moved) >= 0.6 * len(moved), "most parameters learn"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", METHODS)
def test_four_devices_equal_one(name, mode):
    want, reference = trained(name)
    losses, state = trained(name, 4, mode)
    np.testing.assert_allclose(losses, want, rtol=1e-4)
    start = compiled(name, 1, "shard_map")[2]()
    for (path, a), b, c in zip(
        paths(state.params), *map(jax.tree.leaves, (reference.params, start.params)), strict=True
    ):
        # What ten steps changed is the same to a thousandth of itself. (VICReg's make more of
        # rounding, 2.6e-3 of the change; the next test holds it to a thousandth in every step.)
        bound = 5e-3 if name == "vicreg" else 1e-3
        scale = float(np.abs(np.asarray(b) - c).max())
        np.testing.assert_allclose(a, b, atol=bound * scale + 1e-7, rtol=0, err_msg=path)
    for (path, a), b in zip(paths(state.state), jax.tree.leaves(reference.state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=path)
    for path, leaf in paths(state._replace(key=None)):
        shards = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(shards) == 4 and all(s.shape == leaf.shape for s in shards), path
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0], err_msg=path)


@pytest.mark.parametrize("name", METHODS)
def test_from_the_same_state_a_step_on_four_devices_changes_the_same(name):
    """99 % of the values to a thousandth of their array's change, in each of ten steps.

    The others to a hundredth: rounding at the kink of a ReLU may make that much.
    """
    (mesh, step, start), (mesh_4, step_4, _) = (compiled(name, n, "shard_map") for n in (1, 4))
    state = start()
    for batch, batch_4 in zip(*(batches(m, "shard_map") for m in (mesh, mesh_4)), strict=True):
        before = on_host(state)
        state, _ = step(state, batch)
        state_4, _ = step_4(on_devices(before, mesh_4), batch_4)
        same = []
        leaves = map(jax.tree.leaves, (state_4.params, before.params))
        for (path, a), b, c in zip(paths(state.params), *leaves, strict=True):
            scale = float(np.abs(np.asarray(a) - c).max())
            np.testing.assert_allclose(b, a, atol=1e-2 * scale + 1e-7, rtol=0, err_msg=path)
            same.append(np.isclose(b, a, atol=1e-3 * scale + 1e-7, rtol=0).ravel())
        assert np.concatenate(same).mean() >= 0.99


@pytest.mark.parametrize("name", METHODS)
def test_a_stop_and_a_restart_change_nothing(name, tmp_path):
    mesh, step, start = compiled(name, 1, "shard_map")
    state = start()
    with store.open_manager(tmp_path, 2) as manager:
        for k, batch in enumerate(batches(mesh, "shard_map")):
            state, _ = step(state, batch)
            if k == 4:  # within the second epoch
                store.save(manager, state)
                manager.wait_until_finished()
                state = store.restore(manager, 5, start())
    assert store.fingerprint(state) == store.fingerprint(trained(name)[1])


@pytest.mark.parametrize("name", METHODS)
def test_probing_reads_an_encoder_that_has_moved(name):
    config = tiny.config(name)
    method = METHODS[name](config, RUN)
    mesh, _, start = compiled(name, 1, "shard_map")
    encode = encoder.compile_encode(probed.features(method), mesh)
    rows = {
        "image": np.random.default_rng(1).integers(0, 256, (8, 28, 28, 1), dtype=np.uint8),
        "index": np.arange(8, dtype=np.int32),
        "label": np.zeros(8, np.int32),
    }
    features = [
        np.asarray(encode(probed.variables(method, s.params, s.state), rows)["features"])
        for s in (start(), trained(name)[1])
    ]
    assert np.isfinite(features).all() and np.ptp(features[1], axis=0).max() > 0
    assert np.abs(features[1] - features[0]).max() > 0
