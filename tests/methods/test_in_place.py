from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks import memory


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
    return memory.copies(lowered.compile().as_text())


def test_copies_of_the_state_are_found():
    assert copies(write) == {"came": [], "branches": []}
    # The new queue is there before it is known whether the old one stays.
    found = copies(write_if_finite)
    assert found["came"] == [("state.state['queue']", 4 * 256 * 64)]
    assert found["branches"] in ([], [("f32[256,64]", 4 * 256 * 64)])
    assert copies(write_in_branch) == {"came": [], "branches": []}
