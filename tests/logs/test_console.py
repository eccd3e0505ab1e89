import io

import pytest

from ssl_jax.logs import console


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def plain(total, start=0, every=10.0):
    stream, clock = io.StringIO(), Clock()
    progress = console.Progress(total, start, stream=stream, every=every, clock=clock)
    return progress, stream, clock


def test_plain_lines_by_hand():
    progress, stream, clock = plain(100)
    with progress:
        progress.update(1, {"loss": 4.5678, "other": 1.0})
        clock.now += 4
        progress.update(20, {"loss": 4.0})  # too soon to say
        clock.now += 15
        progress.update(39, {"loss": 3.5, "knn_top1": 0.9, "images_per_second": 20.4})
        clock.now += 30.5
        progress.update(100, {"loss": 2.25, "images_per_second": 1234.0})
    assert stream.getvalue().splitlines() == [
        "step   1/100   1%  loss 4.568",
        # 38 steps in 19 s; 61 steps are left at 2 a second
        "step  39/100  39%  loss 3.500  kNN 90.0%  20 images/s  30 s left",
        "step 100/100 100%  loss 2.250  kNN 90.0%  1,230 images/s",
    ]


def test_long_runs_leave_few_lines_and_slow_runs_still_show_life():
    progress, stream, clock = plain(100_000)
    for step in range(0, 100_001, 100):
        progress.update(step, {"loss": 1.0})
        clock.now += 20
    assert 150 <= len(stream.getvalue().splitlines()) <= 202

    progress, stream, clock = plain(100_000)
    for step in range(10):  # 100 s a step
        progress.update(step, {"loss": 1.0})
        clock.now += 100
    assert len(stream.getvalue().splitlines()) == 4  # at 0, 300, 600 and 900 s


def test_last_step_is_said_once():
    progress, stream, _ = plain(3)
    for step in (1, 2, 3, 3):
        progress.update(step, {})
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["1/3", "3/3"]


def test_time_left_of_a_resumed_run_counts_its_own_steps_only():
    progress, stream, clock = plain(100, start=50)
    progress.update(50, {})
    clock.now += 10
    progress.update(60, {})
    assert "  40 s left" in stream.getvalue()


def test_notes_stand_alone():
    progress, stream, _ = plain(3)
    progress.note("checkpoint saved")
    assert stream.getvalue() == "checkpoint saved\n"


def test_not_finite_values_are_shown():
    progress, stream, _ = plain(3)
    progress.update(1, {"loss": float("nan")})
    assert "loss nan" in stream.getvalue()


def test_terminal_gets_a_bar():
    stream, clock = io.StringIO(), Clock()
    with console.Progress(40, stream=stream, terminal=True, clock=clock) as progress:
        progress.update(1, {"loss": 4.0})
        clock.now += 10
        progress.note("a note")
        progress.update(40, {"loss": 2.0, "knn_top1": 0.5, "images_per_second": 39.0})
    screen = stream.getvalue()
    assert "a note\n" in screen
    last = screen.split("\r")[-1]
    assert last.startswith("100%|") and "40/40 steps" in last
    assert "loss 2.000, kNN 50.0%, 39 images/s" in last


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (86_399, "1 d 00 h"),
        (4 * 86_400 + 3 * 3600, "4 d 03 h"),
        (-1, "0.0 s"),
        (float("inf"), "?"),
    ],
)
def test_duration(seconds, text):
    assert console.duration(seconds) == text


@pytest.mark.parametrize(
    "rate, text",
    [(0.123, "0.1"), (7.44, "7.4"), (41.2, "41"), (412.4, "412"), (12_345, "12,300")],
)
def test_rates_have_three_digits(rate, text):
    assert console._thousands(rate) == text


def test_table_by_hand():
    rows = {
        "pixels": {"kNN": 0.927, "linear": 0.9},
        "untrained": {"kNN": 0.7534},
        "learned": {"kNN": 1.0, "linear": None, "note": "best"},
    }
    assert console.table(rows, ["kNN", "linear", "note"], corner="features").splitlines() == [
        "features      kNN  linear  note",
        "pixels      92.7%   90.0%     –",
        "untrained   75.3%       –     –",
        "learned    100.0%       –  best",
    ]


def test_table_of_other_numbers():
    assert console.table({"a": {"x": 3}}, ["x"], form="{:d}") == "   x\na  3"
