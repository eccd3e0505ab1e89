"""One training, whoever asks for it: the loop with its logs, monitors, checkpoints and alarms."""

import collections
import contextlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ssl_jax.checkpoints import kept, store
from ssl_jax.contract.source import Lost
from ssl_jax.data import stall
from ssl_jax.errors import UserError, line
from ssl_jax.logs import console, metrics
from ssl_jax.processes import host
from ssl_jax.train import health, loop, stopping
from ssl_jax.train.feed import Feed
from ssl_jax.train.state import TrainState


class Monitor(NamedTuple):
    """Something that is measured now and then, beside training.

    Attributes:
      name: for the message where it fails.
      measure: (what `Session.look` returned, newest metrics of a step) -> {name: number or text}.
        'alarm' among them is said at once.
    """

    name: str
    measure: Callable[[Any, Mapping[str, float]], dict[str, Any]]


class Session(NamedTuple):
    """What a training needs besides its state.

    Attributes:
      folder: where metrics.jsonl and the events go.
      manager: of the checkpoints, from `store.open_manager`.
      cluster: the processes.
      step: compiled, see `loop.train`.
      feed: what it takes.
      start, total: steps done before, and of the whole run.
      rows: examples of a step.
      steps_per_epoch: for the epoch in the log.
      at_once: steps of a call.
      every: steps between logs, monitors, checkpoints.
      look: state -> what all monitors read: features, say. Computed once for all of them.
      monitors: in the order in which they are asked.
      shown: columns of the console, see `console.Progress`.
      noun: what the rows are: 'images', see `contract.batch.noun`.
      max_bad_steps: steps in a row whose loss or gradient is not finite, at which training stops.
    """

    folder: pathlib.Path
    manager: Any
    cluster: host.Cluster
    step: Callable[[Any, Any], tuple[TrainState, dict[str, Any]]]
    feed: Feed
    start: int
    total: int
    rows: int
    steps_per_epoch: int
    at_once: int
    every: loop.Every
    look: Callable[[TrainState], Any]
    monitors: Sequence[Monitor]
    shown: Sequence[tuple[str, str, str]]
    noun: str
    max_bad_steps: int


def train(s: Session, state: TrainState) -> tuple[TrainState, int, dict[str, Any]]:
    """Trains from step `start` on, to the end or until asked to stop; saves as it goes.

    A monitor that fails costs its own numbers: the failure is one line, and training goes on. (Of
    several processes it ends the run: the others would wait for this one.)

    Args:
      s: the session.
      state: the state before step `start`.

    Returns:
      (state, steps done, what the last checkpoint can be compared by).

    Raises:
      UserError: too many steps in a row were not finite.
      Lost: the data was out of reach for too long; what was done is saved.
    """
    leader = s.cluster.process == 0
    newest: dict[str, Any] = {}  # of the monitors
    measured = -1  # the step whose state they saw
    logged: dict[str, float] = {}  # of the step
    losses = collections.deque(maxlen=health.WINDOW)  # logged
    bad: dict[int, str] = {}  # steps skipped of late, and what was not finite
    watch = stall.Watch()
    failed: list[Exception] = []  # of the loader
    said: list[str] = []  # that nothing measures what the best is kept by
    with contextlib.ExitStack() as stack:
        stack.enter_context(s.feed.batches)
        asked = stopping.requested(s.cluster, str(s.folder), s.at_once)
        stop = stack.enter_context(asked)
        if s.cluster.processes == 1:  # several cannot leave one by one
            s.feed.batches.leave = lambda: stop(s.start)
        if leader:
            file = stack.enter_context(metrics.Metrics(s.folder / "metrics.jsonl", s.start + 1))
            events = stack.enter_context(metrics.Events(s.folder, s.start + 1))
            progress = stack.enter_context(console.Progress(s.total, s.start, s.shown, s.noun))

        def write(done, values):
            file.write(done, values)
            events.write(done, values)

        def skipped(steps):
            if leader and not bad:
                at, what = steps[0]
                progress.note(f"step {at:,} is skipped: its {what} is not finite")
            bad.update(steps)

        def log(done, found):
            nonlocal watch
            seconds = s.rows / found["images_per_second"]
            watch, slow = stall.observe(watch, done, found["data_wait_share"], seconds)
            jump = health.spike(losses, found["loss"])
            losses.append(found["loss"])
            spiked = logged.pop("loss_spike", None) is not None
            found = found if jump is None else {**found, "loss_spike": jump}
            logged.update(found)
            if leader:
                epoch = {"epoch": done / s.steps_per_epoch}
                write(done, {**epoch, **found, "data_wait_seconds": s.feed.batches.waited})
                progress.update(done, {**found, **newest})
                if slow:
                    progress.note(slow)
                if jump is not None and not spiked:
                    progress.note(
                        f"SPIKE at step {done:,}: the loss, {found['loss']:.4g}, is {jump:.0f} "
                        "spreads above the median of those logged before"
                    )
            row = int(found["skipped_in_a_row"])
            # Where one is too many it may lie anywhere since the log before.
            if row >= s.max_bad_steps or (s.max_bad_steps == 1 and bad):
                s.manager.wait_until_finished()  # the message names the newest checkpoint
                raise UserError(too_many_bad(bad, done, row, s.manager))
            if row == 0:
                bad.clear()

        def attempt(name, at, measure, *given):
            try:
                return measure(*given)
            except Exception as error:
                if s.cluster.processes > 1:
                    raise
                reason = line(error)
                progress.note(
                    f"monitor '{name}' failed at step {at:,} ({type(error).__name__}: {reason}); "
                    "training goes on"
                )
                return None

        def monitor(now):
            nonlocal measured
            newest.clear()
            measured = at = int(now.step)
            seen = attempt("look", at, s.look, now) if s.monitors else None
            if seen is None:
                return
            for each in s.monitors:
                newest.update(attempt(each.name, at, each.measure, seen, logged) or {})
            if leader:
                best = s.manager.best.metric
                if best not in {**logged, **newest} and not said:
                    said.append(best)
                    names = ", ".join(sorted(k for k in kept.numbers(newest)))
                    progress.note(
                        f"nothing measures '{best}', by which the best checkpoint is to be kept "
                        f"(--config.checkpoint.best): only the newest are. Measured: {names}"
                    )
                write(at, newest)
                if "alarm" in newest:
                    progress.note(f"ALARM at step {at:,}: {newest['alarm']}")

        def known(now):
            """What a checkpoint can be compared by: what monitors found of it, or its own loss.

            Not what they found of a state before: the best would be one that nobody measured.
            """
            best = s.manager.best.metric
            own = {name: value for name, value in logged.items() if name == best}
            return {**own, **newest} if measured == int(now.step) else own

        def calls():
            try:
                yield from s.feed.calls
            except Exception as error:
                if s.cluster.processes > 1:  # the others cannot save without this one, nor know
                    raise
                failed.append(error)

        state, done = loop.train(
            s.step,
            state,
            calls(),
            start=s.start,
            stop=s.total,
            rows=s.rows,
            every=s.every,
            hooks=loop.Hooks(
                log=log,
                bad=skipped,
                monitor=monitor,
                checkpoint=lambda now: store.save(s.manager, now, known(now)),
                stop=stop,
            ),
            at_once=s.at_once,
        )
        if failed:
            store.save_last(s.manager, state, known(state))
            if isinstance(failed[0], Lost):
                more = f"saved at step {done}; the same command continues"
                raise Lost(f"{failed[0]} {more}") from failed[0]
            raise failed[0]
        if done == s.total:
            monitor(state)
    return state, done, known(state)


def too_many_bad(bad: Mapping[int, str], done: int, row: int, manager) -> str:
    """The message of a training that stops: `row` steps in a row were skipped, `done` is the last.

    Args:
      bad: step -> what was not finite. The first of the row may be missing: a run before this one
        skipped it.
    """
    first = done - row + 1 if row else min(bad)
    saved = manager.latest_step()
    what = bad.get(first, bad[min(bad)])
    kept = "nothing is saved" if saved is None else f"checkpoint {saved} has the last good ones"
    if row <= 1:
        said = f"at step {first:,}, which did not change the parameters"
    else:
        said = f"since step {first:,}: {row:,} steps in a row did not change the parameters"
        said += " (--config.max_bad_steps)"
    return (
        f"the {what} is not finite {said}; {kept}. Begin in another --workdir with a lower "
        "--config.optimizer.learning_rate, or with --config.optimizer.clip_norm"
    )
