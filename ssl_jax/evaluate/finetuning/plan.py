"""A fine-tuning before its first step: images, network, optimizer, step."""

from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from ssl_jax.contract import batch
from ssl_jax.contract.method import Method, Run
from ssl_jax.contract.source import Source
from ssl_jax.devices import layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.evaluate import probing
from ssl_jax.evaluate.features import encoder, representation, run_features
from ssl_jax.evaluate.probes import lowshot
from ssl_jax.optim import layer_decay, optimizers, schedules
from ssl_jax.runs import recipe
from ssl_jax.train import supervised
from ssl_jax.train.state import make_create
from ssl_jax.train.step import make_step


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
    fitted, notes = recipe.fit(config, facts.total_steps / per_epoch)
    rule = fitted.optimizer.to_dict()
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
    lines += notes
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
