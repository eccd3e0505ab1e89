"""One training step, written once, for the rows of one device."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from ssl_jax.contract.method import Context, Method, Run
from ssl_jax.devices import collectives
from ssl_jax.train.state import TrainState, written


def make_step(
    method: Method,
    optimizer: optax.GradientTransformation,
    run: Run,
    learning_rate: Callable[[jax.Array], jax.Array | float],
    pace: Callable[[jax.Array], jax.Array] | None = None,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """Returns step(state, batch, axis) for `mapping.compile_step`.

        views → loss → gradients → what loss left to be written → optimizer → after_step

    Loss, gradients and metrics are averaged over the devices and over the k micro-batches of the
    step (gradient accumulation; the method's state runs through them in order). A step whose loss
    or gradient is not finite leaves everything but `step` and the counters as it was.

    Args:
      method: the method.
      optimizer: transforms the averaged gradients.
      run: static facts of the run.
      learning_rate: number of updates -> rate, for the metrics alone; the optimizer has its own.
      pace: `Context.pace` of a step, of a run that is extended.

    Returns:
      step(state, batch, axis) -> (state, metrics): batch leaves [k, b, …]; metrics float32 [],
      with 'loss', 'gradient_norm', 'learning_rate', 'skipped' and 'skipped_in_a_row' beside the
      method's own.
    """

    def micro_step(params, state, batch, ctx):
        """Mean loss and gradient of one micro-batch over all devices. Batch leaves [b, …]."""
        # The scopes name the parts of a step in a profile and change nothing.
        with jax.named_scope("views"):
            views = method.views(ctx.key, batch, ctx)

        def mean_loss(params):
            with jax.named_scope("loss"):
                loss, (new_state, metrics) = method.loss(params, state, views, ctx)
            # The mean inside the differentiated function and again on the gradients: right under
            # shard_map and pmap, also where the loss gathers embeddings of other devices.
            return collectives.pmean(loss, ctx.axis), (new_state, metrics)

        (loss, (state, metrics)), grads = jax.value_and_grad(mean_loss, has_aux=True)(params)
        metrics = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), metrics)
        grads, metrics = collectives.pmean((grads, metrics), ctx.axis)
        return state, grads, {"loss": loss, **metrics}

    def step(state: TrainState, batch: Any, axis: str | None):
        step_key = jax.random.fold_in(state.key, state.step)
        context = Context(
            step=state.step,
            epoch=state.step // run.steps_per_epoch,
            fraction=jnp.minimum(state.step.astype(jnp.float32) / run.total_steps, 1.0),
            key=step_key,
            axis=axis,
            pace=None if pace is None else pace(state.step),
        )

        def body(carry, inputs):
            method_state, total = carry
            i, micro = inputs
            ctx = context._replace(key=jax.random.fold_in(step_key, i))
            method_state, grads, metrics = micro_step(state.params, method_state, micro, ctx)
            return (method_state, jax.tree.map(jnp.add, total, grads)), metrics

        k = jax.tree.leaves(batch)[0].shape[0]
        zeros = jax.tree.map(jnp.zeros_like, state.params)
        if k == 1:  # no loop around the step: XLA fuses more
            first = jax.tree.map(lambda x: x[0], batch)
            (method_state, grads), metrics = body((state.state, zeros), (0, first))
        else:

            def written_body(carry, inputs):  # what the next micro-batch reads
                (method_state, total), metrics = body(carry, inputs)
                return (written(method_state), total), metrics

            (method_state, grads), metrics = lax.scan(
                written_body, (state.state, zeros), (jnp.arange(k), batch)
            )
            grads, metrics = jax.tree.map(lambda g: g / k, grads), jax.tree.map(jnp.mean, metrics)

        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(norm)

        def write(metrics):
            return written(method_state), lax.optimization_barrier(metrics), True

        def leave(metrics):
            return state.state, metrics, False

        @jax.named_scope("update")
        def update(method_state):
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
            params, method_state = method.after_step(params, method_state, context)
            return params, opt_state, method_state

        def keep(method_state):
            return state.params, state.opt_state, method_state

        # Branches, not a `where`, and the writes inside: XLA copies a queue, bank or target that is
        # written before `finite` is known, and all that it cannot tell to be read before it is
        # written. So metrics go through the first branch (as they are; the barrier keeps JAX from
        # leaving them out), and the second, where parameters that a target moves by are written,
        # asks the first. `finite` is of averaged values: every device takes the same branches.
        method_state, metrics, finite = lax.cond(finite, write, leave, metrics)
        params, opt_state, method_state = lax.cond(finite, update, keep, method_state)
        bad = 1 - finite.astype(jnp.int32)
        new = TrainState(
            step=state.step + 1,
            params=params,
            opt_state=opt_state,
            state=method_state,
            key=state.key,
            skipped=state.skipped + bad,
            streak=(state.streak + 1) * bad,
        )
        extra = {
            "gradient_norm": norm,
            # The optimizer counts its updates; a skipped step is none.
            "learning_rate": learning_rate(state.step - state.skipped),
            "skipped": new.skipped,
            "skipped_in_a_row": new.streak,
        }
        extra = jax.tree.map(lambda m: jnp.asarray(m, jnp.float32), extra)
        return new, {**metrics, **extra}

    return step
