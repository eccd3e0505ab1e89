"""Fine-tuning: the whole network of a checkpoint trained with labels. Read it top to bottom."""

import functools
import json
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax.augment.mixing import MODES, Mixing
from ssl_jax.checkpoints import reading, store, verify
from ssl_jax.contract import batch
from ssl_jax.contract.method import Method, Run
from ssl_jax.contract.source import Source
from ssl_jax.data import loader
from ssl_jax.devices import layout, mapping
from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder, representation, run_features
from ssl_jax.evaluate.probes import accuracy, lowshot
from ssl_jax.models import positions
from ssl_jax.optim import layer_decay, optimizers, rules, schedules
from ssl_jax.processes import host
from ssl_jax.runs import config as configs
from ssl_jax.runs import lock, workdir
from ssl_jax.train import feed, loop, session, stopping, supervised
from ssl_jax.train.state import TrainState, make_create
from ssl_jax.train.step import make_step

# Besides those of pretraining (runs/config.py): fields that may differ when it is continued.
FREE_ON_RESUME = ("monitor_every", "checkpoint_every")
SHOWN = (("loss", "loss", "{:.3f}"), ("train_top1", "train top-1", "{:.1%}"))


class Plan(NamedTuple):
    """A fine-tuning before its first step.

    Attributes:
      source: the labelled images, as often as it takes to fill a batch.
      labelled: how many different ones.
      facts: static facts of the training.
      method: the pure functions.
      create: key -> TrainState with fresh parameters.
      step: compiled step.
      predict: compiled network in evaluation mode.
      lines: what the optimizer does, for the log.
    """

    source: Source
    labelled: int
    facts: Run
    method: Method
    create: Any
    step: Any
    predict: Any
    lines: list[str]


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
    check(config)
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


def check(config: ConfigDict) -> None:
    """Checks the fields of this job.

    Raises:
      UserError: the first field that cannot be right.
    """
    if config.steps is None and config.epochs is None:
        raise UserError("neither --config.steps nor --config.epochs is set; set one of them")
    if (config.steps if config.steps is not None else config.epochs) <= 0:
        raise UserError("--config.steps or --config.epochs must be above 0")
    for field in ("batch", "accumulate", "log_every"):
        if config[field] < 1:
            raise UserError(f"--config.{field} is {config[field]}; it must be at least 1")
    if config.batch % config.accumulate:
        raise UserError(
            f"--config.batch={config.batch} is not a multiple of "
            f"--config.accumulate={config.accumulate}"
        )
    for field in ("labels", "layer_decay"):
        if not 0 < config[field] <= 1:
            raise UserError(f"--config.{field} is {config[field]}; it must be above 0, at most 1")
    if config.shots is not None and (config.shots < 1 or config.labels < 1):
        raise UserError(
            f"--config.shots={config.shots} must be at least 1, and --config.labels is then 1"
        )
    for field in ("erasing.probability", "mixing.probability", "mixing.switch"):
        group, leaf = field.split(".")
        if not 0 <= config[group][leaf] <= 1:
            raise UserError(f"--config.{field} is {config[group][leaf]}; it must be from 0 to 1")
    if not 0 <= config.label_smoothing < 1:
        raise UserError(
            f"--config.label_smoothing is {config.label_smoothing}; it must be from 0 to below 1"
        )
    for field in ("mixup", "cutmix"):
        if config.mixing[field] < 0:
            raise UserError(
                f"--config.mixing.{field} is {config.mixing[field]}; it must not be negative"
            )
    if config.mixing.group < 0 or config.mixing.group % 2:
        raise UserError(f"--config.mixing.group is {config.mixing.group}; it must be even, or 0")
    for field, value, known in (
        ("parallel", config.parallel, mapping.MODES),
        ("mixing.mode", config.mixing.mode, MODES),
        ("head", config.head, supervised.HEADS),
        ("interpolation", config.interpolation, ("bilinear", "bicubic")),
    ):
        if value not in known:
            raise UserError(f"--config.{field} is {value!r}.{near_misses(value, known)}")
    for pattern in config.fresh:
        try:
            re.compile(pattern)
        except re.error as error:
            raise UserError(
                f"--config.fresh: {pattern!r} is no regular expression: {error}"
            ) from None


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
    plan = assemble(config, o)
    leader = jax.process_index() == 0
    if leader:
        start_from = "fresh parameters" if config.scratch else f"step {o.restored.step:,}"
        print(
            f"{config.job} of {o.run} from {start_from}: {plan.labelled:,} labelled images, "
            f"{plan.facts.total_steps:,} steps of {plan.facts.batch}; workdir {o.folder}"
        )
        print(*plan.lines, sep="\n")
    with lock.hold(o.folder, o.cluster), store.open_manager(o.folder / "checkpoints", 2) as manager:
        claim(config, o, plan.facts, manager)
        state, start = begin(config, o, plan, manager)
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


def assemble(config: ConfigDict, o: probing.Opened) -> Plan:
    """Picks the labelled images, makes network, optimizer and step; compiles lazily.

    Raises:
      UserError: a field of model, view or optimizer that cannot be, or a batch that the devices
        cannot share.
    """
    method = supervised.of_config(config, o.restored.encoder, o.classes)

    micro, whole = config.batch // config.accumulate, jax.device_count() * method.block
    if micro % whole:
        raise UserError(
            f"--config.batch={config.batch} in {config.accumulate} micro-batch(es) does not divide "
            f"over {jax.device_count()} devices{' in pairs' if method.block == 2 else ''}; choose "
            f"a multiple of {whole * config.accumulate}"
        )
    rows = labelled_rows(o.learn, config.labels, config.shots, config.labels_seed)
    labelled = len(rows)
    if labelled < config.batch:  # repeated until they fill a batch; every copy has its own noise
        rows = np.tile(rows, -(-config.batch // labelled))
    read = o.learn.source.read
    source = o.learn.source._replace(examples=len(rows), read=lambda i: read(rows[i]))
    per_epoch = len(rows) // config.batch
    total = config.steps if config.steps is not None else round(config.epochs * per_epoch)
    facts = Run(len(rows), config.batch, per_epoch, max(total, 1))

    blank = batch.specs(source.fields, micro // jax.device_count())
    rule = config.optimizer.to_dict()
    if config.head_learning_rate is not None:
        rule["groups"] = {**rule["groups"], "head": {"learning_rate": config.head_learning_rate}}
    counts = {
        "batch": facts.batch,
        "steps_per_epoch": facts.steps_per_epoch,
        "total_steps": facts.total_steps,
    }
    # Fresh layers near the image must learn as fast as the others.
    decay = 1.0 if config.scratch else config.layer_decay

    def optimizer_of(params):
        made = optimizers.make(rule, params, method.labels(params), **counts)
        return optax.chain(made, layer_decay.scale_by_layer(layer_decay.scales(params, decay)))

    create = make_create(method, optimizer_of, blank)
    params = jax.eval_shape(create, jax.random.key(config.seed)).params
    lines = optimizers.describe(rule, params, method.labels(params), **counts)
    factors = jax.tree.leaves(layer_decay.scales(params, decay))
    lines.append(f"layer decay {decay:g}: updates × {min(factors):.3g} (stem) … {max(factors):g}")
    step = make_step(method, optimizer_of(params), facts, schedules.make(rule, **counts))

    return Plan(
        source=source,
        labelled=labelled,
        facts=facts,
        create=jax.jit(create, out_shardings=layout.replicated(o.mesh)),
        step=mapping.compile_step(step, o.mesh, config.parallel),
        method=method,
        predict=encoder.compile_encode(method.encoders["classifier"].features, o.mesh),
        lines=lines,
    )


def with_positions(config: ConfigDict, o: probing.Opened) -> Any:
    """Parameters of the run's encoder; fixed positions among them where they are to be learned."""
    params, net = o.restored.variables["params"], o.restored.encoder.network
    if config.model.positions != "learned" or "positions" in params:
        return params
    table = positions.sincos(net.width, net.size // net.patch, net.positions)
    whole = jnp.pad(jnp.asarray(table), ((int(net.token), 0), (0, 0)))  # the class token has none
    return {**params, "positions": jax.device_put(whole, layout.replicated(o.mesh))}


def labelled_rows(
    part: representation.Part, share: float, shots: int | None, seed: int
) -> np.ndarray:
    """The rows to learn from: all, or a fixed list of `share` or `shots` labels of every class.

    A list needs all labels, so all images of the part are read once for it; they also are where
    some of a sample have no label, which are then left out.

    Returns:
      int64 [n], ascending.

    Raises:
      UserError: see `lowshot.fraction` and `lowshot.shots`.
    """
    if shots is not None:
        return part.rows[lowshot.shots(run_features.labels_of(part), shots, seed)]
    if share == 1:
        sample = part._replace(rows=part.rows[encoder.subset(len(part.rows), 1_000)])
        if (run_features.labels_of(sample) >= 0).all():
            return part.rows
    return part.rows[lowshot.fraction(run_features.labels_of(part), share, seed)]


def claim(config: ConfigDict, o: probing.Opened, facts: Run, manager) -> None:
    """Writes job.json, or finds the one of the same training.

    A training that has not saved anything yet gives way to another.

    Raises:
      UserError: the folder holds a checkpoint of another fine-tuning.
    """
    file = o.folder / "job.json"
    own = {
        "config": json.loads(configs.to_json(config)),
        "run": str(o.run.resolve()),
        "step": o.restored.step,
        "data": o.learn.source.name,
        "identity": o.learn.source.identity,
        "images": facts.examples,
    }
    if manager.latest_step() is not None:
        try:
            there = json.loads(file.read_text())
            before = completed(there["config"], o.restored.trained_in)
            changed = configs.differences(ConfigDict(before), ConfigDict(own["config"]))
            names = [name for name in own if name not in ("config", "identity")]
            changed += [name for name in names if there[name] != own[name]]
            # The same pictures at another place.
            if own["identity"] and there.get("identity") == own["identity"]:
                changed = [name for name in changed if name not in ("data", *configs.MOVED)]
        except (
            *(OSError, ValueError, KeyError),
            *(TypeError, AttributeError, RecursionError),  # JSON, but not what `own` is
        ) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{file} is damaged ({type(error).__name__}: {reason}); choose another --workdir"
            ) from None
        changed = [name for name in changed if name not in FREE_ON_RESUME]
        if changed:
            raise UserError(
                f"{o.folder} holds a fine-tuning that differs in {', '.join(changed)}; choose "
                "another --workdir, or the same values to continue it"
            )
    elif jax.process_index() == 0:
        # What its checkpoints are read with, wherever the pretraining run may be by then.
        pretrained = workdir.described(o.restored.saved)
        workdir.write_json(file, {**own, "classes": o.classes, "pretrained": pretrained})


def completed(before: dict[str, Any], dtype: str) -> dict[str, Any]:
    """The config of a fine-tuning, with the fields that are younger than it as they were meant.

    Args:
      before: of job.json.
      dtype: that the run was trained in, as its fine-tuning then was.
    """
    young = {"step": "last", "encoder": None, "dtype": dtype}
    group = 0 if supervised.is_mixed(Mixing(**before["mixing"])) else Mixing().group
    data, mixing = {"range": None, **before["data"]}, {"group": group, **before["mixing"]}
    return {**young, **before, "data": data, "mixing": mixing}


def begin(config: ConfigDict, o: probing.Opened, plan: Plan, manager) -> tuple[TrainState, int]:
    """The newest checkpoint of this training, or the encoder of the run and a fresh head.

    Returns:
      (state on all devices, steps done).

    Raises:
      UserError: `fresh` names no parameter.
    """
    whole = layout.replicated(o.mesh)
    latest = verify.newest(manager)
    if latest is not None:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            jax.eval_shape(plan.create, jax.random.key(config.seed)),
        )
        return reading.restore(manager, latest, like), latest
    state = plan.create(jax.random.key(config.seed))
    if config.scratch:
        return state, 0
    learned = {**o.restored.variables, "params": with_positions(config, o)}
    names = [rules.name_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(learned["params"])]
    for pattern in config.fresh:
        if not any(re.search(pattern, name) for name in names):
            raise UserError(f"--config.fresh: the encoder has no parameter that fits {pattern!r}")
    keep = rules.outside(tuple(config.fresh), learned["params"])

    def adopt(state, learned):  # copies: the first step donates the state
        params = jax.tree.map(
            lambda kept, old, new: jnp.copy(old if kept else new).astype(new.dtype),
            keep,
            learned["params"],
            state.params["encoder"],
        )
        stats = jax.tree.map(
            lambda old, new: jnp.copy(old).astype(new.dtype),
            learned["batch_stats"],
            state.state["batch_stats"],
        )
        return state._replace(
            params={**state.params, "encoder": params}, state={"batch_stats": stats}
        )

    return jax.jit(adopt, out_shardings=whole)(state, learned), 0


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
