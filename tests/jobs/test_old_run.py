"""A run that an older version made is probed, continued and shown as if it were of today."""

import json
import pathlib
import shutil
import tarfile

import pytest
from kit import tiny_run

from ssl_jax.logs import metrics
from ssl_jax.train import past

ARCHIVE = pathlib.Path(__file__).parents[1] / "golden" / "old_run.tar.gz"
SAME = ("--config.monitor.every_steps=4",)


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "old_run"


def result(folder):
    return json.loads((folder / "result.json").read_text())


def test_it_is_probed(old):
    assert tiny_run.probe("knn", old) == 0
    found = result(old / "knn")
    # Another processor may round a few of the 200 test images to the other side.
    assert found["step"] == 12 and abs(found["knn_top1"] - result(old)["knn_top1"]) < 0.05
    assert tiny_run.probe("knn", old, "--config.step=best") == 0
    assert tiny_run.probe("knn", old, "--config.features=untrained") == 0


def test_it_says_that_it_is_finished(old, capsys):
    before = result(old)
    assert tiny_run.run(old, *SAME) == 0
    assert "is finished. Its result" in capsys.readouterr().out and result(old) == before


def test_it_continues(old, capsys):
    """As if it had been stopped after step 8: to the same end, but for rounding."""
    then, loss = result(old), metrics.read(old / "metrics.jsonl")
    (old / "result.json").unlink()
    shutil.rmtree(old / "checkpoints" / "12")
    assert tiny_run.run(old, *SAME) == 0
    assert "continuing at step 8" in capsys.readouterr().out
    now = {r["step"]: r["loss"] for r in metrics.read(old / "metrics.jsonl") if "loss" in r}
    assert sorted(now) == list(range(1, 13))
    for step, value in {r["step"]: r["loss"] for r in loss if "loss" in r}.items():
        assert now[step] == pytest.approx(value, rel=1e-2), step
    assert result(old)["steps"] == 12
    assert abs(result(old)["knn_top1"] - then["knn_top1"]) < 0.05


def test_it_has_a_page(old, tmp_path):
    more = (f"--config.runs={old}", f"--workdir={tmp_path / 'page'}")
    arguments = ["--config=report", *more, "--config.train_examples=500", "--config.cpu_devices=4"]
    assert tiny_run.main.main([*arguments, "--config.test_examples=200"]) == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "simclr" in page and "No pictures" not in page


def test_a_warm_up_to_the_end_of_it_is_kept(old):
    """Today's default refuses it; a run that began so goes on so."""
    file = old / "config.json"
    assert past.read(old).config.recipe == "refuse", "nothing of it is too long"
    content = json.loads(file.read_text())
    content["config"]["optimizer"].update(warmup_epochs=3.0, warmup_fraction=0.0)
    file.write_text(json.dumps(content))
    assert past.read(old).config.recipe == "keep"
    # The command that it began with: `recipe` is younger.
    (old / "result.json").unlink()
    shutil.rmtree(old / "checkpoints" / "12")
    long = ("--config.optimizer.warmup_epochs=3.0", "--config.optimizer.warmup_fraction=0.0")
    assert tiny_run.run(old, *SAME, *long) == 0
    assert result(old)["steps"] == 12
