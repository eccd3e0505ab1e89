"""The hot loop: hooks at their steps, no hidden transfers, no second trace."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kit import toy_method

from ssl_jax.contract.method import Run
from ssl_jax.devices import layout, mapping
from ssl_jax.train import loop
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step

RUN = Run(examples=64, batch=16, steps_per_epoch=4, total_steps=10)


@pytest.fixture(scope="module")
def parts():
    method, optimizer, mesh = toy_method.make(), optax.sgd(0.1), layout.mesh()
    traces = []

    def counted(*arguments):
        traces.append(1)
        return method.loss(*arguments)

    local = {"image": jax.ShapeDtypeStruct((4, 4, 4, 1), jnp.uint8)}
    create = jax.jit(
        make_create(method, lambda _: optimizer, local), out_shardings=layout.replicated(mesh)
    )
    one = make_step(method._replace(loss=counted), optimizer, RUN, lambda step: 0.1)
    return create, mapping.compile_step(one, mesh), mesh, traces


def run(parts, start=0, stop=10, stop_after=None, every=loop.Every(3, 4, 5)):  # noqa: B008
    create, step, mesh, _ = parts
    seen = {"log": [], "bad": [], "monitor": [], "checkpoint": [], "logged at a checkpoint": []}
    asked = []
    state = create(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (stop, 1, 16, 4, 4, 1), dtype=np.uint8)

    def wants_to_stop(done):
        asked.append(done)
        return stop_after is not None and len(asked) >= stop_after

    def checkpoint(state):
        seen["checkpoint"].append(int(jax.device_get(state.step)))
        seen["logged at a checkpoint"].append([done for done, _ in seen["log"]])

    hooks = loop.Hooks(
        log=lambda done, metrics: seen["log"].append((done, metrics)),
        bad=seen["bad"].extend,
        monitor=lambda state: seen["monitor"].append(int(jax.device_get(state.step))),
        checkpoint=checkpoint,
        stop=wants_to_stop,
    )
    batches = (layout.put_batch({"image": x}, mesh) for x in images[start:])
    with jax.transfer_guard("disallow"):
        state, done = loop.train(
            step, state, batches, start=start, stop=stop, rows=16, every=every, hooks=hooks
        )
    return state, done, seen


def test_hooks_are_called_at_their_steps_and_nothing_else_leaves_the_device(parts):
    state, done, seen = run(parts)
    assert done == int(state.step) == 10
    assert [d for d, _ in seen["log"]] == [3, 6, 9, 10]
    assert seen["monitor"] == [4, 8] and seen["checkpoint"] == [5], "the end is the caller's"
    for _, metrics in seen["log"]:
        assert all(isinstance(v, float) for v in metrics.values())
        assert metrics["images_per_second"] > 0 and np.isfinite(metrics["loss"])
    assert len(parts[3]) == 1, "traced once"


def test_the_steps_that_a_checkpoint_holds_are_logged_before_it_is_made(parts):
    """Else a process killed after the save would leave a step that no run logs."""
    _, _, seen = run(parts, every=loop.Every(1, 0, 2))
    assert seen["logged at a checkpoint"] == [list(range(1, k + 1)) for k in (2, 4, 6, 8)]
    assert [d for d, _ in seen["log"]] == list(range(1, 11)), "each once"


def test_the_phases_of_an_interval_are_its_whole_time(parts, monkeypatch):
    """On a clock that only steps (1 s), monitors (20 s) and checkpoints (300 s) move."""
    create, step, mesh, _ = parts
    clock, logged = [0.0], []
    monkeypatch.setattr(loop, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))

    def takes(seconds, result=None):
        clock[0] += seconds
        return result

    hooks = loop.Hooks(
        log=lambda done, metrics: logged.append(metrics),
        bad=lambda steps: None,
        monitor=lambda state: takes(20.0),
        checkpoint=lambda state: takes(300.0),
        stop=lambda done: False,
    )
    image = np.zeros((1, 16, 4, 4, 1), np.uint8)
    batches = (layout.put_batch({"image": image}, mesh) for _ in range(9))
    loop.train(
        lambda state, batch: takes(1.0, step(state, batch)),
        create(jax.random.key(0)),
        batches,
        start=0,
        stop=9,
        rows=16,
        every=loop.Every(log=2, monitor=2, checkpoint=4),
        hooks=hooks,
    )
    # Logs at 2, 4, 6, 8 and 9; what follows a log is the next one's.
    assert [m["seconds_steps"] for m in logged] == [2, 2, 2, 2, 1]
    assert [m["seconds_monitor"] for m in logged] == [0, 20, 20, 20, 20]
    assert [m["seconds_checkpoint"] for m in logged] == [0, 0, 300, 0, 300]
    assert [m["images_per_second"] for m in logged] == [16] * 5


def test_logged_values_are_those_of_their_step(parts):
    _, _, every_step = run(parts, every=loop.Every(1, 0, 0))
    _, _, seldom = run(parts, every=loop.Every(5, 0, 0))
    at = {d: m["loss"] for d, m in every_step["log"]}
    assert {d: m["loss"] for d, m in seldom["log"]} == {5: at[5], 10: at[10]}
    assert every_step["monitor"] == every_step["checkpoint"] == []


def test_a_request_to_stop_ends_after_the_step_and_logs_what_is_pending(parts):
    state, done, seen = run(parts, stop_after=7)
    assert done == int(state.step) == 7
    assert [d for d, _ in seen["log"]] == [3, 6]


def test_skipped_steps_are_named_whether_they_are_logged_or_not(parts):
    """The step that sees a NaN keeps everything; the loop tells which it was."""
    create, step, mesh, _ = parts
    bad, logged = [], []

    def poisoned(state, batch):
        if int(jax.device_get(state.step)) in (1, 4):
            first, *rest = jax.tree.leaves(state.params)
            broken = jax.tree.unflatten(
                jax.tree.structure(state.params), [first * jnp.nan, *map(jnp.copy, rest)]
            )
            kept = jax.tree.map(jnp.copy, state.params)
            state, metrics = step(state._replace(params=broken), batch)
            return state._replace(params=kept), metrics
        return step(state, batch)

    hooks = loop.Hooks(
        log=lambda done, metrics: logged.append((done, metrics["skipped"])),
        bad=lambda steps: bad.append(([s for s, _ in steps], len(logged))),
        monitor=None,
        checkpoint=None,
        stop=lambda done: False,
    )
    images = np.random.default_rng(0).integers(0, 255, (9, 1, 16, 4, 4, 1), dtype=np.uint8)
    batches = (layout.put_batch({"image": x}, mesh) for x in images)
    loop.train(
        poisoned,
        create(jax.random.key(0)),
        batches,
        start=0,
        stop=9,
        rows=16,
        every=loop.Every(3, 0, 0),
        hooks=hooks,
    )
    assert logged == [(3, 1.0), (6, 2.0), (9, 2.0)]
    assert bad == [([2], 0), ([5], 1)], "before the log of their interval"
