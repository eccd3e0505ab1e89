"""From `config.optimizer` to an optax transformation: names, masks, groups, schedules."""

import re
from collections.abc import Mapping
from typing import Any

import jax
import optax
from ml_collections import ConfigDict, config_dict

from ssl_jax.contract.precision import wide_dtype
from ssl_jax.errors import UserError, near_misses
from ssl_jax.optim import rules, schedules

# Biases and the scales of normalisation layers: in these networks, the 1-D parameters.
BIAS_AND_NORM = (r"(^|/)(bias|scale)$",)

# The fields of `config.optimizer`, with their defaults.
FIELDS = {
    "name": "adamw",  # rules.NAMES, or frozen
    **schedules.FIELDS,
    "weight_decay": 0.0,
    "weight_decay_final": None,  # a number: weight decay follows a cosine to it
    "decay_exclude": BIAS_AND_NORM,  # regular expressions of paths without weight decay
    "momentum": 0.9,  # sgd, lars, lars_google, larc
    "nesterov": False,  # sgd, lars, lars_google, larc
    "betas": (0.9, 0.999),  # adamw
    "eps": 1e-8,  # adamw, and the denominator of larc
    "trust_coefficient": 1e-3,  # lars, lars_google, larc
    "trust_exclude": BIAS_AND_NORM,  # paths whose gradient keeps its length
    "clip_norm": 0.0,  # length of the whole gradient; 0: not clipped
    "clip_per_parameter": 0.0,  # length of each parameter's gradient; 0: not clipped
    "freeze_epochs": 0.0,  # epochs at the start without an update
    "groups": {},  # label of a group -> the fields in which it differs
}
NAMES = (*rules.NAMES, "frozen")
# Of the whole gradient, so not a group's to change.
WHOLE = ("groups", "clip_norm", "clip_per_parameter")


def defaults() -> ConfigDict:
    """All fields of `config.optimizer`, as a config to change (placeholders where a value is None).

    See `make` for what they mean.
    """
    return ConfigDict(
        FIELDS | {"groups": ConfigDict(), "weight_decay_final": config_dict.placeholder(float)}
    )


def make(
    config: Mapping[str, Any],
    params: Any,
    labels: Any = None,
    *,
    batch: int,
    steps_per_epoch: int,
    total_steps: int,
    extension: schedules.Extension | None = None,
) -> optax.GradientTransformation:
    """The optimizer that `config.optimizer` describes, with its schedules inside.

    `name` is a rule of `rules.descent`, which has the formulas: 'sgd' and 'adamw' (as PyTorch's),
    'lars' (FB, BYOL), 'lars_google' (SimCLR), 'larc' (SwAV), 'larc_clip' (solo-learn), or 'frozen'.

    Paths of parameters, as 'encoder/stem/bn/scale', are searched for the regular expressions:
    `decay_exclude` gets no weight decay, `trust_exclude` no trust ratio. (Google's LARS lets the
    first stand for both when the second is not given. Here each has its own default.)

    `clip_norm` and `clip_per_parameter` (DINO) bound the gradient before anything else.

    Groups: `labels` names the group of each parameter. `config.groups` maps a label to the fields
    in which that group differs: SimSiam's predictor `{'predictor': {'schedule': 'constant'}}`,
    Barlow Twins' biases `{'bias': {'learning_rate': 0.0048}}`, DINO's last layer
    `{'last_layer': {'freeze_epochs': 1.0}}`. A label without an entry takes the main rule, except
    that 'frozen' is frozen. `freeze_epochs` is a freeze as PyTorch's missing gradient is: weights,
    decay, buffers and moments rest, the schedules go on.

    The schedules count the updates of this optimizer: a step that is skipped does not count.

    Args:
      config: fields of FIELDS; missing ones take their default.
      params: pytree of float32 arrays (or tracers, or shapes); only paths and dtypes are read.
      labels: pytree of str like `params`, or None: all 'default'.
      batch: examples of one optimizer step over all devices, for the scaled learning rate.
      steps_per_epoch, total_steps: optimizer steps, for the schedules.
      extension: of the run, after total_steps.

    Returns:
      a transformation whose state is a pytree of arrays (buffers float32, counts int32).

    Raises:
      UserError: an unknown field, name or group, or a value that cannot be.
      ValueError: a parameter is not float32.
    """
    groups, labels = resolve(config, params, labels)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.dtype != wide_dtype(leaf.dtype):
            raise ValueError(
                f"parameter {rules.name_of(path)} is {leaf.dtype}; parameters are float32"
            )

    def group_rule(fields):
        if fields["name"] == "frozen":
            return optax.set_to_zero()
        rate = schedules.make(fields, batch, steps_per_epoch, total_steps)
        if extension is not None:
            rate = schedules.extended(rate, fields, batch, total_steps, extension)
        return rules.rule(
            fields,
            rate,
            weight_decay(fields, total_steps),
            round(fields["freeze_epochs"] * steps_per_epoch),
        )

    stages = []
    frozen = jax.tree.map(lambda label: groups[label]["name"] == "frozen", labels)
    if any(jax.tree.leaves(frozen)):  # what never moves does not count in the gradient's length
        stages.append(optax.masked(optax.set_to_zero(), frozen))
    if limit := groups["default"]["clip_norm"]:
        stages.append(optax.clip_by_global_norm(limit))
    if limit := groups["default"]["clip_per_parameter"]:
        stages.append(rules.clip_per_parameter(limit))
    by_label = {label: group_rule(fields) for label, fields in groups.items()}
    return optax.chain(*stages, optax.partition(by_label, labels))


def describe(
    config: Mapping[str, Any],
    params: Any,
    labels: Any = None,
    *,
    batch: int,
    steps_per_epoch: int,
    total_steps: int,
) -> list[str]:
    """What `make` makes of its arguments, in lines for the log.

    One line for the rule and learning rate of each group, with the number of its parameters, then
    one for each regular expression of its masks: how many parameters it takes, and which.

    Args: as for `make`.

    Raises:
      UserError: as `make`.
    """
    groups, labels = resolve(config, params, labels)
    named = [
        (rules.name_of(path), label) for path, label in jax.tree_util.tree_leaves_with_path(labels)
    ]
    lines = []
    for label, fields in groups.items():
        names = [name for name, own in named if own == label]
        if not names:
            continue
        head = f"optimizer[{label}] {fields['name']} on {len(names)} of {len(named)} parameters"
        if fields["name"] == "frozen":
            lines.append(f"{head}: {some(names)}")
            continue
        peak = schedules.peak_learning_rate(fields, batch)
        warm = schedules.warmup_steps(fields, steps_per_epoch, total_steps)
        lines.append(
            f"{head}: learning rate {peak:.4g} {fields['schedule']}, "
            f"warm-up {warm} of {total_steps} steps"
        )
        decays = fields["weight_decay"] or fields["weight_decay_final"]
        masks = [("weight decay", "decay_exclude")] if decays else []
        if fields["name"].startswith("lar"):
            masks.append(("trust ratio", "trust_exclude"))
        for what, mask in masks:
            for pattern in fields[mask]:
                taken = [name for name in names if re.search(pattern, name)]
                lines.append(f"  no {what} on {len(taken)} by {pattern!r}: {some(taken)}")
            left = [n for n in names if not any(re.search(p, n) for p in fields[mask])]
            amount = f" {fields['weight_decay']:g}" if what == "weight decay" else ""
            lines.append(f"  {what}{amount} on {len(left)}: {some(left)}")
    return lines


def some(names: list[str]) -> str:
    """The first three names, and how many follow."""
    rest = f" … {len(names) - 3} more" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + rest


def resolve(config: Mapping[str, Any], params: Any, labels: Any) -> tuple[dict[str, dict], Any]:
    """Checks the config and fills in its defaults.

    Returns:
      (groups, labels): label -> all FIELDS of that group, 'default' first; `labels` with 'default'
      in place of those that have no entry of their own.

    Raises:
      UserError: as `make`.
    """
    given = plain(config, "optimizer")
    main = complete(given, FIELDS, "optimizer")
    groups = {label: plain(g, f"optimizer.groups.{label}") for label, g in main["groups"].items()}
    labels = jax.tree.map(lambda _: "default", params) if labels is None else labels
    present = set(jax.tree.leaves(labels))
    for label in groups:
        if label not in present:
            hint = near_misses(label, present)
            raise UserError(f"optimizer.groups.{label}: the method has no such parameters.{hint}")
    if "frozen" in present:
        groups = {"frozen": {"name": "frozen"}, **groups}
    resolved = {"default": main}
    for label, changes in groups.items():
        where = f"optimizer.groups.{label}"
        for field in WHOLE:
            if field in changes:
                raise UserError(f"{where}.{field}: groups share it; set optimizer.{field}")
        resolved[label] = complete(changes, main, where)
    return resolved, jax.tree.map(lambda label: label if label in resolved else "default", labels)


def plain(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config as a dictionary of its first level, its fields known.

    Raises:
      UserError: an unknown field.
    """
    fields = dict(config.items())
    for field in fields:
        if field not in FIELDS:
            raise UserError(f"{where} has no field {field}.{near_misses(field, FIELDS)}")
    return fields


def complete(changes: dict[str, Any], base: dict[str, Any], where: str) -> dict[str, Any]:
    """`base` with `changes`, checked; a lone regular expression becomes a tuple of one.

    Raises:
      UserError: a value that cannot be.
    """
    fields = {**base, **changes}
    if fields["name"] not in NAMES:
        raise UserError(f"{where}.name is {fields['name']!r}.{near_misses(fields['name'], NAMES)}")
    schedules.check(fields, where)
    for field in ("weight_decay", "eps", "clip_norm", "clip_per_parameter", "freeze_epochs"):
        if not fields[field] >= 0:
            raise UserError(f"{where}.{field} is {fields[field]}; it must not be negative")
    for field, values in (("momentum", [fields["momentum"]]), ("betas", fields["betas"])):
        if not all(0 <= value < 1 for value in values):
            raise UserError(f"{where}.{field} is {fields[field]}; it must be from 0 to below 1")
    for field in ("decay_exclude", "trust_exclude"):
        patterns = fields[field]
        fields[field] = (patterns,) if isinstance(patterns, str) else tuple(patterns)
        for pattern in fields[field]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise UserError(
                    f"{where}.{field}: {pattern!r} is no regular expression: {error}"
                ) from None
    return fields


def weight_decay(fields: Mapping[str, Any], total_steps: int) -> schedules.Schedule | float:
    """Weight decay of a group: a number, or a cosine to weight_decay_final (DINO)."""
    if fields["weight_decay_final"] is None:
        return fields["weight_decay"]
    return schedules.cosine(fields["weight_decay"], fields["weight_decay_final"], total_steps)
