"""The job `analyze`: with labels, without, over several runs."""

import json
import shutil
import types

import numpy as np
import pytest
from kit import tiny_run
from PIL import Image

from ssl_jax.jobs import analyze as analyze_job
from ssl_jax.processes import insist


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze") / "run"
    tiny_run.finished(folder)
    return folder


def analyze(run, folder, *more):
    few = ("--config.train_examples=300", "--config.test_examples=100", "--config.examples=100")
    return tiny_run.probe("analyze", run, *few, "--config.batch=100", f"--workdir={folder}", *more)


def test_with_labels(run, tmp_path, capsys):
    assert analyze(run, tmp_path) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert 0 < found["alignment"] < 4 and -4.5 < found["uniformity"] < 0
    assert found["negative_similarity"] < found["tolerance"] < found["positive_similarity"] <= 1
    assert 0.2 < found["knn_top1"] <= 1 and 0.2 < found["linear_top1"] <= 1
    assert found["effective_rank"] > 1
    assert [row["temperature"] for row in found["hardness"]] == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert all(abs(sum(h) - 1) < 1e-6 for h in found["histograms"].values())
    assert (tmp_path / "analyze.png").stat().st_size > 20_000
    assert "uniformity" in capsys.readouterr().out


@pytest.mark.long
def test_the_same_views_give_the_same_numbers_on_any_batch(run, tmp_path):
    """The noise of an example depends on its index, not on its place."""
    results = []
    for batch in (100, 48):
        folder = tmp_path / str(batch)
        assert analyze(run, folder, f"--config.batch={batch}", "--config.policy=digits") == 0
        results.append(json.loads((folder / "result.json").read_text()))
    assert results[0]["alignment"] == pytest.approx(results[1]["alignment"], rel=1e-5)
    assert results[0]["uniformity"] == pytest.approx(results[1]["uniformity"], rel=1e-5)


def test_without_labels_and_a_picture_that_waits_for_the_disk(run, tmp_path, monkeypatch, capsys):
    in_the_way = tmp_path / "analyze.png.tmp"
    in_the_way.mkdir()
    monkeypatch.setattr(insist, "time", types.SimpleNamespace(sleep=lambda _: in_the_way.rmdir()))
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (28, 28), np.uint8)).save(pictures / f"{i}.png")
    source = f"--config.data.source=folder:{pictures}"
    assert analyze(run, tmp_path, source) == 0
    assert "analyze.png is not saved (Is a directory)" in capsys.readouterr().err
    assert (tmp_path / "analyze.png").is_file()
    found = json.loads((tmp_path / "result.json").read_text())
    assert -4.5 < found["uniformity"] <= 0 and found["classes"] == 0
    assert "knn_top1" not in found and "tolerance" not in found
    assert found["histograms"]["same_class"] is None


def test_how_the_numbers_go_with_the_probes():
    numbers = {key: 0.5 for key in analyze_job.NUMBERS}
    runs = [
        {**numbers, "knn_top1": k, "linear_top1": 0.9, "uniformity": u, "alignment": a}
        for k, u, a in ((0.1, -1.0, 0.3), (0.2, -2.0, 0.1), (0.3, -3.0, 0.2))
    ]
    found = analyze_job.correlations(runs)["rank_correlation"]
    assert found["knn_top1"]["uniformity"] == pytest.approx(-1)
    assert found["knn_top1"]["alignment"] == pytest.approx(-0.5)  # 1 − 6 (2² + 1² + 1²) / 24
    assert found["knn_top1"]["tolerance"] is None  # constant
    assert set(found["linear_top1"].values()) == {None}
    assert analyze_job.correlations(runs[:2]) == {}
    del runs[0]["tolerance"]  # no two images of one class
    assert analyze_job.correlations(runs)["rank_correlation"]["knn_top1"]["tolerance"] is None
    assert analyze_job.correlations([*runs, numbers]) == {}


@pytest.mark.long
def test_several_runs_say_so(run, tmp_path, capsys):
    copies = [tmp_path / name for name in "abc"]
    for copy in copies:
        shutil.copytree(run, copy)
    assert analyze(",".join(map(str, copies)), tmp_path / "all") == 0
    found = json.loads((tmp_path / "all" / "result.json").read_text())
    assert found["rank_correlation"]["knn_top1"]["uniformity"] is None  # three times the same run
    assert "rank correlation with the probes" in capsys.readouterr().out


def test_a_mistake_is_one_line(run, tmp_path, capsys):
    assert analyze(run, tmp_path, "--config.examples=1") == 2
    err = capsys.readouterr().err
    assert "--config.examples must be at least 2" in err and err.count("\n") == 1
