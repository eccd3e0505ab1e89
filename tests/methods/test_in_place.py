from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest
import test_collectives
from jax import lax

from benchmarks import memory

# With a queue, a bank or a target; of the others' state the largest are means and variances.
REMEMBER = (
    "moco_v1",
    "moco_v2",
    "moco_v3",
    "ressl",
    "npid",
    "swav",
    "deepcluster_v2",
    "sela_v2",
    "byol",
    "dino",
)


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


@pytest.mark.parametrize("name", REMEMBER)
def test_every_state_is_updated_in_place(name):
    text, state, _ = test_collectives.compiled(name)
    held = [f"f32[{','.join(map(str, x.shape))}]" for x in jax.tree.leaves(state)]
    found = memory.copies(text)
    assert found["came"] == [] and not [copy for copy in found["branches"] if copy[0] in held]
    assert text.splitlines()[0].count("may-alias") == len(jax.tree.leaves(state))
