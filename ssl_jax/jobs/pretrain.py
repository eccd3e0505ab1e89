"""Pretraining: images in, a probed checkpoint out. Read it top to bottom."""

import collections
import concurrent.futures
import contextlib
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.checkpoints import store
from ssl_jax.contract.source import Lost
from ssl_jax.data import loader, resident, stall
from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import encoder, representation
from ssl_jax.evaluate.health import collapse
from ssl_jax.evaluate.probes import knn, linear
from ssl_jax.logs import console
from ssl_jax.logs import metrics as logs
from ssl_jax.processes import host, talk
from ssl_jax.report import run as report
from ssl_jax.runs import commands, workdir
from ssl_jax.runs import config as configs
from ssl_jax.train import health, loop, stopping
from ssl_jax.train.experiment import Experiment, assemble, begin, compile_step, introduce, settle
from ssl_jax.train.state import TrainState


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Trains, evaluates, reports; continues where the workdir holds an unfinished run.

    Args:
      config: of the run, checked here.
      cluster: the processes of the run.
      name: of the config; names the workdir where none is given.

    Returns:
      exit code: 0 done; stopping.EXIT_STOPPED (143) asked to stop by SIGTERM or Ctrl-C, and saved:
      the same command continues. (A UserError is 2.)

    Raises:
      UserError: anything the user can mend.
    """
    began = time.time()
    configs.check(config)
    if config.workdir is None:
        config.workdir = str(pathlib.Path("runs") / name)
    folder = pathlib.Path(config.workdir)
    saved = workdir.read_config(folder)
    if saved is not None:
        # A field that is younger than the run: its preset's value is what the run did without it.
        later, given = commands.later(saved.config), commands.flat(config.to_dict())
        changed = [
            field
            for field in configs.differences(saved.config, config)
            if field not in later or given.get(field) != later[field]
        ]
        if changed:
            raise UserError(
                f"{folder} holds a run whose config differs in {', '.join(changed)}; "
                "choose another --workdir, or use the same values to continue"
            )
        result = workdir.read_result(folder)
        if result is not None:
            print(f"{folder} is finished. Its result:\n\n{report.text(result, folder)}")
            return 0

    experiment = assemble(config, cluster, saved)
    talk.connect(f"start/{folder}")
    experiment = settle(experiment, saved)
    leader = cluster.process == 0
    if leader:
        introduce(experiment, folder)
        devices = jax.local_device_count()
        workdir.write_config(folder, workdir.Saved(experiment.config, experiment.run, devices))
    with store.open_manager(folder / "checkpoints", config.checkpoint.keep) as manager:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            compiling = pool.submit(
                compile_step, experiment
            )  # on one core; the state takes another
            state, start = begin(experiment, manager)
            experiment = experiment._replace(step=compiling.result())
        probed = encoder.of_method(experiment.method, None)
        encode = encoder.compile_encode(probed.features, experiment.mesh)
        state, done, knn_top1 = learn(experiment, encode, state, start, manager, folder)
        store.save_last(manager, state, knn_top1)
    if done < experiment.run.total_steps:
        if leader:
            print(f"stopped and saved at step {done}; the same command continues")
        return stopping.EXIT_STOPPED
    judged = {"pixels": judge_pixels(experiment), **judge(experiment, encode, state)}
    drawn = None

    def conclude() -> dict[str, Any]:
        nonlocal drawn
        drawn = report.draw(experiment, judged, folder) if config.report else None
        seconds = time.time() - began
        return report.result(experiment, state, judged, folder, seconds, start)

    result = workdir.write_result(folder / "result.json", conclude)
    if config.report:
        report.write_page(experiment, state, judged, drawn, folder)
    if leader:
        print(f"\n{report.text(result, folder)}")
    return 0


def learn(e: Experiment, encode, state: TrainState, start: int, manager, folder: pathlib.Path):
    """The training loop with its logs, monitors and checkpoints; `encode` compiled.

    Returns:
      (state, steps done, newest kNN accuracy or None).
    """
    c, total = e.config, e.run.total_steps
    leader = e.cluster.process == 0
    newest: dict[str, Any] = {}  # of the monitors
    logged: dict[str, float] = {}  # of the step
    losses = collections.deque(maxlen=health.WINDOW)  # logged
    bad: dict[int, str] = {}  # steps skipped of late, and what was not finite
    batches, to_devices = (kept if c.data.resident else streamed)(e, start, f"begin/{folder}")
    watch = stall.Watch()
    failed: list[Exception] = []  # of the loader
    with contextlib.ExitStack() as stack:
        stack.enter_context(batches)
        stop = stack.enter_context(stopping.requested(e.cluster, str(folder), c.steps_at_once))
        if e.cluster.processes == 1:  # several cannot leave one by one
            batches.leave = lambda: stop(start)
        if leader:
            metrics_file = stack.enter_context(logs.Metrics(folder / "metrics.jsonl", start + 1))
            events = stack.enter_context(logs.Events(folder, start + 1))
            progress = stack.enter_context(console.Progress(total, start))

        def write(done, values):
            metrics_file.write(done, values)
            events.write(done, values)

        def skipped(steps):
            if leader and not bad:
                at, what = steps[0]
                progress.note(f"step {at:,} is skipped: its {what} is not finite")
            bad.update(steps)

        def log(done, metrics):
            nonlocal watch
            seconds = c.batch / metrics["images_per_second"]
            watch, slow = stall.observe(watch, done, metrics["data_wait_share"], seconds)
            jump = health.spike(losses, metrics["loss"])
            losses.append(metrics["loss"])
            spiked = logged.pop("loss_spike", None) is not None
            found = metrics if jump is None else {**metrics, "loss_spike": jump}
            logged.update(found)
            if leader:
                epoch = {"epoch": done / e.run.steps_per_epoch}
                write(done, {**epoch, **found, "data_wait_seconds": batches.waited})
                progress.update(done, {**metrics, **newest})
                if slow:
                    progress.note(slow)
                if jump is not None and not spiked:
                    progress.note(
                        f"SPIKE at step {done:,}: the loss, {metrics['loss']:.4g}, is {jump:.0f} "
                        "spreads above the median of those logged before"
                    )
            row = int(metrics["skipped_in_a_row"])
            if row >= c.max_bad_steps:
                raise UserError(too_many_bad(bad, done, row, manager))
            if row == 0:
                bad.clear()

        def monitor(now):
            newest.clear()
            newest.update(look(e, encode, now, logged))
            if leader:
                write(int(now.step), newest)
                if "alarm" in newest:
                    progress.note(f"ALARM at step {int(now.step):,}: {newest['alarm']}")

        def device_batches():
            try:
                yield from to_devices
            except Exception as error:
                if e.cluster.processes > 1:  # the others cannot save without this one, nor know
                    raise
                failed.append(error)

        state, done = loop.train(
            e.step,
            state,
            device_batches(),
            start=start,
            stop=total,
            rows=c.batch,
            every=loop.Every(c.log_every, c.monitor.every_steps, c.checkpoint.every_steps),
            hooks=loop.Hooks(
                log=log,
                bad=skipped,
                monitor=monitor,
                checkpoint=lambda now: store.save(manager, now, newest.get("knn_top1")),
                stop=stop,
            ),
            at_once=c.steps_at_once,
        )
        if failed:
            store.save_last(manager, state)
            if isinstance(failed[0], Lost):
                more = f"saved at step {done}; the same command continues"
                raise Lost(f"{failed[0]} {more}") from failed[0]
            raise failed[0]
        if done == total:
            monitor(state)
    return state, done, newest.get("knn_top1")


def streamed(
    e: Experiment, start: int, meeting: str
) -> tuple[loader.Batches, Iterator[dict[str, jax.Array]]]:
    """Images that are read batch by batch, ahead of the steps.

    Args:
      e: the run.
      start: first step.
      meeting: where the processes wait for each other before the first batch.

    Returns:
      (what is read, what a step takes: batches on the devices).
    """
    c = e.config
    batches = loader.batches(
        e.train,
        seed=c.seed,
        batch=c.batch,
        accumulate=c.accumulate,
        start=start,
        stop=e.run.total_steps,
        process=e.cluster.process,
        processes=e.cluster.processes,
        threads=c.data.threads,
        ahead=c.data.ahead,
        patience=c.data.patience,
    )

    def to_devices():
        for number, batch in enumerate(batches):
            if number == 0:  # all have compiled, opened their logs and read their rows
                talk.meet(meeting)
            split = {k: x.reshape(c.accumulate, -1, *x.shape[1:]) for k, x in batch.items()}
            yield layout.put_batch(split, e.mesh, c.parallel)

    return batches, to_devices()


def kept(
    e: Experiment, start: int, meeting: str
) -> tuple[loader.Batches, Iterator[tuple[dict[str, jax.Array], jax.Array]]]:
    """Images that are read once and stay on the devices.

    Args:
      e, start, meeting: as for `streamed`.

    Returns:
      (what is read, what a call takes: (all images, rows of its steps) on the devices).
    """
    c = e.config
    pieces = resident.pieces(
        e.train, threads=c.data.threads, ahead=c.data.ahead, patience=c.data.patience
    )

    def to_devices():
        images = resident.collect(e.train, pieces)
        if images is None:
            return
        images = layout.put_whole(images, e.mesh)
        talk.meet(meeting)
        for rows in resident.calls(
            e.train.examples,
            seed=c.seed,
            batch=c.batch,
            accumulate=c.accumulate,
            start=start,
            stop=e.run.total_steps,
            at_once=c.steps_at_once,
            process=e.cluster.process,
            processes=e.cluster.processes,
        ):
            yield images, layout.put_batch(rows, e.mesh, c.parallel)

    return pieces, to_devices()


def too_many_bad(bad: Mapping[int, str], done: int, row: int, manager) -> str:
    """The message of a run that stops: `row` steps in a row were skipped, `done` is the last.

    Args:
      bad: step -> what was not finite. The first of the row may be missing: a run before this one
        skipped it.
    """
    first, saved = done - row + 1, manager.latest_step()
    what = bad.get(first, bad[min(bad)])
    kept = "nothing is saved" if saved is None else f"checkpoint {saved} has the last good ones"
    return (
        f"the {what} is not finite since step {first:,}: {row:,} steps in a row did not change the "
        f"parameters (--config.max_bad_steps); {kept}. Begin in another --workdir with a lower "
        "--config.optimizer.learning_rate, or with --config.optimizer.clip_norm"
    )


def look(e: Experiment, encode, state: TrainState, logged: Mapping[str, float]) -> dict[str, Any]:
    """The monitors: kNN and a linear probe where labels exist, and collapse, always.

    Args:
      e: the run.
      encode: from `encoder.compile_encode`.
      state: now.
      logged: newest metrics of a step, for the spread of the embeddings.

    Returns:
      {'knn_top1'?, 'linear_top1'?, 'feature_std', 'feature_std_ratio', 'effective_rank', 'alarm'?}.
    """
    variables = encoder.of_method(e.method, None).variables(state.params, state.state)
    bank, query = representation.split(
        e.train, e.test, e.config.monitor.train_examples, e.config.monitor.test_examples
    )
    size = e.config.evaluate.batch
    features, labels = encoder.extract(encode, variables, *bank, size, e.cluster)
    found = collapse.measure(features)
    seen = {k: float(found[k]) for k in representation.MONITORS}
    alarm = collapse.alarm(seen["feature_std_ratio"], seen["effective_rank"], features.shape[1])
    if not alarm and "embedding_std" in logged:
        alarm = collapse.embedding_alarm(logged["embedding_std"], logged["embedding_rank"])
    if alarm:
        seen["alarm"] = alarm
    if query is not None and np.isfinite(features).all():
        test, test_labels = encoder.extract(encode, variables, *query, size, e.cluster)
        if not representation.labelled((features, labels), (test, test_labels)):
            return seen
        scores = knn.classify(features, labels, test, e.train.classes)
        seen["knn_top1"] = knn.accuracy(scores, test_labels)["top1"]
        if e.config.monitor.linear > 0:
            # Anew at every look, on features alone: no gradient reaches the encoder.
            fitted = linear.probe_at(
                features, labels, test, test_labels, e.train.classes, e.config.monitor.linear
            )
            seen["linear_top1"] = fitted["top1"]
    return seen


def judge_pixels(e: Experiment) -> representation.Judged:
    """The baseline of probes on raw pixels."""
    parts = evaluated(e)
    seen = [representation.pixels(part) if part else None for part in parts]
    return representation.judge(*seen, e.train.classes)


def judge(e: Experiment, encode, state: TrainState) -> dict[str, representation.Judged]:
    """The untrained encoder and the learned one, by the same probes on the same images."""
    fresh = e.create(jax.random.key(e.config.seed))
    select = encoder.of_method(e.method, None).variables
    encoders = {
        "untrained": select(fresh.params, fresh.state),
        "learned": select(state.params, state.state),
    }
    judged = {}
    for name, variables in encoders.items():
        seen = [
            encoder.extract(encode, variables, *part, e.config.evaluate.batch, e.cluster)
            if part
            else None
            for part in evaluated(e)
        ]
        judged[name] = representation.judge(*seen, e.train.classes)
    return judged


def evaluated(e: Experiment) -> tuple[representation.Part, representation.Part | None]:
    """The rows that the final probes learn from and are judged on."""
    c = e.config.evaluate
    return representation.split(e.train, e.test, c.train_examples, c.test_examples)
