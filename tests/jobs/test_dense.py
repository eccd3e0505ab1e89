"""The dense job end to end: all feature sets, the picture, several processes, and mistakes."""

import json
import socket
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from kit import tiny_run
from PIL import Image

from ssl_jax.data.sources import scenes
from ssl_jax.processes import insist

SMALL = (
    "--config=configs/dense.py",
    "--config.train_examples=40",
    "--config.test_examples=12",
    "--config.epochs=2",
    "--config.batch=20",
    "--config.step_batch=8",
    "--config.learning_rates=(0.01,)",
    "--config.weight_decays=(0.0,)",
)
MEASURES = ("miou", "pixel_accuracy", "rmse", "abs_rel", "delta1", "delta2", "delta3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A ResNet and a ViT that learned a little from scenes."""
    folder = tmp_path_factory.mktemp("dense")
    more = (
        "--config.steps=2",
        "--config.data.source=scenes",
        "--config.data.examples=100",
        "--config.evaluate.train_examples=60",
        "--config.evaluate.test_examples=20",
    )
    assert tiny_run.run(folder / "resnet", *more) == 0
    kept = tiny_run.arguments(folder / "vit", *more)
    kept = [a for a in kept if not a.startswith(("--config=", "--config.model"))]
    model = ("--config.model.width=8", "--config.model.depth=2", "--config.model.heads=2")
    assert tiny_run.main.main(["--config=configs/mae.py:digits", *kept, *model]) == 0
    return folder


def job(folder, *more):
    return tiny_run.main.main([*arguments(folder, *more), "--config.cpu_devices=4"])


def arguments(folder, *more):
    cache = jax.config.jax_compilation_cache_dir
    return [*SMALL, f"--config.compile_cache={cache}", f"--workdir={folder}", *more]


@pytest.fixture(scope="module")
def found(runs):
    folder = runs / "found"
    assert job(folder, f"--config.checkpoint={runs / 'resnet'}") == 0
    return folder, json.loads((folder / "result.json").read_text())


def test_every_feature_set_is_measured(found):
    _, result = found
    table = result["table"]
    assert list(table) == ["learned", "untrained", "pixels", "constant"]
    for name, row in table.items():
        for key in MEASURES:
            assert row[key] > 0 if key in ("rmse", "abs_rel") else 0 <= row[key] <= 1, (name, key)
        assert row["delta1"] <= row["delta2"] <= row["delta3"]
        assert list(row["iou"]) == list(scenes.CLASSES)
    assert result["miou"] == table["learned"]["miou"]
    assert result["rmse_pixels"] == table["pixels"]["rmse"]
    assert result["maps"] == {"shape": [14, 14, 8], "kept": "float32", "size": 28}
    assert (result["train_examples"], result["test_examples"]) == (40, 12)
    values = [table[name]["rmse"] for name in table]
    assert len(set(values)) == 4, "no feature set is another's"


def test_the_constant_is_that_of_the_scenes(found):
    _, result = found
    from ssl_jax.evaluate.features.encoder import subset

    learn = scenes.dense_labels("train", subset(100, 40), 28)
    judge = scenes.dense_labels("test", subset(25, 12), 28)
    mean = np.exp(np.log(learn["depth"]).mean())
    constant = result["table"]["constant"]
    rmse = np.sqrt(np.mean((judge["depth"] - mean) ** 2))
    assert constant["rmse"] == pytest.approx(rmse, rel=1e-4)
    assert np.bincount(learn["mask"].ravel()).argmax() == 0
    assert constant["pixel_accuracy"] == pytest.approx(np.mean(judge["mask"] == 0))
    assert constant["iou"]["disc"] == 0


def test_the_picture_shows_something(found):
    folder, _ = found
    pixels = np.asarray(Image.open(folder / "dense.png").convert("L"))
    assert min(pixels.shape) > 800 and pixels.std() > 30


def test_memory_or_not_the_numbers_are_the_same(found, runs, tmp_path):
    _, result = found
    checkpoint = f"--config.checkpoint={runs / 'resnet'}"
    assert job(tmp_path, checkpoint, "--config.cache_bytes=0", "--config.task=depth") == 0
    again = json.loads((tmp_path / "result.json").read_text())
    assert again["maps"]["kept"] == "no" and "miou" not in again and "iou" not in again["table"]
    assert again["rmse"] == pytest.approx(result["rmse"], rel=1e-4)
    assert again["rmse_untrained"] == pytest.approx(result["rmse_untrained"], rel=1e-4)


@pytest.mark.long
def test_a_vit_at_another_size_and_block_on_the_holdout(runs, tmp_path, monkeypatch, capsys):
    in_the_way = tmp_path / "dense.png.tmp"
    in_the_way.mkdir()
    monkeypatch.setattr(insist, "time", types.SimpleNamespace(sleep=lambda _: in_the_way.rmdir()))
    checkpoint = f"--config.checkpoint={runs / 'vit'}"
    more = ("--config.task=segment", "--config.data.size=32", "--config.stage=1")
    assert job(tmp_path, checkpoint, *more, "--config.split=holdout") == 0
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["maps"]["shape"] == [8, 8, 8] and found["maps"]["size"] == 32
    assert found["judged_on"] == "holdout" and "rmse" not in found and "miou_pixels" in found
    assert "dense.png is not saved (Is a directory)" in capsys.readouterr().err
    assert (tmp_path / "dense.png").is_file()


@pytest.mark.long
def test_two_processes_of_two_devices_find_the_same(found, runs, tmp_path):
    _, result = found
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    cluster = (f"--coordinator=localhost:{port}", "--processes=2", "--config.cpu_devices=2")
    more = arguments(tmp_path, f"--config.checkpoint={runs / 'resnet'}", *cluster)
    processes = [start(*more, f"--process={p}") for p in range(2)]
    outs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outs)
    assert "miou" in outs[0] and "miou" not in outs[1], "only process 0 talks"
    again = json.loads((tmp_path / "result.json").read_text())
    for key in MEASURES:
        assert again[key] == pytest.approx(result[key], rel=1e-3), key
    assert (tmp_path / "dense.png").is_file()


def start(*more):
    command = [sys.executable, "-m", "ssl_jax.main", *more]
    return subprocess.Popen(
        command,
        cwd=tiny_run.REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.parametrize(
    "checkpoint, more, message",
    [
        ("resnet", ("--config.task=segmant",), "Did you mean segment?"),
        ("resnet", ("--config.data.source=digits",), "only scenes"),
        ("resnet", ("--config.data.size=0",), "data.size is 0"),
        ("resnet", ("--config.stage=2",), "stage is 2; ResNet has 1 to 1"),
        ("resnet", ("--config.step_batch=0",), "step_batch is 0"),
        ("resnet", ("--config.ridges=(-1.0,)",), "--config.ridges is (-1.0,)"),
        (
            "resnet",
            ("--config.learning_rates=(0.0,)",),
            "--config.learning_rates is (0.01, 0.0); it takes numbers, above 0",
        ),
        ("vit", ("--config.data.size=30",), "multiple of 4"),
    ],
)
def test_a_mistake_is_one_line(runs, tmp_path, capsys, checkpoint, more, message):
    assert job(tmp_path, f"--config.checkpoint={runs / checkpoint}", *more) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
