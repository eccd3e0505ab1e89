"""Which checkpoints of a run are kept, which is the best, and which one a user means.

The newest few stay, and the best by a metric that the config names. A checkpoint carries what the
monitors had found when it was saved, as JSON in its `metrics/metrics`: `{"knn_top1": 0.87, …}`.
"""

import json
import math
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ssl_jax.checkpoints import verify
from ssl_jax.errors import UserError, warn

METRICS = "metrics/metrics"  # a checkpoint's file of them


class Best(NamedTuple):
    """What makes a checkpoint the best one.

    Attributes:
      metric: name of a number that the monitors report, as in metrics.jsonl.
      mode: 'max' where more of it is better, 'min' where less is.
    """

    metric: str
    mode: str

    def __str__(self) -> str:
        return f"{self.mode}:{self.metric}"


KNN = Best("knn_top1", "max")
FINETUNED = Best("finetune_top1", "max")  # of a fine-tuning


class Kept(NamedTuple):
    """A finished checkpoint.

    Attributes:
      step: at which it was saved.
      metrics: name -> number; empty where none was known. None: they cannot be read.
    """

    step: int
    metrics: Mapping[str, float] | None


def parse(text: str) -> Best:
    """'max:knn_top1' or 'min:loss' as a `Best`.

    Raises:
      UserError: it is neither. Whether more is better is never guessed from a name.
    """
    mode, colon, metric = text.partition(":")
    if colon and mode in ("max", "min") and re.fullmatch(r"[A-Za-z_][\w./-]*", metric):
        return Best(metric, mode)
    raise UserError(
        f"--config.checkpoint.best is {text!r}; write max:METRIC where more is better, as "
        "max:knn_top1, or min:METRIC where less is, as min:loss"
    )


def numbers(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """The finite numbers among `metrics`: what a checkpoint can be compared by.

    Text, NaN and infinities are left out: they never make a checkpoint the best.
    """
    found = {}
    for name, value in (metrics or {}).items():
        try:
            number = float(value) if not isinstance(value, str | bytes | bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            continue
        if math.isfinite(number):
            found[name] = number
    return found


def listed(folder: pathlib.Path) -> list[Kept]:
    """The finished checkpoints of a run with their metrics, oldest first.

    Args:
      folder: `<workdir>/checkpoints`.
    """
    return [Kept(step, _metrics(folder / str(step))) for step in verify.steps(folder)]


def best_of(kept: Sequence[Kept], best: Best) -> Kept | None:
    """The best checkpoint; the newest of those that are equally good.

    Returns:
      one of `kept`; None where none has the metric.
    """
    sign = 1 if best.mode == "max" else -1
    able = [
        (sign * found[best.metric], one.step, one)
        for one in kept
        if best.metric in (found := numbers(one.metrics))
    ]
    return max(able, key=lambda each: each[:2], default=(0, 0, None))[2]


def obsolete(kept: Sequence[Kept], keep: int, best: Best) -> list[int]:
    """Steps of the checkpoints that are neither among the newest `keep` nor the best.

    One whose metrics cannot be read may be the best, and stays.

    Args:
      kept: all there are.
      keep: how many of the newest stay, at least 1.
      best: which stays besides.
    """
    newest = sorted(one.step for one in kept)[-max(keep, 1) :]
    first = best_of(kept, best)
    unknown = [one.step for one in kept if one.metrics is None]
    stay = {*newest, *unknown, *([first.step] if first else [])}
    return sorted(one.step for one in kept if one.step not in stay)


def locate(path: pathlib.Path) -> tuple[pathlib.Path, int | None]:
    """Splits the path of a checkpoint, as a run prints it, in run and step.

    Args:
      path: `<workdir>/checkpoints/300`, or that of a run.

    Returns:
      (`<workdir>`, 300); (path, None) where it names no single checkpoint.
    """
    if path.parent.name == "checkpoints" and verify.is_step(path.name):
        return path.parent.parent, int(path.name)
    return (path.parent if path.name == "checkpoints" else path), None


def resolve(folder: pathlib.Path, which: str | int | pathlib.Path, best: Best = KNN) -> int:
    """The step of the checkpoint that a user means; that checkpoint is whole.

    Only 'last' goes around a damaged one, to the one before, and says so. Nothing in the folder is
    changed.

    Args:
      folder: `<workdir>/checkpoints`.
      which: 'last', 'best', a step, or the path of a checkpoint in `folder`.
      best: what makes one the best.

    Raises:
      UserError: there is no such checkpoint, none has the metric, or the one is damaged.
    """
    name = str(which)
    if "/" in name:
        place, number = locate(pathlib.Path(name))
        if number is None or (place / "checkpoints").resolve() != folder.resolve():
            raise UserError(f"--config.step={name} is no checkpoint in {folder}")
        name = str(number)
    if name not in ("last", "best") and not verify.is_step(name):
        there = _text(listed(folder))
        raise UserError(f"--config.step is {name!r}; write last, best or a step: there is {there}")
    if name == "last":
        found = verify.choose(folder, read_only=True)
        if found == -1:
            raise UserError(f"--config.step=last: there is no checkpoint in {folder}")
        return found
    kept = listed(folder)
    if name == "best":
        one = best_of(kept, best)
        if one is None:
            raise UserError(
                f"--config.step=best: no checkpoint in {folder} has the metric {best.metric} "
                f"({best}); there is {_text(kept)}"
            )
        step = one.step
    else:
        step = int(name)
        if step not in [one.step for one in kept]:
            aside = ", ".join(sorted(f.name for f in folder.glob(f"{step}.damaged*")))
            more = f" ({aside} was damaged, and set aside)" if aside else ""
            raise UserError(
                f"--config.step={step}: {folder} has no such checkpoint{more}; "
                f"there is {_text(kept)}"
            )
    problem = verify.damage(folder / str(step))
    if problem and step not in verify.steps(folder):  # the run has deleted it meanwhile
        return resolve(folder, which, best)
    if problem:
        others = _text([one for one in kept if one.step != step])
        raise UserError(
            f"--config.step={which}: checkpoint {folder / str(step)} is damaged: {problem}; "
            f"besides it there is {others}"
        )
    return step


def read(
    manager, which: str | int | pathlib.Path, take: Callable[[int], Any], best: Best = KNN
) -> tuple[Any, int]:
    """Reads the checkpoint that a user means, of a run that may be training meanwhile.

    Every process calls it; process 0 resolves and verifies.

    Args:
      manager: from `store.open_manager(read_only=True)`.
      which, best: as for `resolve`.
      take: step -> what is wanted of it.

    Returns:
      (what `take` returned, step).

    Raises:
      UserError: see `resolve`; or the run deletes checkpoints faster than they are read.
      whatever `take` raises.
    """
    return verify.read_picked(manager, take, lambda folder: resolve(folder, which, best))


def _text(kept: Sequence[Kept]) -> str:
    """'100 (knn_top1 0.81), 200' for messages; 'none' where there is none."""

    def one(kept):
        known = ", ".join(f"{name} {value:.4g}" for name, value in (kept.metrics or {}).items())
        return f"{kept.step} ({known})" if known else str(kept.step)

    return ", ".join(map(one, kept)) or "none"


def _metrics(step: pathlib.Path) -> dict[str, float] | None:
    """The numbers of one checkpoint; None where they cannot be read, which is said."""
    try:
        if problem := verify.damage(step, METRICS):
            if not step.is_dir():  # the run has deleted it meanwhile
                return {}
            warn(f"checkpoint {step} is damaged: {problem}; its metrics do not count")
            return None
        content = json.loads((step / METRICS).read_text())
    except FileNotFoundError:  # saved without any, or deleted meanwhile
        return {}
    except (OSError, ValueError, RecursionError) as error:
        warn(f"the metrics of checkpoint {step} cannot be read ({type(error).__name__})")
        return None
    return numbers(content) if isinstance(content, dict) else None
