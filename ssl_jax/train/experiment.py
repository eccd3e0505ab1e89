"""A run before its first step: data, method, devices, optimizer, compiled functions."""

import contextlib
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.augment import policies
from ssl_jax.checkpoints import reading, verify
from ssl_jax.contract import batch
from ssl_jax.contract.method import Method, Run
from ssl_jax.data import resident, sources
from ssl_jax.devices import layout, mapping
from ssl_jax.errors import UserError, near_misses
from ssl_jax.methods import FIELDS, METHODS
from ssl_jax.optim import optimizers, schedules
from ssl_jax.processes import host, talk
from ssl_jax.runs import check, recipe, workdir
from ssl_jax.train.state import TrainState, make_create
from ssl_jax.train.step import make_step
from ssl_jax.train.steps import at_once, make_steps


class Experiment(NamedTuple):
    """Everything that a run consists of, before its first step.

    Attributes:
      config: of the run.
      cluster: its processes.
      train: images to learn from.
      test: images to evaluate on, or None: then a fifth of `train` is held out where labels exist.
      run: static facts.
      total: optimizer steps, with those after the end of the recipe (`config.extend`).
      optimizer: fields of `config.optimizer` as they fit the run, see `runs/recipe.py`.
      notes: what is to be said of that.
      method: the pure functions.
      mesh: all devices.
      create: key -> TrainState.
      step: compiled step.
      steps: compiled calls of several steps, of images that are on the devices.
    """

    config: ConfigDict
    cluster: host.Cluster
    train: sources.Source
    test: sources.Source | None
    run: Run
    total: int
    optimizer: ConfigDict
    notes: tuple[str, ...]
    method: Method
    mesh: Any
    create: Callable[[Any], TrainState]
    step: Callable[[Any, Any], tuple[TrainState, dict[str, jax.Array]]]
    steps: Callable[[Any, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


def assemble(config: ConfigDict, cluster: host.Cluster, saved: workdir.Saved | None) -> Experiment:
    """Opens the data, makes the method, the devices, the optimizer, and compiles lazily.

    Raises:
      UserError: unknown method or source, or a batch that the devices cannot share.
    """
    check_method(config)
    train = sources.open_source(config.data, "train")
    test = None
    if config.evaluate.split == "test":
        with contextlib.suppress(sources.NoSplit):
            test = sources.open_source(config.data, "test")
    if train.examples < config.batch:
        raise UserError(
            f"{train.name} has {train.examples} {batch.noun(train.fields)}, fewer than "
            f"--config.batch={config.batch}; "
            f"choose a batch of at most {train.examples}"
        )
    per_epoch = train.examples // config.batch
    counts = (train.examples, config.batch, per_epoch, recipe.total_steps(config, train.examples))
    facts = Run(*counts, dict(train.fields), dict(train.facts))
    if saved is not None:
        check_continued(config, train, saved.run, facts)
        check_moved(config, train, saved)
    counted = config
    if config.epochs_in == "examples":
        counted = recipe.warmed_up_in_examples(config, train.examples)
    for name, view in config.views.items():
        policies.check(view, f"--config.views.{name}")
    fitted, notes = recipe.fit(counted, facts.total_steps / per_epoch)
    method = METHODS[config.method.name](fitted, facts)

    micro = config.batch // config.accumulate
    if micro < method.least_rows:
        raise UserError(
            f"--config.batch={config.batch} in {config.accumulate} micro-batch(es): "
            f"{config.method.name} compares examples, and one alone has nothing to be compared "
            f"with; "
            f"at least {method.least_rows * config.accumulate}"
        )
    devices = config.cpu_devices
    if devices is None and saved is not None:  # as many as before, if they still share the batch
        fits = micro % (saved.cpu_devices * cluster.processes * method.block) == 0
        devices = saved.cpu_devices if fits else None
    host.set_cpu_devices(devices or host.cpu_devices(micro, method.block, cluster))
    host.set_compile_cache(config.compile_cache)
    if micro % (jax.device_count() * method.block):
        raise UserError(undivided(config, cluster, method, jax.device_count()))
    mesh = layout.mesh()
    blank = batch.specs(train.fields, micro // jax.device_count())
    counts = {
        "batch": facts.batch,
        "steps_per_epoch": facts.steps_per_epoch,
        "total_steps": facts.total_steps,
    }

    more = round(config.extend * per_epoch)
    extension = schedules.Extension(more, config.extend_schedule, config.extend_rate)
    extension = extension if more else None

    def optimizer_of(params):
        labels = method.labels(params)
        return optimizers.make(fitted.optimizer, params, labels, **counts, extension=extension)

    create = make_create(method, optimizer_of, blank)
    abstract = jax.eval_shape(create, jax.random.key(config.seed))
    learning_rate, pace = schedules.make(fitted.optimizer, **counts), None
    if extension is not None:
        pace = schedules.pace(extension, facts.total_steps)
        learning_rate = schedules.extended(
            learning_rate, fitted.optimizer, facts.batch, facts.total_steps, extension
        )
    step = make_step(method, optimizer_of(abstract.params), facts, learning_rate, pace)
    return Experiment(
        config=config,
        cluster=cluster,
        train=train,
        test=test,
        run=facts,
        total=facts.total_steps + more,
        optimizer=fitted.optimizer,
        notes=tuple(notes),
        method=method,
        mesh=mesh,
        create=jax.jit(create, out_shardings=layout.replicated(mesh)),
        step=mapping.compile_step(step, mesh, config.parallel),
        steps=mapping.compile_steps(
            make_steps(step, config.accumulate, train.fields), mesh, config.parallel
        ),
    )


def check_method(config: ConfigDict) -> None:
    """Checks that `config.method` has the fields of the method that it names.

    Raises:
      UserError: an unknown method, or the fields of another one.
    """
    name = config.method.name
    if name not in METHODS:
        raise UserError(f"config.method.name is {name!r}.{near_misses(name, METHODS)}")
    own = {field.name for field in FIELDS.get(name, ())}
    given = set(config.method) - {"name"}
    if own and own != given:
        lacks = f"lacks {', '.join(sorted(own - given))}" if own - given else ""
        others = f"has {', '.join(sorted(given - own))}" if given - own else ""
        raise UserError(
            f"--config.method.name is {name!r}, but config.method is not {name}'s: it "
            f"{' and '.join(filter(None, (lacks, others)))}; start from --config {name}"
        )


def check_continued(config: ConfigDict, train: sources.Source, before: Run, now: Run) -> None:
    """Checks that a run continues on the data that it began with.

    Raises:
      UserError: other counts, other fields of an example, or other facts of the source.
    """
    there = f"the run in {config.workdir} began with"
    mend = "choose another --workdir, or bring the data back"
    if before[:4] != now[:4]:
        raise UserError(
            f"{train.name} has {now.examples:,} {batch.noun(train.fields)}, but {there} "
            f"{before.examples:,}; {mend}"
        )
    shapes = [batch.described(run.fields) for run in (before, now)]
    if shapes[0] != shapes[1]:
        raise UserError(
            f"{train.name} has examples of {shapes[1]}, but {there} {shapes[0]}; {mend}"
        )
    other = [name for name in {*before.facts, *now.facts} if not same(name, before, now)]
    if other:
        what = ", ".join(sorted(other))
        raise UserError(f"{train.name} has another {what} than {there}; {mend}")


def check_moved(config: ConfigDict, train: sources.Source, saved: workdir.Saved) -> None:
    """Checks that data at another place are those that a run began with.

    Raises:
      UserError: other data, or data of which that cannot be said.
    """
    then, now = (sources.absolute(c.data.source) for c in (saved.config, config))
    splits = [c.data.get("train_split") for c in (saved.config, config)]
    if (then == now and splits[0] == splits[1]) or (
        saved.identity and saved.identity == train.identity
    ):
        return
    raise UserError(
        f"the run in {config.workdir} learned from {then}, and {train.name} holds other files "
        "(their names or sizes differ); choose another --workdir, or give it the same files"
    )


def same(name: str, before: Run, now: Run) -> bool:
    """Whether a fact of the source is what it was."""
    if name not in before.facts or name not in now.facts:
        return False
    a, b = (np.asarray(run.facts[name]) for run in (before, now))
    return a.dtype.kind == b.dtype.kind and np.array_equal(a, b)


def undivided(config: ConfigDict, cluster: host.Cluster, method: Method, devices: int) -> str:
    """The message for a batch that the devices cannot share: what would fit."""
    micro, processes, block = config.batch // config.accumulate, cluster.processes, method.block
    named = f" ({method.block_is})" if method.block_is else ""
    blocks = f" in blocks of {block}{named}" if block > 1 else ""
    fits = [n for n in range(1, 65) if micro % (n * processes * block) == 0]
    whose = "devices" if processes == 1 else f"devices of each of the {processes} processes"
    would = (
        f"{', '.join(map(str, fits))} {whose} would share it"
        if fits
        else (f"no number of devices of {processes} processes would")
    )
    return (
        f"--config.batch={config.batch} in {config.accumulate} micro-batch(es) does not divide "
        f"over {devices} devices{blocks}: {would} (--config.cpu_devices on CPU); a new run may "
        f"also take a batch that is a multiple of {devices * block * config.accumulate}"
    )


def settle(e: Experiment, saved: workdir.Saved | None) -> Experiment:
    """Decides what `data.resident` and `steps_at_once` leave open; all processes call it.

    A run that continues does as it did: the same program, so the same bits. One from before there
    were these fields read its images batch by batch.

    Args:
      e: of the config as it was given.
      saved: of the run that is continued.

    Returns:
      the experiment with both in its config, which is what config.json is to hold.

    Raises:
      UserError: a call of that many steps cannot be.
    """
    c = e.config.copy_and_resolve_references()
    before = None if saved is None else saved.config.data.get("resident") is True
    if c.data.resident is None and before is not None:
        c.data.resident = before
    elif c.data.resident is None:
        fits = resident.fits(e.train, layout.device_memory(), c.data.cache_bytes)
        c.data.resident = not talk.any_process(not fits)
    if c.steps_at_once is None and c.data.resident == before:
        k = saved.config.get("steps_at_once")
        c.steps_at_once = k if type(k) is int and k > 0 else 1  # whatever the file holds
    elif c.steps_at_once is None:
        every = (c.log_every, c.monitor.every_steps, c.checkpoint.every_steps)
        c.steps_at_once = at_once(every) if c.data.resident else 1
    check.steps_at_once(c)
    return e._replace(config=c)


def introduce(e: Experiment, folder: pathlib.Path) -> None:
    """Says in a few lines what is about to happen."""
    params = jax.eval_shape(e.create, jax.random.key(0)).params
    count = sum(int(np.prod(p.shape)) for p in jax.tree.leaves(params))
    devices = jax.devices()
    where = f"{len(devices)} {devices[0].platform} device{'s' if len(devices) > 1 else ''}"
    if e.cluster.processes > 1:
        where += f" of {e.cluster.processes} processes"
    if devices[0].platform == "cpu":
        where += " (one a core where the batch allows)"
    noun = batch.noun(e.train.fields)
    sets = f"{e.train.examples:,} training" + (f" and {e.test.examples:,} test" if e.test else "")
    shape = batch.described(e.train.fields)
    print(f"{e.config.method.name} on {e.train.name}: {sets} {noun}, {shape}")
    if e.test is None and e.train.classes and e.config.evaluate.split == "test":
        print(
            "no test split: kNN and the linear probe are judged on a fifth of the training "
            f"{noun}, which the encoder sees as well, without their labels "
            "(--config.data.test_split names one)"
        )
    print(
        f"{e.config.model.name}, {count:,} parameters; {e.total:,} steps of "
        f"{e.config.batch} {noun}; workdir {folder}"
    )
    print(f"on {where}")
    if e.config.data.resident:
        print(
            f"{noun} in device memory, {resident.size(e.train) / 1e6:,.1f} MB on every device; "
            f"calls of {e.config.steps_at_once} steps"
        )
    lines = optimizers.describe(
        e.optimizer,
        params,
        e.method.labels(params),
        batch=e.run.batch,
        steps_per_epoch=e.run.steps_per_epoch,
        total_steps=e.run.total_steps,
    )
    if e.method.uses_labels:
        print(f"{e.config.method.name} learns from the labels as well")
    print(*lines, *e.notes, *check.remarks(e.config), sep="\n")


def compile_step(e: Experiment) -> Callable[[Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles the step before there is a state or a batch.

    Returns:
      what `e.step` is, without the wait at its first call; for images that are on the devices what
      `compile_steps` returns.
    """
    if e.config.data.resident:
        return compile_steps(e)
    k, rows = e.config.accumulate, e.config.batch // e.config.accumulate
    blank = layout.like_batch(batch.specs(e.train.fields, k, rows), e.mesh, e.config.parallel)
    return e.step.lower(like(e), blank).compile()


def compile_steps(e: Experiment) -> Callable[[Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Compiles the calls of `steps_at_once` steps, and the last, shorter one where there is one.

    Returns:
      f(state, (examples, rows)) -> (state, metrics), see `make_steps`.
    """
    n, whole = e.train.examples, layout.replicated(e.mesh)
    k, rows = e.config.accumulate, e.config.batch // e.config.accumulate
    examples = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
        batch.flat_specs(e.train.fields, n),
    )
    calls, left = divmod(e.total, e.config.steps_at_once)
    programs = {}
    for steps in (*[e.config.steps_at_once] * (calls > 0), *[left] * (left > 0)):
        taken = jax.ShapeDtypeStruct((steps * k, rows), jnp.int32)
        taken = layout.like_batch(taken, e.mesh, e.config.parallel)
        programs[taken.shape] = e.steps.lower(like(e), examples, taken).compile()

    def step(state, given):
        examples, taken = given
        return programs[taken.shape](state, examples, taken)

    return step


def like(e: Experiment) -> TrainState:
    """Shapes, dtypes and places of the run's state."""
    shapes = jax.eval_shape(e.create, jax.random.key(e.config.seed))
    whole = layout.replicated(e.mesh)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), shapes)


def begin(e: Experiment, manager) -> tuple[TrainState, int]:
    """A fresh state, or that of the newest checkpoint that is whole.

    Returns:
      (state on all devices, steps done).

    Raises:
      UserError: every checkpoint is damaged, or they are of another model; or the newest lies
        within a call of several steps, or beyond the end.
    """
    latest = verify.newest(manager)
    if latest is None:
        return e.create(jax.random.key(e.config.seed)), 0
    if latest > e.total:
        raise UserError(
            f"the run in {e.config.workdir} stands at step {latest:,}, beyond its end, "
            f"{e.total:,}; give it the --config.extend that it had"
        )
    k = e.config.steps_at_once or 1
    if latest % k and latest < e.total:
        raise UserError(
            f"the run in {e.config.workdir} stands at step {latest:,}, where no call of {k} steps "
            "begins; --config.steps_at_once=1 continues it"
        )
    state = reading.restore(manager, latest, like(e))
    if e.cluster.process == 0:
        print(f"continuing at step {latest:,}")
    return state, latest
