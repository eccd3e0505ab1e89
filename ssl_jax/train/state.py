"""The whole run in one pytree."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from ssl_jax.contract.method import Context, Method


class TrainState(NamedTuple):
    """All that a checkpoint holds. Data order is a function of (seed, step) and needs no place.

    Attributes:
      step: int32 [], optimizer steps done (skipped ones count: the data moves on).
      params: pytree, learned by gradient.
      opt_state: the optimizer's pytree.
      state: pytree, everything else of the method: BN statistics, EMA targets, queues, banks.
      key: typed key [], the root of all randomness of the run. It never changes; a step draws
        from fold_in(key, step).
      skipped: int32 [], steps without an update because loss or gradient were not finite.
      streak: int32 [], how many of them the last ones in a row are.
    """

    step: jax.Array
    params: Any
    opt_state: Any
    state: Any
    key: jax.Array
    skipped: jax.Array
    streak: jax.Array


def written(state: Any) -> Any:
    """The state that a loss returns with all that it has left to be written.

    Args:
      state: as `Method.loss` returns it; in it a `Partial` may stand for any part, and is called.

    Returns:
      pytree of arrays, of the structure that `Method.init` made.
    """

    def is_write(x):
        return isinstance(x, Partial)

    return jax.tree.map(lambda x: x() if is_write(x) else x, state, is_leaf=is_write)


def make_create(
    method: Method, optimizer_of: Callable[[Any], optax.GradientTransformation], batch: Any
) -> Callable[[jax.Array], TrainState]:
    """Returns create(key) -> TrainState, to be jitted with replicated output.

    Jitted, so that no two leaves share a buffer (`target = params` would, and a donated buffer
    must be donated once) and so that the forward pass which shapes the parameters costs nothing.

    Args:
      method: the method.
      optimizer_of: params -> optimizer (masks and groups are read off the parameters).
      batch: pytree of arrays or shapes [b, …], one local batch; only its shapes matter.
    """

    def create(key: jax.Array) -> TrainState:
        init_key, views_key, run_key = jax.random.split(key, 3)
        zero = jnp.zeros((), jnp.int32)
        ctx = Context(zero, zero, jnp.zeros(()), views_key, None)
        blank = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), batch)
        params, state = method.init(init_key, method.views(views_key, blank, ctx))
        opt_state = optimizer_of(params).init(params)
        return TrainState(zero, params, opt_state, state, run_key, zero, zero)

    return create
