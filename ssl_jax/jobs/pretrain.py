"""Pretraining: images in, a probed checkpoint out. Read it top to bottom."""

import concurrent.futures
import os
import pathlib
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from ssl_jax.checkpoints import kept, store
from ssl_jax.contract import batch
from ssl_jax.data import sources
from ssl_jax.errors import UserError, line
from ssl_jax.evaluate import final, monitors
from ssl_jax.evaluate.features import encoder
from ssl_jax.logs import console
from ssl_jax.processes import host, talk
from ssl_jax.report import run as report
from ssl_jax.runs import check, lock, workdir
from ssl_jax.train import feed, loop, past, session, stopping
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
    config = past.complete(config)  # a file of the user's own may be older than a field
    check.pretraining(config)
    # The run can then be probed, and continued, from any folder.
    config.data.source = sources.absolute(config.data.source)
    if config.data.dir is not None:
        config.data.dir = os.path.abspath(os.path.expanduser(config.data.dir))
    if config.workdir is None:
        config.workdir = str(pathlib.Path("runs") / name)
    folder = pathlib.Path(config.workdir)
    with lock.hold(folder, cluster):
        return pretrain(config, cluster, folder, began)


def pretrain(config: ConfigDict, cluster: host.Cluster, folder: pathlib.Path, began: float) -> int:
    """`run` in its workdir, which no other process trains in; `began` in seconds of time.time()."""
    saved, gives_way = past.standing(config, folder)
    result = past.finished(config, saved, folder) if saved is not None else None
    if result is not None:
        print(f"{folder} is finished. Its result:\n\n{report.text(result, folder)}")
        return 0

    check.writable(folder)
    experiment = assemble(config, cluster, saved)
    check_view(experiment)
    talk.connect(f"start/{folder}")
    if gives_way:  # not before: all have read it, and what was refused until here cost it nothing
        if cluster.process == 0:
            workdir.clear(folder)
        talk.meet(f"cleared/{folder}")
    experiment = settle(experiment, saved)
    leader = cluster.process == 0
    if leader:
        introduce(experiment, folder)
        devices = jax.local_device_count()
        now = workdir.Saved(experiment.config, experiment.run, devices)
        workdir.write_config(folder, now._replace(identity=experiment.train.identity))
    best = kept.parse(config.checkpoint.best)
    with store.open_manager(folder / "checkpoints", config.checkpoint.keep, best) as manager:
        if leader:
            print("compiling …", flush=True)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            compiling = pool.submit(
                compile_step, experiment
            )  # on one core; the state takes another
            state, start = begin(experiment, manager)
            experiment = experiment._replace(step=compiling.result())
        probed = encoder.of_method(experiment.method, None)
        encode = encoder.compile_encode(probed.features, experiment.mesh)
        state, done, newest = learn(experiment, encode, state, start, manager, folder)
        store.save_last(manager, state, newest)
    if done < experiment.total:
        if leader:
            print(f"stopped and saved at step {done}; the same command continues")
        return stopping.EXIT_STOPPED
    judged = {"pixels": final.pixels(experiment), **final.judge(experiment, encode, state)}

    def conclude() -> dict[str, Any]:
        seconds = time.time() - began
        return report.result(experiment, state, judged, folder, seconds, start)

    result = workdir.write_result(folder / "result.json", conclude)
    if config.report:
        illustrate(experiment, state, judged, folder)
    if leader:
        print(f"\n{report.text(result, folder)}")
    return 0


def check_view(e: Experiment) -> None:
    """Traces the probed encoder on its fixed view, before the first step: no time is spent in vain.

    Raises:
      UserError: the encoder cannot read it.
    """
    probed = encoder.of_method(e.method, None)

    def look(state, rows):
        return probed.features(probed.variables(state.params, state.state), rows)

    shapes = jax.eval_shape(e.create, jax.random.key(0))
    try:
        jax.eval_shape(look, shapes, batch.specs(e.train.fields, 2))
    except UserError:
        raise
    except Exception as error:
        reason = line(error)
        raise UserError(
            f"the encoder cannot read the fixed view that --config.evaluate describes ({reason})"
        ) from error


def illustrate(e: Experiment, state: TrainState, judged, folder: pathlib.Path) -> None:
    """Writes the pictures and the page. What fails of them is said; the result is written already.

    (Of several processes it ends the job: the others would wait for this one.)
    """
    try:
        report.write(e, state, judged, folder)
    except UserError:
        raise
    except Exception as error:
        if e.cluster.processes > 1:
            raise
        reason = line(error)
        print(f"the report could not be made ({type(error).__name__}: {reason})", flush=True)


def learn(e: Experiment, encode, state: TrainState, start: int, manager, folder: pathlib.Path):
    """Trains to the end, or until asked to stop, with the monitors of this job.

    Args:
      e: the run.
      encode: from `encoder.compile_encode`.
      state: before step `start`.
      start: steps done before.
      manager: of the checkpoints.
      folder: the workdir.

    Returns:
      (state, steps done, newest values of the monitors).
    """
    c = e.config
    training = session.Session(
        folder=folder,
        manager=manager,
        cluster=e.cluster,
        step=e.step,
        feed=feed_of(e, start, f"begin/{folder}"),
        start=start,
        total=e.total,
        rows=c.batch,
        steps_per_epoch=e.run.steps_per_epoch,
        at_once=c.steps_at_once,
        every=loop.Every(c.log_every, c.monitor.every_steps, c.checkpoint.every_steps),
        look=lambda state: monitors.look(e, encode, state),
        monitors=monitors.make(e),
        shown=console.SHOWN,
        noun=batch.noun(e.train.fields),
        max_bad_steps=c.max_bad_steps,
    )
    return session.train(training, state)


def feed_of(e: Experiment, start: int, meeting: str) -> feed.Feed:
    """What the steps of a run take, from step `start` on: streamed, or kept on the devices.

    Args:
      e: the run, settled (`settle`).
      start: steps done before.
      meeting: names the place where the processes wait for each other before the first batch.
    """
    c = e.config
    order = feed.Order(
        source=e.train,
        seed=c.seed,
        batch=c.batch,
        accumulate=c.accumulate,
        start=start,
        stop=e.total,
        at_once=c.steps_at_once,
        mesh=e.mesh,
        parallel=c.parallel,
        cluster=e.cluster,
        threads=c.data.threads,
        ahead=c.data.ahead,
        patience=c.data.patience,
        meeting=meeting,
    )
    return (feed.kept if c.data.resident else feed.streamed)(order)
