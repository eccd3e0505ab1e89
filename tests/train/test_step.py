"""The step: the same numbers on any device count and mapping, and what it does with bad ones."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial
from kit import toy_method

from ssl_jax.checkpoints import tree
from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import layout, mapping
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step

RUN = Run(examples=64, batch=16, steps_per_epoch=4, total_steps=20)
STEPS = 5


def images(step):
    rng = np.random.default_rng(step)
    return {"image": rng.integers(0, 255, (16, 4, 4, 1), dtype=np.uint8)}


def one_more(writes):
    return writes + 1


@functools.cache
def train(mode, devices, accumulate=1, poison=-1):
    """Five steps -> (losses, final state, how often the loss was traced).

    The loss also leaves a write to the step: `writes` counts them.
    """
    method = toy_method.make(poison)
    init, loss = method.init, method.loss
    traces = []

    def counting(key, views):
        params, state = init(key, views)
        return params, {**state, "writes": jnp.zeros((), jnp.int32)}

    def counted(params, state, *arguments):
        traces.append(1)
        value, (new, metrics) = loss(params, state, *arguments)
        return value, ({**new, "writes": Partial(one_more, state["writes"])}, metrics)

    method = method._replace(init=counting, loss=counted)
    optimizer = optax.sgd(0.1, momentum=0.9)
    mesh = layout.mesh(jax.devices()[:devices])
    local = {"image": jax.ShapeDtypeStruct((16 // accumulate // devices, 4, 4, 1), jnp.uint8)}
    create = make_create(method, lambda params: optimizer, local)
    state = jax.jit(create, out_shardings=layout.replicated(mesh))(jax.random.key(0))
    step = make_step(method, optimizer, RUN, lambda updates: 0.1 * updates)
    step = mapping.compile_step(step, mesh, mode)
    losses, counts = [], []
    for i in range(STEPS):
        batch = {k: v.reshape(accumulate, -1, *v.shape[1:]) for k, v in images(i).items()}
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, layout.put_batch(batch, mesh, mode))
        losses.append(float(metrics["loss"]))
        counts.append(len(traces))
        updates = i - (0 <= poison < i)  # a skipped step is none
        np.testing.assert_allclose(metrics["learning_rate"], 0.1 * updates, rtol=1e-6)
    return losses, state, counts


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("mode", mapping.MODES)
def test_any_mapping_equals_the_single_device(mode, accumulate):
    losses, state, counts = train(mode, 4, accumulate)
    single, single_state, _ = train("jit", 1, accumulate)
    np.testing.assert_allclose(losses, single, rtol=2e-6)
    for leaf, other in zip(jax.tree.leaves(state), jax.tree.leaves(single_state), strict=True):
        if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6)
            for shard in leaf.addressable_shards:  # whole and equal on every device
                np.testing.assert_array_equal(shard.data, leaf.addressable_shards[0].data)
    assert int(state.state["writes"]) == STEPS * accumulate
    assert counts[0] == counts[-1], "the step was traced again after the first call"


def test_the_gradient_of_the_global_loss():
    """One SGD step by hand from the whole batch equals the step on four devices."""
    method = toy_method.make()
    _, state, _ = train("shard_map", 4)
    key = state.key
    ctx_key = jax.random.fold_in(jax.random.fold_in(key, 0), 0)
    zero = jnp.zeros((), jnp.int32)
    ctx = Context(zero, zero, jnp.zeros(()), ctx_key, None)
    batch = {k: jnp.asarray(v) for k, v in images(0).items()}
    init_key = jax.random.split(jax.random.key(0), 3)[0]
    views = method.views(ctx_key, batch, ctx)
    params, method_state = method.init(init_key, views)
    loss, grads = jax.value_and_grad(lambda p: method.loss(p, method_state, views, ctx)[0])(params)
    np.testing.assert_allclose(loss, train("shard_map", 4)[0][0], rtol=1e-6)
    moved = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    batch = {k: jnp.asarray(v) for k, v in images(1).items()}
    ctx = ctx._replace(step=zero + 1, key=jax.random.fold_in(jax.random.fold_in(key, 1), 0))
    second = method.loss(moved, method_state, method.views(ctx.key, batch, ctx), ctx)[0]
    np.testing.assert_allclose(second, train("shard_map", 4)[0][1], rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters():
    losses, state, _ = train("shard_map", 4, poison=STEPS - 1)
    clean_losses, _, _ = train("shard_map", 4)
    assert np.isnan(losses[-1]) and losses[:-1] == clean_losses[:-1]
    assert int(state.step) == STEPS and int(state.skipped) == 1 and int(state.streak) == 1
    assert int(state.state["after"]) == STEPS - 1 == int(state.state["writes"])
    assert np.isfinite(state.params["w"]).all() and np.isfinite(state.state["mean"]).all()
    _, later, _ = train("shard_map", 4, poison=1)
    assert int(later.skipped) == 1 and int(later.streak) == 0, "a good step ends the streak"


def test_the_same_run_has_the_same_fingerprint():
    _, state, _ = train("shard_map", 4)
    train.cache_clear()
    _, again, _ = train("shard_map", 4)
    assert tree.fingerprint(state) == tree.fingerprint(again)
    moved = again._replace(params={"w": again.params["w"].at[0, 0].add(1e-6)})
    assert tree.fingerprint(state) != tree.fingerprint(moved)
