"""Fine-tuning: the whole network of a checkpoint trained with labels. Read it top to bottom."""

import functools
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.augment.mixing import Mixing
from ssl_jax.checkpoints import kept, store
from ssl_jax.contract import batch
from ssl_jax.data import loader
from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder
from ssl_jax.evaluate.finetuning import check
from ssl_jax.evaluate.finetuning import plan as planning
from ssl_jax.evaluate.finetuning import start as starting
from ssl_jax.evaluate.finetuning.plan import Plan
from ssl_jax.evaluate.probes import accuracy
from ssl_jax.processes import host
from ssl_jax.runs import lock
from ssl_jax.train import feed, loop, session, stopping, supervised
from ssl_jax.train.state import TrainState

SHOWN = (("loss", "loss", "{:.3f}"), ("train_top1", "train top-1", "{:.1%}"))


def run(config: ConfigDict, cluster: host.Cluster, name: str) -> int:
    """Trains encoder and head of every checkpoint with labels; the last state is judged.

    A training lives in RUN/finetune, or RUN/finetune_scratch, RUN/finetune_0.1 (a share of the
    labels), RUN/finetune_5shot, …_draw1, …_holdout: result.json, metrics.jsonl, checkpoints/,
    job.json. Started again, it continues.

    Args:
      config: `probing.defaults('finetune')` and the fields of configs/finetune.py.
      cluster: the processes of the job.
      name: of the config; not used.

    Returns:
      exit code 0. (Asked to stop, it saves and exits with stopping.EXIT_STOPPED, 143.)

    Raises:
      UserError: a field that cannot be, another training in the folder, a loss that is not
        finite, and see `probing.each`.
    """
    check.check(config)
    config.job = job_name(config)
    block = 2 if supervised.is_mixed(Mixing(**config.mixing)) else 1
    rows = config.batch // config.accumulate
    probing.each(config, cluster, functools.partial(finetune, config), rows=rows, block=block)
    return 0


def job_name(config: ConfigDict) -> str:
    """'finetune', and what sets a training apart: _scratch, the labels, the draw of them."""
    parts = ["finetune"]
    parts += ["scratch"] if config.scratch else []
    parts += [f"{config.labels:g}"] if config.labels < 1 else []
    parts += [f"{config.shots}shot"] if config.shots is not None else []
    parts += [f"draw{config.labels_seed}"] if config.labels_seed else []
    return "_".join(parts)


def finetune(config: ConfigDict, o: probing.Opened) -> dict[str, Any]:
    """Trains, or continues, one run and judges its last state.

    Args:
      config: of the job.
      o: the run.

    Returns:
      what result.json says: 'finetune_top1', 'finetune_top5' in [0, 1] and what was done.

    Raises:
      UserError: see `run`.
    """
    if (o.folder / "config.json").exists():
        raise UserError(f"{o.folder} holds a pretraining run; choose another --workdir")
    own = starting.inherited(config, o.restored.saved)
    plan = planning.assemble(config, o)
    leader = jax.process_index() == 0
    if leader:
        start_from = "fresh parameters" if config.scratch else f"step {o.restored.step:,}"
        print(
            f"{config.job} of {o.run} from {start_from}: {plan.labelled:,} labelled images, "
            f"{plan.facts.total_steps:,} steps of {plan.facts.batch}; workdir {o.folder}"
        )
        print(*plan.lines, sep="\n")
    opened = store.open_manager(o.folder / "checkpoints", 2, kept.FINETUNED)
    with lock.hold(o.folder, o.cluster), opened as manager:
        starting.claim(own, o, plan.facts, manager)
        state, start = starting.begin(config, o, plan, manager)
        state, done = learn(config, o, plan, state, start, manager)
        store.save_last(manager, state)
    if done < plan.facts.total_steps:
        if leader:
            print(f"stopped and saved at step {done}; the same command continues")
        raise SystemExit(stopping.EXIT_STOPPED)
    scores, labels = judge(config, o, plan, state)
    return {
        "finetune_top1": accuracy.top(scores, labels, 1),
        "finetune_top5": accuracy.top5(scores, labels),
        "labels": config.labels,
        "shots": config.shots,
        "labels_seed": config.labels_seed,
        "scratch": bool(config.scratch),
        "train_examples": plan.labelled,
        "steps": plan.facts.total_steps,
        "batch": plan.facts.batch,
        "finetune_seed": config.seed,
    }


def learn(
    config: ConfigDict, o: probing.Opened, plan: Plan, state: TrainState, start: int, manager
) -> tuple[TrainState, int]:
    """The training loop with its logs and checkpoints.

    Returns:
      (state, steps done).

    Raises:
      UserError: a loss or gradient that is not finite.
    """
    if start >= plan.facts.total_steps:
        return state, start
    order = feed.Order(
        source=plan.source,
        seed=config.seed,
        batch=config.batch,
        accumulate=config.accumulate,
        start=start,
        stop=plan.facts.total_steps,
        at_once=1,
        mesh=o.mesh,
        parallel=config.parallel,
        cluster=o.cluster,
        threads=None,
        ahead=2,
        patience=loader.PATIENCE,
        meeting=f"begin/{o.folder}",
    )

    def top1(seen, logged):
        return {"finetune_top1": accuracy.top(*seen, 1)}

    training = session.Session(
        folder=o.folder,
        manager=manager,
        cluster=o.cluster,
        step=plan.step,
        feed=feed.streamed(order),
        start=start,
        total=plan.facts.total_steps,
        rows=config.batch,
        steps_per_epoch=plan.facts.steps_per_epoch,
        at_once=1,
        every=loop.Every(config.log_every, config.monitor_every, config.checkpoint_every),
        look=lambda now: judge(config, o, plan, now),
        monitors=(session.Monitor("top1", top1),) if config.monitor_every else (),
        shown=SHOWN,
        noun=batch.noun(plan.source.fields),
        max_bad_steps=1,
    )
    state, done, _ = session.train(training, state)
    return state, done


def judge(
    config: ConfigDict, o: probing.Opened, plan: Plan, state: TrainState
) -> tuple[np.ndarray, np.ndarray]:
    """Scores and labels of the rows to be judged on.

    Returns:
      float32 [m, classes] and int32 [m].
    """
    variables = plan.method.encoders["classifier"].variables(state.params, state.state)
    return encoder.extract(plan.predict, variables, *o.judge, config.batch, o.cluster)
