"""The jobs that train nothing on a checkpoint: knn with its grid, retrieve, cluster."""

import json
import types

import numpy as np
import pytest
from kit import tiny_run
from PIL import Image

from ssl_jax.processes import insist


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("neighbours") / "run"
    tiny_run.finished(folder)
    return folder


def probe(job, run, workdir, *more):
    return tiny_run.probe(job, run, f"--workdir={workdir}", *more)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_the_grid_of_knn_is_a_table_and_not_the_result(run, tmp_path, capsys):
    assert probe("knn", run, tmp_path / "one") == 0
    one = result(tmp_path / "one")
    assert "grid" not in one and "of the grid" not in capsys.readouterr().out
    grid = ("--config.grid_k=(1,20,50)", "--config.grid_temperature=(0.1,1)")
    assert probe("knn", run, tmp_path / "grid", *grid) == 0
    found, out = result(tmp_path / "grid"), capsys.readouterr().out
    cells = {(c["k"], c["temperature"]): c for c in found.pop("grid")}
    assert list(cells) == [(1, 0.1), (1, 1), (20, 0.1), (20, 1), (50, 0.1), (50, 1)]
    assert cells[20, 0.1]["top1"] == one["knn_top1"] and cells[20, 0.1]["top5"] == one["knn_top5"]
    assert cells[1, 0.1]["top1"] == cells[1, 1]["top1"]  # one vote, whatever its weight
    del found["images_per_second"], one["images_per_second"]
    assert found == one
    assert (
        "      50" in out and "T=0.1" in out and "choose k and T on --config.split=holdout" in out
    )
    for vote in ("plain_cosine", "plain_euclidean"):
        assert 0.1 < one[f"{vote}_top1"] <= one[f"{vote}_top5"] <= 1


def test_retrieval_finds_what_knn_finds(run, tmp_path):
    assert probe("retrieve", run, tmp_path / "train", "--config.shown=3") == 0
    found = result(tmp_path / "train")
    assert probe("knn", run, tmp_path / "knn", "--config.k=1") == 0
    assert found["recall_at_1"] == result(tmp_path / "knn")["knn_top1"]
    assert found["recall_at_1"] < found["recall_at_5"] < found["recall_at_10"] <= 1
    assert 0 < found["mean_ap_at_r"] < found["recall_at_1"] and found["queries"] == 200
    with Image.open(tmp_path / "train" / "neighbours.png") as image:
        width, height = image.size
    assert width > 2 * height  # 3 queries, 10 neighbours

    among = ("--config.gallery=test", "--config.shown=0", "--config.ks=(2,)")
    assert probe("retrieve", run, tmp_path / "test", *among) == 0
    found = result(tmp_path / "test")
    assert 0.1 < found["recall_at_2"] < 1 and not (tmp_path / "test" / "neighbours.png").exists()


def test_retrieval_without_labels_is_the_picture_alone_which_waits_for_the_disk(
    run, tmp_path, capsys, monkeypatch
):
    in_the_way = tmp_path / "neighbours.png.tmp"
    in_the_way.mkdir()
    monkeypatch.setattr(insist, "time", types.SimpleNamespace(sleep=lambda _: in_the_way.rmdir()))
    pictures, r = tmp_path / "pictures", np.random.default_rng(0)
    pictures.mkdir()
    for i in range(6):
        Image.fromarray(r.integers(0, 255, (28, 28), np.uint8)).save(pictures / f"{i}.png")
    assert probe("retrieve", run, tmp_path, f"--config.data.source=folder:{pictures}") == 0
    found = result(tmp_path)
    assert "recall_at_1" not in found and "mean_ap_at_r" not in found
    said = capsys.readouterr()
    assert "has no labels: no recall, the picture alone" in said.out
    assert "neighbours.png is not saved (Is a directory); trying again in 1 s" in said.err
    with Image.open(tmp_path / "neighbours.png") as image:
        drawn = np.asarray(image.convert("RGB")).astype(int)
    assert drawn.std() > 20 and np.abs(drawn - drawn.mean(2, keepdims=True)).max() < 40  # no frames


@pytest.mark.parametrize("geometry", ["spherical", "euclidean"])
def test_clusters_against_classes(run, tmp_path, geometry):
    more = ("--config.restarts=2", "--config.standardise=True", f"--config.geometry={geometry}")
    assert probe("cluster", run, tmp_path, *more) == 0
    found = result(tmp_path)
    assert found["clusters"] == 10 and len(found["spread_of_restarts"]) == 2
    assert 0.15 < found["accuracy"] <= found["purity"] < 1
    assert 0.05 < found["nmi"] < 1 and 0.02 < found["ari"] < 1


@pytest.mark.parametrize(
    "job, more, message",
    [
        ("knn", ("--config.grid_k=(5,0)",), "k must be a whole number of at least 1, got 0"),
        ("knn", ("--config.grid_temperature=(0.,)",), "temperature must be positive"),
        ("retrieve", ("--config.gallery=tests",), "Did you mean test?"),
        ("retrieve", ("--config.columns=0",), "--config.columns=0 at least 1"),
        ("cluster", ("--config.geometry=spheric",), "Did you mean spherical?"),
        ("cluster", ("--config.clusters=501",), "501 clusters of 500 images"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, capsys, job, more, message):
    code = probe(job, run, tmp_path, *more)
    err = capsys.readouterr().err
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "result.json").exists()
