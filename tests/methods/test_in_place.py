"""Queues, banks and targets are written where they are: the compiled step copies none of them."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.tree_util import Partial
from kit import toy_method
from kit.hlo import copies as copied

from ssl_jax.contract.method import Run
from ssl_jax.losses import instance
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step


class State(NamedTuple):
    step: jax.Array
    state: Any


def write(state, rows):
    queue = lax.dynamic_update_slice(state.state["queue"], rows, (8 * state.step, 0))
    return State(state.step + 1, {"queue": queue})


def write_if_finite(state, rows):
    new = write(state, rows)
    return lax.cond(jnp.isfinite(jnp.sum(rows)), lambda: new, lambda: state)


def write_in_branch(state, rows):
    finite = jnp.isfinite(jnp.sum(rows))
    return lax.cond(finite, lambda: write(state, rows), lambda: state)


def copies(step):
    like = jax.ShapeDtypeStruct
    state = State(like((), jnp.int32), {"queue": like((256, 64), jnp.float32)})
    lowered = jax.jit(step, donate_argnums=0).lower(state, like((8, 64), jnp.float32))
    return copied.copies(lowered.compile().as_text())


def test_copies_of_the_state_are_found():
    assert copies(write) == {"came": [], "branches": []}
    # The new queue is there before it is known whether the old one stays.
    found = copies(write_if_finite)
    assert found["came"] == [("state.state['queue']", 4 * 256 * 64)]
    assert found["branches"] in ([], [("f32[256,64]", 4 * 256 * 64)])
    assert copies(write_in_branch) == {"came": [], "branches": []}


def with_bank():
    """The toy method with a bank, which is read for a metric and written in part."""
    toy = toy_method.make()

    def init(key, views):
        params, state = toy.init(key, views)
        return params, {**state, "bank": jnp.zeros((256, 8))}

    def loss(params, state, views, ctx):
        value, (new, metrics) = toy.loss(params, state, views, ctx)
        bank, index = state["bank"], (ctx.step + jnp.arange(len(views))) % 256
        rows = (bank[index] + views[:, 0] @ params["w"]) / 2
        metrics = {**metrics, "norm": jnp.linalg.norm(bank)}
        return value, ({**new, "bank": Partial(instance.write, bank, index, rows)}, metrics)

    return toy._replace(init=init, loss=loss)


def test_a_bank_is_read_for_metrics_before_it_is_written():
    method, optimizer = with_bank(), optax.sgd(0.1)
    like = jax.ShapeDtypeStruct
    rows = {"image": like((16, 4, 4, 1), jnp.uint8)}
    create = make_create(method, lambda params: optimizer, rows)
    step = make_step(method, optimizer, Run(64, 16, 4, 20), lambda updates: 0.1)
    step = jax.jit(functools.partial(step, axis=None), donate_argnums=0)
    batch = {"image": like((1, 16, 4, 4, 1), jnp.uint8)}
    text = step.lower(jax.eval_shape(create, jax.random.key(0)), batch).compile().as_text()
    assert copied.copies(text) == {"came": [], "branches": []}
