"""The job `analyze`: with labels, without, over several runs."""

import json

import numpy as np
import pytest
import tiny_run
from PIL import Image


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("analyze") / "run"
    assert tiny_run.run(folder, "--config.steps=4") == 0
    return folder


def analyze(run, folder, *more):
    command = [
        "--config=configs/analyze.py",
        f"--config.checkpoint={run}",
        "--config.train_examples=300",
        "--config.test_examples=100",
        "--config.examples=100",
        "--config.batch=100",
        "--config.cpu_devices=4",
        "--config.compile_cache=",
        f"--workdir={folder}",
        *more,
    ]
    return tiny_run.main.main(command)


def test_with_labels(run, tmp_path, capsys):
    assert analyze(run, tmp_path) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert 0 < found["alignment"] < 4 and -4.5 < found["uniformity"] < 0
    assert found["negative_similarity"] < found["tolerance"] < found["positive_similarity"] <= 1
    assert 0.2 < found["knn_top1"] <= 1 and found["effective_rank"] > 1
    assert [row["temperature"] for row in found["hardness"]] == [0.02, 0.05, 0.1, 0.2, 0.5, 1.0]
    assert all(abs(sum(h) - 1) < 1e-6 for h in found["histograms"].values())
    assert (tmp_path / "analyze.png").stat().st_size > 20_000
    assert "uniformity" in capsys.readouterr().out


def test_the_same_views_give_the_same_numbers_on_any_batch(run, tmp_path):
    """The noise of an example depends on its index, not on its place."""
    results = []
    for batch in (100, 48):
        folder = tmp_path / str(batch)
        assert analyze(run, folder, f"--config.batch={batch}", "--config.policy=digits") == 0
        results.append(json.loads((folder / "result.json").read_text()))
    assert results[0]["alignment"] == pytest.approx(results[1]["alignment"], rel=1e-5)
    assert results[0]["uniformity"] == pytest.approx(results[1]["uniformity"], rel=1e-5)


def test_without_labels(run, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (28, 28), np.uint8)).save(pictures / f"{i}.png")
    source = f"--config.data.source=folder:{pictures}"
    assert analyze(run, tmp_path, source) == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert -4.5 < found["uniformity"] <= 0 and found["classes"] == 0
    assert "knn_top1" not in found and "tolerance" not in found
    assert found["histograms"]["same_class"] is None


def test_a_mistake_is_one_line(run, tmp_path, capsys):
    assert analyze(run, tmp_path, "--config.examples=1") == 2
    err = capsys.readouterr().err
    assert "--config.examples must be at least 2" in err and err.count("\n") == 1
