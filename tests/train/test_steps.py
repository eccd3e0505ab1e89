"""Several steps in one call: what single steps would have done, and hooks between the calls."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit import toy_method

from ssl_jax.contract.batch import image
from ssl_jax.contract.method import Run
from ssl_jax.devices import layout, mapping
from ssl_jax.train import loop
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step
from ssl_jax.train.steps import at_once, make_steps

N, K, STOP, POISON = 48, 4, 10, 5  # the last call has two steps; a NaN within the second
RUN = Run(examples=N, batch=16, steps_per_epoch=3, total_steps=STOP)
IMAGES = np.random.default_rng(0).integers(0, 255, (N, 4, 4, 1), dtype=np.uint8)
ROWS = np.random.default_rng(1).integers(0, N, (STOP, 16)).astype(np.int32)


def train(step, batches, k, stop_after=None):
    """(state, steps done, what the hooks saw)."""
    seen = {"log": [], "bad": [], "monitor": [], "checkpoint": [], "stop": []}

    def stop(done):
        seen["stop"].append(done)
        return done == stop_after

    hooks = loop.Hooks(
        log=lambda done, metrics: seen["log"].append((done, metrics)),
        bad=lambda steps: seen["bad"].append((steps, len(seen["log"]))),
        monitor=lambda state: seen["monitor"].append(int(jax.device_get(state.step))),
        checkpoint=lambda state: seen["checkpoint"].append(int(jax.device_get(state.step))),
        stop=stop,
    )
    method = toy_method.make(POISON)
    local = {"image": jax.ShapeDtypeStruct((4, 4, 4, 1), jnp.uint8)}
    create = make_create(method, lambda _: optax.sgd(0.1), local)
    state = jax.jit(create, out_shardings=layout.replicated(layout.mesh()))(jax.random.key(0))
    with jax.transfer_guard("disallow"):
        state, done = loop.train(
            step,
            state,
            batches,
            start=0,
            stop=STOP,
            rows=16,
            every=loop.Every(K, 2 * K, K),
            hooks=hooks,
            at_once=k,
        )
    return state, done, seen


def one():
    return make_step(toy_method.make(POISON), optax.sgd(0.1), RUN, lambda step: 0.1)


@pytest.fixture(scope="module")
def single():
    mesh = layout.mesh()
    batches = (layout.put_batch({"image": IMAGES[None, rows]}, mesh) for rows in ROWS)
    return train(mapping.compile_step(one(), mesh), batches, 1)


def in_calls(mode, stop_after=None):
    mesh = layout.mesh()
    steps = mapping.compile_steps(make_steps(one(), 1, image(4, 1)), mesh, mode)
    images = layout.put_whole({"image": IMAGES.reshape(N, -1)}, mesh)
    calls = (layout.put_batch(ROWS[i : i + K], mesh, mode) for i in range(0, STOP, K))
    return train(lambda state, rows: steps(state, images, rows), calls, K, stop_after)


@pytest.mark.parametrize("mode", mapping.MODES)
def test_calls_of_four_steps_do_what_single_steps_do(single, mode):
    state, done, seen = in_calls(mode)
    want, _, alone = single
    assert done == STOP
    for found, expected in zip(jax.tree.leaves(state), jax.tree.leaves(want), strict=True):
        if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            found, expected = jax.random.key_data(found), jax.random.key_data(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    assert [d for d, _ in seen["log"]] == [d for d, _ in alone["log"]] == [4, 8, 10]
    for (_, found), (_, expected) in zip(seen["log"], alone["log"], strict=True):
        for name in ("loss", "gradient_norm", "accuracy", "skipped", "skipped_in_a_row"):
            assert found[name] == pytest.approx(expected[name], rel=1e-5), name
    for name in ("monitor", "checkpoint"):
        assert seen[name] == alone[name]
    assert seen["stop"] == [4, 8] and alone["stop"] == list(range(1, STOP))


def test_a_step_that_is_skipped_within_a_call_has_its_own_number(single):
    want = [([(POISON + 1, "loss")], 1)]  # before the log of step 8
    assert single[2]["bad"] == want
    state, done, seen = in_calls("shard_map", stop_after=8)
    assert seen["bad"] == want and done == int(state.step) == 8
    assert int(state.skipped) == 1 and int(state.streak) == 0


def test_how_many_steps_a_call_makes_where_nobody_says():
    assert at_once((10, 1_000, 1_000)) == at_once((50, 3_000, 1_000)) == 10
    assert at_once((10, 75, 150)) == 5 and at_once((7, 0, 0)) == 7
    assert at_once((1, 1_000, 1_000)) == at_once((13, 26, 0)) == 1 and at_once((24, 12, 0)) == 6
