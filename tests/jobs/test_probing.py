"""Jobs on checkpoints: one run, several, and what a user mistypes."""

import json
import statistics

import pytest
import tiny_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two finished runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("probing")
    for seed in (0, 1):
        assert tiny_run.run(folder / str(seed), "--config.steps=4", f"--config.seed={seed}") == 0
    return folder


def test_several_runs_have_a_mean_and_a_deviation(runs, tmp_path, capsys):
    both = f"{runs / '0'},{runs / '1'}"
    assert tiny_run.probe("knn", both, f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "result.json").read_text())
    each = [json.loads((runs / s / "knn" / "result.json").read_text()) for s in "01"]
    assert found["runs"] == each and [r["seed"] for r in each] == [0, 1]
    values = [r["knn_top1"] for r in each]
    assert found["over_runs"]["knn_top1"] == {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values),
    }
    assert "seed" not in found["over_runs"] and "step" not in found["over_runs"]
    assert "knn of 2 runs, mean ± standard deviation" in capsys.readouterr().out


def test_the_holdout_is_of_train(runs, tmp_path):
    assert tiny_run.probe("knn", runs / "0", "--config.split=holdout", f"--workdir={tmp_path}") == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["judged_on"] == "holdout" and "train" in found["dataset"]


@pytest.mark.parametrize(
    "checkpoint, more, message",
    [
        ("{0}/nowhere", (), "there is no run in"),
        ("{0}/0,{0}/0", (), "2 times"),
        ("{0}/0", ("--config.split=tests",), "Did you mean test?"),
        ("{0}/0", ("--config.features=pixel",), "Did you mean pixels?"),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, checkpoint, more, message):
    code = tiny_run.probe("knn", checkpoint.format(runs), *more)
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1


def test_the_baselines_are_those_of_the_run(runs):
    """kNN on pixels and on the untrained encoder, as the run itself reports them."""
    own = json.loads((runs / "0" / "result.json").read_text())
    for which in ("pixels", "untrained"):
        assert tiny_run.probe("knn", runs / "0", f"--config.features={which}") == 0
        found = json.loads((runs / "0" / f"knn_{which}" / "result.json").read_text())
        assert found["features"] == which
        assert found["knn_top1"] == own["baselines"][which]["knn_top1"]
    assert own["baselines"]["pixels"]["knn_top1"] != own["knn_top1"]
