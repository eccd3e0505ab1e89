"""What a run leaves behind about itself: metrics.jsonl, and TensorBoard events.

metrics.jsonl holds one JSON object a line: {"step": 120, "loss": 4.81, "learning_rate": 0.003}.
JSON knows no NaN. A value that is not finite is written as null, and named in an extra field:
{"step": 130, "loss": null, "nonfinite": {"loss": "nan"}}; `read` turns it back into a float.
"""

import json
import math
import os
import pathlib
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from ssl_jax.errors import UserError, warn


class Tail:
    """A file that is appended to, and no reason to stop: what the disk does not take waits.

    The first failure is said on one line. What is waiting goes before whatever is written next,
    from the byte where the disk stopped, so that no line is lost or torn while the process lives.

    Args:
      path: the file; made when missing, in a folder that is there.

    Raises:
      OSError: it cannot be opened.
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._waiting, self._failing = path, b"", False
        self._file: int | None = None
        self._open()

    def _open(self):
        self._file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, data: bytes) -> None:
        """Appends `data`, after all that is still waiting."""
        self._waiting += data
        try:
            if self._file is None:
                self._open()
            while self._waiting:
                self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        except OSError as error:
            self._shut()  # a lost mount that is back needs a new handle
            if not self._failing:
                warn(
                    f"cannot write {self._path} ({error.strerror}); training goes on, what is "
                    "logged waits in memory"
                )
            self._failing = True
            return
        if self._failing:
            warn(f"{self._path} is written again, with all that was waiting")
        self._failing = False

    def close(self) -> None:
        """Tries once more, and says what is lost."""
        if self._waiting:
            self.write(b"")
        if self._waiting:
            warn(f"{self._path} lacks its last {len(self._waiting):,} bytes")
        self._shut()

    def _shut(self):
        if self._file is not None:
            try:
                os.close(self._file)
            except OSError:
                pass
        self._file = None


class Metrics:
    """Appends to a metrics.jsonl; a context manager. One process of a run may hold one.

    Args:
      path: the file; it and its folder are made when missing.
      step: first step that this run will write. Lines at or after it, and a last line torn by a
        crash, are dropped first, so that no step appears twice after a resume. 0 starts afresh;
        None keeps every whole line.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, step: int | None = None):
        self.path = pathlib.Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                _keep_before(self.path, step)
            self._file = Tail(self.path)
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}") from error

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line; where the disk does not take it, it waits (see `Tail`).

        Args:
          step: optimizer steps done.
          metrics: flat mapping; values are numbers, scalar arrays (NumPy or JAX; reading one
            waits for it), strings, booleans or None.
        """
        self._file.write(f"{_line(step, metrics)}\n".encode())

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Events:
    """Scalars as TensorBoard events; a context manager.

    tensorboardX gives the formats. Its writer is not used: its thread dies of a full disk, and
    training would then wait for ever at its queue.

    Args:
      folder: where the event file goes.
      step: first step that this run will write; on a resume, TensorBoard hides what an earlier
        run wrote at or after it.

    Raises:
      UserError: the file cannot be written.
    """

    def __init__(self, folder: str | os.PathLike, step: int = 0):
        from tensorboardX.proto import event_pb2

        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}"
        path = pathlib.Path(folder) / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = Tail(path)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error
        self._add(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        if step:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(wall_time=time.time(), step=step, session_log=start))

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds every numeric value of `metrics` at `step`; strings and None are passed over."""
        from tensorboardX.proto import event_pb2, summary_pb2

        for name, value in metrics.items():
            value = _plain(value)
            if isinstance(value, (int, float)):
                # `tensorboardX.summary.scalar` would write a line to stderr for every NaN.
                point = summary_pb2.Summary.Value(tag=name, simple_value=float(value))
                summary = summary_pb2.Summary(value=[point])
                self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _add(self, event) -> None:
        """A TFRecord: length, its CRC, data, their CRC."""
        from tensorboardX.record_writer import masked_crc32c

        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (length, data)]
        self._file.write(length + checks[0] + data + checks[1])

    def close(self) -> None:
        self._file.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, oldest first.

    Args:
      path: the file. While a run is writing, or after a crash, its last line may be torn: that
        one is passed over.

    Returns:
      a list of dicts, each with 'step'; 'nonfinite' values are floats again (nan, inf).

    Raises:
      UserError: no such file, or a line other than the last is not JSON, or not of metrics.
    """
    path = pathlib.Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(_record(line))
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}, line {number}: {error}") from error
    return records


def _record(line):
    """What `_line` wrote, with its 'nonfinite' values as floats again.

    Raises:
      ValueError: it is something else.
    """
    try:
        record = json.loads(line)
        record.update({k: float(v) for k, v in record.pop("nonfinite", {}).items()})
        if type(record["step"]) is int:
            return record
        raise TypeError(record["step"])
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("no line of metrics") from error


def _line(step, metrics):
    record: dict[str, Any] = {"step": int(step)}
    nonfinite = {}
    for name, value in metrics.items():
        value = _plain(value)
        if isinstance(value, float) and not math.isfinite(value):
            nonfinite[name] = str(value)  # 'nan', 'inf', '-inf'
            value = None
        record[name] = value
    if nonfinite:
        record["nonfinite"] = nonfinite
    return json.dumps(record, allow_nan=False)


def _plain(value):
    """A Python number, string, bool or None from whatever holds one."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    value = np.asarray(value)
    if value.size != 1:
        raise ValueError(f"a metric must be a scalar, got an array of shape {value.shape}")
    if value.dtype.kind in "biu":
        return value.item()
    # float32 prints as its shortest decimal, 0.1 and not 0.10000000149011612.
    return float(str(np.float32(value.item()))) if value.dtype.itemsize <= 4 else float(value)


def _keep_before(path, step):
    """Rewrites `path` without lines at or after `step`, and without a torn last line."""
    text = path.read_text(encoding="utf-8", errors="replace")
    kept = []
    for line in text.splitlines(keepends=True):
        try:
            record = _record(line)
        except ValueError:
            continue
        if line.endswith("\n") and (step is None or record["step"] < step):
            kept.append(line)
    if "".join(kept) == text:
        return
    # All or nothing: a crash here leaves the old file.
    fresh = path.with_name(path.name + ".tmp")
    fresh.write_text("".join(kept), encoding="utf-8")
    os.replace(fresh, path)
