import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.logs import metrics as logs


def lines(path):
    return path.read_text().splitlines()


def test_one_json_object_a_line(tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    with logs.Metrics(path) as metrics:
        metrics.write(1, {"loss": jnp.float32(0.1), "lr": np.float64(1e-3), "alarm": None})
        # Flushed: readable while the run goes on.
        assert lines(path) == ['{"step": 1, "loss": 0.1, "lr": 0.001, "alarm": null}']
        metrics.write(2, {"count": jnp.int32(3), "ok": True, "note": "fine", "big": 1e300})
    assert logs.read(path) == [
        {"step": 1, "loss": 0.1, "lr": 0.001, "alarm": None},
        {"step": 2, "count": 3, "ok": True, "note": "fine", "big": 1e300},
    ]


def test_values_that_are_not_finite_stay_valid_json(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with logs.Metrics(path) as metrics:
        metrics.write(7, {"loss": jnp.nan, "norm": np.float32("inf"), "low": -math.inf, "lr": 0.5})

    def refuse(constant):
        raise AssertionError(constant)  # NaN and Infinity are no JSON, though Python reads them

    record = json.loads(lines(path)[0], parse_constant=refuse)
    assert record["loss"] is None and record["lr"] == 0.5
    assert record["nonfinite"] == {"loss": "nan", "norm": "inf", "low": "-inf"}
    (back,) = logs.read(path)
    assert math.isnan(back["loss"]) and back["norm"] == math.inf and back["low"] == -math.inf
    assert "nonfinite" not in back


@pytest.mark.parametrize(
    "step, kept", [(None, [1, 2, 3]), (4, [1, 2, 3]), (3, [1, 2]), (1, []), (0, [])]
)
def test_resume_drops_what_will_be_written_again(tmp_path, step, kept):
    path = tmp_path / "metrics.jsonl"
    with logs.Metrics(path) as metrics:
        for i in (1, 2, 3):
            metrics.write(i, {"loss": i})
    with logs.Metrics(path, step) as metrics:
        metrics.write(9, {"loss": 9})
    assert [r["step"] for r in logs.read(path)] == [*kept, 9]
    assert [p.name for p in pathlib.Path(tmp_path).iterdir()] == ["metrics.jsonl"]


def test_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert [r["step"] for r in logs.read(path)] == [1]
    with logs.Metrics(path) as metrics:
        metrics.write(2, {"loss": 1.0})
    assert lines(path) == ['{"step": 1, "loss": 2.0}', '{"step": 2, "loss": 1.0}']


def test_last_line_without_its_newline_is_torn_too(tmp_path):
    # Otherwise the next write would end up on the same line.
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2}')
    with logs.Metrics(path) as metrics:
        metrics.write(2, {"loss": 1.0})
    assert [r["step"] for r in logs.read(path)] == [1, 2]


def test_errors(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(UserError, match="cannot read"):
        logs.read(path)
    path.write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        logs.read(path)
    with pytest.raises(UserError, match="cannot write"):
        logs.Metrics(path / "below_a_file" / "metrics.jsonl")
    with logs.Metrics(tmp_path / "other.jsonl") as metrics:
        with pytest.raises(ValueError, match="must be a scalar"):
            metrics.write(1, {"loss": np.ones(2)})


def test_tensorboard_events(tmp_path, capfd):
    from tensorboardX.proto import event_pb2

    with logs.Events(tmp_path, step=5) as events:
        events.write(5, {"loss": jnp.float32(1.5), "note": "text", "alarm": None})
        events.write(6, {"loss": 0.5, "knn_top1": 0.25})
        events.write(7, {"loss": math.inf})
        events.write(8, {"loss": jnp.float32(math.nan)})
    assert capfd.readouterr().err == "", "the monitors say what is not finite, on a line of theirs"
    (file,) = tmp_path.iterdir()
    data, found, purged = file.read_bytes(), [], []
    while data:  # records: length, its checksum, the event, its checksum
        length = int.from_bytes(data[:8], "little")
        event = event_pb2.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        if event.session_log.status == event_pb2.SessionLog.START:
            purged.append(event.step)
    assert found[:-1] == [
        (5, "loss", 1.5), (6, "loss", 0.5), (6, "knn_top1", 0.25), (7, "loss", math.inf),
    ]  # fmt: skip
    assert found[-1][:2] == (8, "loss") and math.isnan(found[-1][2])
    assert purged == [5]
