"""The transfer job on a finished run."""

import json

import cv2
import numpy as np
import pytest
from kit import tiny_run

from ssl_jax.data import sources
from ssl_jax.errors import UserError
from ssl_jax.evaluate import multilabel
from ssl_jax.jobs import transfer
from ssl_jax.runs import config as configs


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer") / "run"
    tiny_run.finished(folder)
    return folder


def probe(checkpoint, *more, job="transfer"):
    return tiny_run.probe(job, checkpoint, *more)


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Digits with three labels each: even, has a loop (unknown for fours), above four."""
    root = tmp_path_factory.mktemp("several")
    lines = ["file,even,loop,big"]
    data = configs.defaults().data
    for split, n in (("train", 120), ("test", 60)):
        (root / split).mkdir()
        rows = sources.open_source(data, split).read(np.arange(n))
        for i, (image, label) in enumerate(zip(rows["image"], rows["label"], strict=True)):
            name = f"{split}/{i:03}.png"
            cv2.imwrite(str(root / name), image[:, :, 0])
            loop = -1 if label == 4 else int(label in (0, 6, 8, 9))
            lines.append(f"{name},{int(label % 2 == 0)},{loop},{int(label > 4)}")
    lines = [line for line in lines if "train/000" not in line]  # a picture without labels
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def test_one_table(finished, several, tmp_path, capsys):
    given = (
        "--config.sources=digits, synthetic",
        f"--config.multilabel={several / 'labels.csv'}",
        "--config.costs=(0.1, 10.0)",
        "--config.data.test_split=test",
    )
    assert probe(finished, *given, f"--workdir={tmp_path}") == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "result.json").read_text())
    digits, noise, multi = found["table"]
    assert digits["name"] == "digits" and noise["name"] == "synthetic"
    assert digits["judged_on"] == "test" and digits["test_examples"] == 200
    assert found["linear_top1_digits"] == digits["linear_top1"]
    assert found["linear_top1_mean"] == (digits["linear_top1"] + noise["linear_top1"]) / 2
    # Noise has no classes to be found; digits have.
    assert noise["linear_top1"] < 0.3 < digits["linear_top1"]
    assert abs(digits["per_class_accuracy"] - digits["linear_top1"]) < 0.1
    assert (multi["train_examples"], multi["test_examples"]) == (119, 60)
    assert set(multi["ap"]) == {"even", "loop", "big"}
    key = f"mean_ap_{several.name}"
    assert found[key] == multi["mean_ap"] == np.mean(list(multi["ap"].values()))
    assert 0.5 < found[key] <= 1 and 0.5 < multi["mean_ap_11point"] <= 1
    for text in ("data set", "digits", "synthetic", "mean", "mAP", f"{100 * found[key]:.2f}"):
        assert text in out

    # The rows of the table are what the other jobs find.
    assert probe(finished, job="linear") == 0 and probe(finished, job="knn") == 0
    line, near = (
        json.loads((finished / job / "result.json").read_text()) for job in ("linear", "knn")
    )
    assert line["linear_top1"] == digits["linear_top1"]
    assert near["knn_top1"] == digits["knn_top1"]


@pytest.mark.parametrize(
    "job", ["transfer", *(pytest.param(j, marks=pytest.mark.long) for j in ("dense", "report"))]
)
def test_a_checkpoint_by_its_path(finished, job, tmp_path):
    more = {
        "transfer": ("--config.sources=digits",),
        "dense": ("--config.task=depth", "--config.data.size=28"),
    }
    path = finished / "checkpoints" / "4"
    if job == "report":
        given = [f"--config=configs/{job}.py", f"--config.runs={path}", "--config.cpu_devices=4"]
        assert tiny_run.main.main([*given, f"--workdir={tmp_path}"]) == 0
        assert "simclr" in (tmp_path / "index.html").read_text()
        return
    assert probe(path, *more[job], job=job) == 0
    (found,) = finished.glob(f"{job}_4*/result.json")
    assert json.loads(found.read_text())["checkpoint"] == str(finished)


def test_names_of_data_sets():
    config, _ = configs.load("configs/transfer.py")
    config.sources = "digits, folder:/a/flowers/,tfds:cifar10"
    assert transfer.named(config) == {
        "digits": "digits",
        "flowers": "folder:/a/flowers/",
        "cifar10": "tfds:cifar10",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "names the classes"),
        ("file\na.png", "names the classes"),
        ("file,a,a\n", "each once"),
        ("file,a,b\nx.png,1", "entry 2 (x.png): it takes 2 values"),
        ("file,a\nx.png,2", "1, 0 or -1"),
        ("file,a\nx.png,1\n./x.png,0", "twice"),
        ("file,a\n", "only a first line"),
    ],
)
def test_a_broken_csv_is_one_line(tmp_path, text, message):
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        multilabel.read_targets(file)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_csv_as_spreadsheets_write_it(tmp_path):
    file = tmp_path / "labels.csv"
    file.write_bytes('\ufefffile, cat ,dog\r\n"a, b.png",1, -1\r\n\r\n'.encode())
    assert multilabel.read_targets(file) == (("cat", "dog"), {"a, b.png": [1, -1]})


@pytest.mark.parametrize(
    "more, message",
    [
        ((), "which data sets?"),
        (("--config.sources=digits,digits",), "both called digits"),
        (("--config.data.source=digits",), "--config.sources=digits in place of"),
        (("--config.sources=digits", "--config.classifier=svc"), "Did you mean svm?"),
        (("--config.sources=digits,",), "nothing before or after a comma"),
        (("--config.sources=digits", "--config.folds=1"), "--config.folds is 1"),
        (("--config.sources=digits", "--config.costs=(-1.0,)"), "--config.costs is (-1.0,)"),
        (("--config.sources=digts",), "Unknown data.source='digts'"),
        (("--config.multilabel=/nowhere/labels.csv",), "cannot read /nowhere/labels.csv"),
    ],
)
def test_a_mistake_is_one_line(finished, capsys, more, message):
    assert probe(finished, *more) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_csv_that_names_missing_pictures(finished, several, capsys):
    other = several / "other.csv"
    other.write_text("file,a\ntrain/001.png,1\ntrain/nothing.png,0\n")
    assert probe(finished, f"--config.multilabel={other}") == 2
    assert "1 pictures that are not there: train/nothing.png" in capsys.readouterr().err
