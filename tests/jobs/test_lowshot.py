"""The low-shot job on a finished run."""

import json
import statistics

import numpy as np
import pytest
from kit import tiny_run

from ssl_jax.evaluate.features import run_features
from ssl_jax.evaluate.probes import lowshot
from ssl_jax.jobs import lowshot as job
from ssl_jax.runs import config as configs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lowshot") / "run"
    tiny_run.finished(folder)
    return folder


def probe(checkpoint, *more):
    return tiny_run.probe("lowshot", checkpoint, *more)


def test_few_labels(finished, tmp_path, capsys):
    few = ("--config.shares=(0.04,)", "--config.shots=(1,)", "--config.draws=2")
    assert probe(finished, *few, f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "result.json").read_text())
    for key in ("linear_top1_4pct", "knn_top1_4pct", "linear_top1_1shot", "knn_top1_1shot"):
        draws = found["draws"][key]
        assert len(draws) == 2 and all(0 < value < 1 for value in draws)
        assert found[key] == statistics.mean(draws)
        assert found[f"{key}_sd"] == statistics.stdev(draws)
    assert found["linear_top1_4pct"] > 0.2  # ten classes
    assert "linear_top1_1shot" in capsys.readouterr().out

    # The same draw alone, from the lists as they are: one number, no deviation.
    assert probe(finished, *few[:2], "--config.draws=1", "--config.seed=1") == 0
    alone = json.loads((finished / "lowshot" / "result.json").read_text())
    assert alone["linear_top1_4pct"] == found["draws"]["linear_top1_4pct"][1]
    assert alone["knn_top1_1shot"] == found["draws"]["knn_top1_1shot"][1]
    assert "linear_top1_4pct_sd" not in alone


def test_probes_see_the_rows_of_the_list_alone():
    """Features of all other rows are nonsense, which changes nothing."""
    r = np.random.default_rng(0)
    centres = 3 * r.normal(size=(3, 4))
    labels, test_labels = r.integers(0, 3, 90), r.integers(0, 3, 60)
    train = centres[labels] + r.normal(size=(90, 4))
    test = centres[test_labels] + r.normal(size=(60, 4))
    rows = lowshot.shots(labels, 4, 0)
    wild = np.full_like(train, 1e6)
    wild[rows] = train[rows]
    config, _ = configs.load("configs/lowshot.py")
    f = run_features.Features(train, labels, test, test_labels, 1.0)
    found = job.on(f, rows, 3, config, 0)
    assert job.on(f._replace(train=wild), rows, 3, config, 0) == found
    assert found["linear"] > 0.7 and found["knn"] > 0.7


@pytest.mark.parametrize(
    "more, message",
    [
        (("--config.draws=0",), "at least 1"),
        (("--config.c=0.0",), "--config.c is 0.0"),
        (("--config.holdout=1.0",), "--config.holdout is 1.0"),
        (("--config.shares=()", "--config.shots=()"), "both empty"),
        (("--config.shares=(2.0,)", "--config.shots=()"), "lies in (0, 1]"),
        (("--config.shares=()", "--config.shots=(400,)"), "400-shot needs 400 of every class"),
    ],
)
def test_a_mistake_is_one_line(finished, capsys, more, message):
    assert probe(finished, *more) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
