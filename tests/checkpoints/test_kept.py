"""Which checkpoints stay, which is the best, and which one is meant."""

import json
import math
import shutil

import jax
import numpy as np
import pytest
from kit.small_state import create, encoder, like, whole

from ssl_jax.checkpoints import kept, manifest, reading, store
from ssl_jax.checkpoints.kept import Best, Kept
from ssl_jax.errors import UserError


@pytest.mark.parametrize(
    "text, found",
    [
        ("max:knn_top1", Best("knn_top1", "max")),
        ("min:loss", Best("loss", "min")),
        ("max:effective_rank", Best("effective_rank", "max")),
    ],
)
def test_the_best_is_named_with_its_direction(text, found):
    assert kept.parse(text) == found and str(found) == text


@pytest.mark.parametrize(
    "text", ["", "knn_top1", "loss", "maximum:loss", "max:", "min: loss", ":a"]
)
def test_a_direction_is_never_guessed(text):
    with pytest.raises(UserError, match="--config.checkpoint.best is .* write max:METRIC"):
        kept.parse(text)


def test_only_finite_numbers_count():
    seen = {
        **{"knn_top1": np.float32(0.5), "rank": 3, "alarm": "collapse", "std": math.nan},
        **{"ratio": math.inf, "none": None, "flag": True, "row": [1.0, 2.0], "text": "0.9"},
    }
    assert kept.numbers(seen) == {"knn_top1": 0.5, "rank": 3.0} and kept.numbers(None) == {}


STEPS = [
    Kept(1, {"knn_top1": 0.9, "loss": 3.0}),
    Kept(2, {"knn_top1": math.nan, "loss": 1.0}),
    Kept(3, {"loss": 2.0}),
    Kept(4, {"knn_top1": 0.9, "loss": math.nan}),
    Kept(5, {}),
    Kept(6, {"knn_top1": 0.2, "loss": 1.0}),
]


@pytest.mark.parametrize(
    "best, keep, step, gone",
    [
        (Best("knn_top1", "max"), 1, 4, [1, 2, 3, 5]),  # the newer of two
        (Best("knn_top1", "min"), 1, 6, [1, 2, 3, 4, 5]),  # NaN at 2 is not the least
        (Best("loss", "min"), 2, 6, [1, 2, 3, 4]),
        (Best("loss", "max"), 2, 1, [2, 3, 4]),
        (Best("linear_top1", "max"), 3, None, [1, 2, 3]),
        (Best("loss", "max"), 9, 1, []),
    ],
)
def test_the_newest_and_the_best_stay(best, keep, step, gone):
    found = kept.best_of(STEPS, best)
    assert (found and found.step) == step
    assert kept.obsolete(STEPS, keep, best) == gone
    assert kept.obsolete(STEPS[::-1], keep, best) == gone
    assert kept.obsolete([], keep, best) == []


@pytest.mark.parametrize(
    "path, found",
    [
        ("runs/a/checkpoints/300", ("runs/a", 300)),
        ("runs/a/checkpoints/0", ("runs/a", 0)),
        ("runs/a/checkpoints", ("runs/a", None)),
        ("runs/a", ("runs/a", None)),
        ("runs/300", ("runs/300", None)),
        ("runs/a/checkpoints/300.damaged", ("runs/a/checkpoints/300.damaged", None)),
        ("runs/a/checkpoints/0300", ("runs/a/checkpoints/0300", None)),
    ],
)
def test_the_path_of_a_checkpoint_is_its_run_and_its_step(path, found):
    import pathlib

    run, step = kept.locate(pathlib.Path(path))
    assert (str(run), step) == found


LOSS = Best("loss", "min")
SEEN = {4: {"loss": 1.5, "alarm": "text"}, 8: {"loss": math.nan}, 12: {"loss": 2.0}, 16: None}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with the checkpoints 4 (least loss), 8, 12 and 16."""
    folder = tmp_path_factory.mktemp("kept") / "checkpoints"
    made = jax.jit(create, static_argnames=("step",), out_shardings=whole())
    with store.open_manager(folder, 4, LOSS) as manager:
        for step, seen in SEEN.items():
            store.save(manager, made(step=step), seen)
    return folder


@pytest.fixture
def copy(run, tmp_path):
    shutil.copytree(run, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_kept_checkpoints_are_listed_with_their_metrics(run):
    assert kept.listed(run) == [
        *(Kept(4, {"loss": 1.5}), Kept(8, {}), Kept(12, {"loss": 2.0}), Kept(16, {})),
    ]
    assert kept.listed(run / "nowhere") == []
    assert json.loads((run / "12" / "metrics" / "metrics").read_text()) == {"loss": 2.0}


@pytest.mark.parametrize("which", ["last", "16", 16, "path"])
def test_each_name_of_the_last_one(run, which):
    which = run / "16" if which == "path" else which
    assert kept.resolve(run, which, LOSS) == 16


@pytest.mark.parametrize("which", ["best", "4", 4])
def test_each_name_of_the_best_one(run, which):
    assert kept.resolve(run, which, LOSS) == 4
    assert kept.resolve(run, "best", Best("loss", "max")) == 12


@pytest.mark.parametrize(
    "which, message",
    [
        (300, r"step=300: .* no such checkpoint; there is 4 \(loss 1.5\), 8, 12 \(loss 2\), 16$"),
        ("best", r"no checkpoint in .* has the metric knn_top1 \(max:knn_top1\); there is 4 \("),
        ("first", r"--config.step is 'first'; write last, best or a step: there is 4"),
        ("-1", "--config.step is '-1'; write"),
        ("/else/checkpoints/4", "/else/checkpoints/4 is no checkpoint in"),
    ],
)
def test_what_is_not_there_is_one_line(run, which, message):
    with pytest.raises(UserError, match=message) as error:
        kept.resolve(run, which)
    assert "\n" not in str(error.value)


def test_an_empty_folder(tmp_path):
    for which, message in (("last", "no checkpoint in"), ("best", "none$"), (4, "none$")):
        with pytest.raises(UserError, match=message):
            kept.resolve(tmp_path, which)


def test_a_damaged_one_is_refused_where_it_was_asked_for(copy, capsys):
    weights = next((copy / "4" / "state" / "d").iterdir())
    weights.write_bytes(weights.read_bytes()[:-1])
    for which in ("best", 4):
        with pytest.raises(UserError, match="4 is damaged: state/d/.* besides it there is 8, 12"):
            kept.resolve(copy, which, LOSS)
    assert kept.resolve(copy, "last") == 16 and capsys.readouterr().err == ""
    (copy / "16" / manifest.NAME).unlink()
    assert kept.resolve(copy, "last") == 12, "the one before"
    assert "checkpoints/16 is damaged: manifest.json is missing; passed over" in (
        capsys.readouterr().err
    )
    with pytest.raises(UserError, match="16 is damaged: manifest.json is missing"):
        kept.resolve(copy, 16)
    (copy / "8").rename(copy / "8.damaged")
    with pytest.raises(UserError, match=r"8: .* no such checkpoint \(8.damaged was damaged, and"):
        kept.resolve(copy, 8)


def test_damaged_metrics_do_not_count(copy, capsys):
    (copy / "4" / "metrics" / "metrics").write_text('{"loss": 9.5}')
    assert kept.listed(copy)[0] == Kept(4, None)
    assert kept.resolve(copy, "best", LOSS) == 12
    assert "checkpoints/4 is damaged: metrics/metrics " in capsys.readouterr().err


def test_one_that_is_asked_for_is_read(run):
    with store.open_manager(run, 1, read_only=True) as manager:

        def take(step):
            return reading.restore_part(manager, step, like(), encoder)

        found, step = kept.read(manager, "best", take, LOSS)
        with pytest.raises(UserError, match="no such checkpoint"):
            kept.read(manager, 5, take)
    assert step == 4
    np.testing.assert_array_equal(found["params"]["w"], create().params["encoder"]["w"])


def test_the_best_by_another_metric_stays(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: math.nan, 5: 1.5}
    with store.open_manager(tmp_path, 2, LOSS) as manager:
        for step, loss in losses.items():
            store.save(manager, create(step=step), {"loss": loss, "knn_top1": step / 10})
    assert [one.step for one in kept.listed(tmp_path)] == [2, 4, 5]


def test_what_cannot_be_read_may_be_the_best_and_stays(tmp_path, capsys):
    with store.open_manager(tmp_path, 3) as manager:
        for step, value in ((1, 0.9), (2, 0.1), (3, 0.2)):
            store.save(manager, create(step=step), {"knn_top1": value})
            manager.wait_until_finished()
    (tmp_path / "1" / kept.METRICS).write_text("{")
    there = kept.listed(tmp_path)
    assert [one.metrics is None for one in there] == [True, False, False]
    assert kept.obsolete(there, 1, Best("knn_top1", "max")) == [2]
    assert kept.best_of(there, Best("knn_top1", "max")).step == 3
    assert "checkpoint" in capsys.readouterr().err
