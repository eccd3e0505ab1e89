"""Schedules: pure functions of the step, int [] (or a Python int) -> float32 []."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError, near_misses

Schedule = Callable[[Any], jax.Array]

# The fields of `config.optimizer` that `make` reads, with their defaults.
FIELDS = {
    "learning_rate": 1e-3,  # at the peak, before scaling
    "scaling": "none",  # none | linear: · batch / 256 | sqrt: · √batch
    "schedule": "cosine",  # SCHEDULES
    "warmup_epochs": 0.0,  # either of the two; 0: none
    "warmup_fraction": 0.0,  # of the whole run
    "warmup_start": 0.0,  # first learning rate, as a share of the peak
    "delay_epochs": 0.0,  # epochs at the first learning rate, before the schedule begins
    "final": 0.0,  # where a cosine ends, as a share of the peak
    "milestones": (),  # step: epochs after which the learning rate is multiplied by factor
    "factor": 0.1,
}
SCHEDULES = ("cosine", "cosine_peak_twice", "cosine_per_epoch", "step", "constant")
SCALINGS = ("none", "linear", "sqrt")
EXTENSIONS = ("constant", "cosine")


def constant(value: float) -> Schedule:
    """The same value at every step."""
    return lambda step: jnp.full(jnp.shape(step), value, jnp.float32)


def cosine(start: float, end: float, total_steps: int) -> Schedule:
    """Half a cosine: end + (start − end) · (1 + cos(π · step / total_steps)) / 2, then `end`.

    The last step of a run, total_steps − 1, is just short of `end`.

    EMA momentum of BYOL (utils/schedules.py, target_ema: 1 − (1 − base)(cos + 1)/2), MoCo v3
    (main_moco.py, adjust_moco_momentum, by fractional epoch) and DINO (utils.py, cosine_scheduler)
    is this with end 1 (see methods/parts/ema.py); DINO's weight decay is this from 0.04 to 0.4.
    """

    def value(step):
        done = jnp.clip(jnp.asarray(step, jnp.float32) / max(total_steps, 1), 0.0, 1.0)
        return end + (start - end) * 0.5 * (1.0 + jnp.cos(jnp.pi * done))

    return value


def step_decay(peak: float, milestones: tuple[int, ...], factor: float) -> Schedule:
    """peak · factor^(number of milestones, in steps, that are reached).

    MoCo: main_moco.py, adjust_learning_rate (factor 0.1 from epochs 120 and 160 on).
    """

    def value(step):
        step = jnp.asarray(step)
        reached = sum((step >= m).astype(jnp.float32) for m in milestones)
        return jnp.asarray(peak * jnp.float32(factor) ** reached, jnp.float32)

    return value if milestones else constant(peak)


def warmup(after: Schedule, peak: float, steps: int, start: float = 0.0) -> Schedule:
    """start + (peak − start) · step / steps for the first `steps` steps, then `after(step)`.

    The peak is first reached by `after`, at step `steps`. SimCLR, BYOL, Barlow Twins, VICReg,
    MoCo v3 and MAE warm up so, from 0: their very first step learns nothing.
    """
    return _ramp(after, peak, steps, start, steps)


def warmup_linspace(after: Schedule, peak: float, steps: int, start: float = 0.0) -> Schedule:
    """np.linspace(start, peak, steps) for the first `steps` steps, then `after(step)`.

    The linspace includes the peak, where `after` begins again: the peak occurs twice. SwAV
    (main_swav.py) and DINO (utils.py, cosine_scheduler).
    """
    return _ramp(after, peak, steps, start, steps - 1)


def _ramp(after, peak, steps, start, span):
    def value(step):
        ramp = start + (peak - start) * jnp.asarray(step, jnp.float32) / max(span, 1)
        return jnp.where(jnp.asarray(step) < steps, ramp, after(step))

    return value if steps > 0 else after


def delayed(schedule: Schedule, steps: int) -> Schedule:
    """`schedule` with step 0 moved to `steps`."""
    return lambda step: schedule(jnp.asarray(step) - steps)


def per_epoch(schedule: Schedule, steps_per_epoch: int) -> Schedule:
    """`schedule` as it is at the first step of each epoch, held until the next.

    SimSiam (main_simsiam.py) and MoCo v2 (main_moco.py, --cos): 0.5 (1 + cos(π epoch / epochs)).
    """
    return lambda step: schedule(jnp.asarray(step) // steps_per_epoch * steps_per_epoch)


def make(config: Mapping[str, Any], batch: int, steps_per_epoch: int, total_steps: int) -> Schedule:
    """The learning rate that `config.optimizer` describes.

    The peak is learning_rate, scaled: 'none'; 'linear': · batch / 256 (Goyal et al. 2017);
    'sqrt': · √batch (SimCLR, appendix B.1). A warm-up of W = warmup_epochs · steps_per_epoch or
    warmup_fraction · total_steps steps, rounded, leads from warmup_start · peak to it. Then

      'cosine': half a cosine from the peak at step W to final · peak at total_steps (SimCLR, BYOL,
        MoCo v3, MAE; Barlow Twins and VICReg with final 0.001);
      'cosine_peak_twice': the same after a warm-up that includes the peak (SwAV, DINO);
      'cosine_per_epoch': 'cosine' held within each epoch (SimSiam, MoCo v2);
      'step': multiplied by `factor` from each epoch in `milestones` on (MoCo v1);
      'constant': the peak.

    With delay_epochs the first rate is held so long, and all of this happens in the steps that are
    left (epochs and milestones count from there): what DeepCluster-v2 does before it first learns
    is outside of its official schedule.

    Args:
      config: fields of FIELDS, missing ones take the default; others are not looked at
        (`optimizers.make` checks them).
      batch: examples of one optimizer step, over all devices.
      steps_per_epoch, total_steps: optimizer steps.

    Returns:
      step -> learning rate float32 [].

    Raises:
      UserError: an unknown schedule or scaling, or a value that cannot be.
    """
    c = {name: config[name] if name in config else default for name, default in FIELDS.items()}
    check(c)
    wait = round(c["delay_epochs"] * steps_per_epoch)
    if wait:
        rest = make(c | {"delay_epochs": 0.0}, batch, steps_per_epoch, total_steps - wait)
        return lambda step: rest(jnp.maximum(jnp.asarray(step) - wait, 0))
    peak = peak_learning_rate(c, batch)
    steps = warmup_steps(c, steps_per_epoch, total_steps)
    start, final = peak * c["warmup_start"], peak * c["final"]
    after = delayed(cosine(peak, final, total_steps - steps), steps)
    match c["schedule"]:
        case "cosine":
            return warmup(after, peak, steps, start)
        case "cosine_peak_twice":
            return warmup_linspace(after, peak, steps, start)
        case "cosine_per_epoch":
            return warmup(per_epoch(after, steps_per_epoch), peak, steps, start)
        case "step":
            milestones = tuple(round(m * steps_per_epoch) for m in c["milestones"])
            return warmup(step_decay(peak, milestones, c["factor"]), peak, steps, start)
        case _:
            return warmup(constant(peak), peak, steps, start)


class Extension(NamedTuple):
    """Training that goes on after a finished run.

    Attributes:
      steps: optimizer steps of it.
      schedule: of EXTENSIONS. 'constant': the rate stays where it begins; 'cosine': half a cosine
        from there to the recipe's final rate.
      rate: where it begins, as a share of the recipe's peak.
    """

    steps: int
    schedule: str
    rate: float


def extended(schedule: Schedule, config: Mapping[str, Any], batch: int, total: int, e: Extension):
    """`schedule` for the steps of the run, then that of its extension.

    Args:
      schedule: of the run, from `make`.
      config: fields of FIELDS; learning_rate, scaling and final are used.
      batch: examples of one optimizer step.
      total: optimizer steps of the run.
      e: the extension.

    Returns:
      step -> learning rate float32 [].
    """
    c = {name: config[name] if name in config else default for name, default in FIELDS.items()}
    peak = peak_learning_rate(c, batch)
    after = constant(e.rate * peak)
    if e.schedule == "cosine":
        after = delayed(cosine(e.rate * peak, c["final"] * peak, e.steps), total)
    return lambda step: jnp.where(jnp.asarray(step) < total, schedule(step), after(step))


def pace(e: Extension, total: int) -> Schedule:
    """How fast an extension trains, as a share of the recipe's fastest: its rate, falling to 0.

    For what slows down to nothing over a recipe beside the learning rate: an EMA target.

    Args:
      e: the extension.
      total: optimizer steps of the run before it.

    Returns:
      step -> float32 []; of no meaning before step `total`.
    """
    if e.schedule == "constant":
        return constant(e.rate)
    return delayed(cosine(e.rate, 0.0, e.steps), total)


def peak_learning_rate(config: Mapping[str, Any], batch: int) -> float:
    """learning_rate, scaled with the batch as `make` says."""
    scale = {"none": 1.0, "linear": batch / 256, "sqrt": math.sqrt(batch)}
    return config["learning_rate"] * scale[config["scaling"]]


def warmup_steps(config: Mapping[str, Any], steps_per_epoch: int, total_steps: int) -> int:
    """Steps of warm-up, as `make` says."""
    return round(
        config["warmup_epochs"] * steps_per_epoch + config["warmup_fraction"] * total_steps
    )


def check(config: Mapping[str, Any], where: str = "optimizer") -> None:
    """Checks the values of all FIELDS.

    Args:
      config: every field of FIELDS.
      where: dotted name of the config, for the message.

    Raises:
      UserError: the first field that cannot be right.
    """
    for field, known in (("schedule", SCHEDULES), ("scaling", SCALINGS)):
        if config[field] not in known:
            hint = near_misses(config[field], known)
            raise UserError(f"{where}.{field} is {config[field]!r}.{hint}")
    for field in ("learning_rate", "warmup_epochs", "delay_epochs", "factor"):
        if not config[field] >= 0:
            raise UserError(f"{where}.{field} is {config[field]}; it must not be negative")
    for field in ("warmup_fraction", "warmup_start", "final"):
        if not 0 <= config[field] <= 1:
            raise UserError(f"{where}.{field} is {config[field]}; it is a share, from 0 to 1")
    if config["warmup_fraction"] == 1:
        raise UserError(f"{where}.warmup_fraction is 1; the whole run would be a warm-up")
    if config["warmup_epochs"] and config["warmup_fraction"]:
        raise UserError(f"{where} has warmup_epochs and warmup_fraction; set one of them to 0")
    if config["schedule"] == "step" and not config["milestones"]:
        raise UserError(f"{where}.schedule is 'step' without milestones; say after which epochs")
