"""The small files of a run: what is no run's is one line, and a result waits for the disk."""

import errno
import json
import os
import types

import numpy as np
import pytest
from kit import tiny_run

from ssl_jax.contract.method import Run
from ssl_jax.errors import UserError
from ssl_jax.evaluate.finetuning import start
from ssl_jax.logs import metrics
from ssl_jax.processes import insist
from ssl_jax.runs import config as configs
from ssl_jax.runs import workdir

ODD = ([], ["config"], "config", 3, None, {"config": ["x"]}, {"config": "x"}, {"config": None})


@pytest.mark.parametrize("content", ODD, ids=repr)
def test_json_of_another_kind_is_one_line(content, tmp_path):
    for name in ("config.json", "job.json", "result.json"):
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"^\S+config.json is damaged \(.*\); use another") as found:
        workdir.read_config(tmp_path)
    assert "\n" not in str(found.value)
    assert workdir.read_result(tmp_path) is None

    config, _ = configs.load("configs/finetune.py")
    opened = types.SimpleNamespace(
        folder=tmp_path,
        run=tmp_path / "run",
        restored=types.SimpleNamespace(step=1),
        learn=types.SimpleNamespace(source=types.SimpleNamespace(name="digits", identity="")),
    )
    manager = types.SimpleNamespace(latest_step=lambda: 1)
    with pytest.raises(UserError, match=r"^\S+job.json is damaged \(.*\); choose") as found:
        start.claim(config, opened, Run(64, 64, 1, 1), manager)
    assert "\n" not in str(found.value)


def test_facts_of_a_source_are_read_back_from_a_run_and_from_a_fine_tuning_of_it(tmp_path):
    """A method may need them to be built: the size of a vocabulary, counts of words."""
    config, _ = configs.load("simclr:digits")
    facts = {"vocabulary_size": 7, "counts": np.arange(7)}
    saved = workdir.Saved(config, Run(64, 32, 2, 4, facts=facts), 1)
    workdir.write_config(tmp_path / "run", saved)
    own, folder = {"seed": 3}, tmp_path / "finetune"
    pretrained = workdir.described(folder, saved)
    workdir.write_json(
        folder / "job.json", {"config": own, "classes": 10, "pretrained": pretrained}
    )
    for place in (tmp_path / "run", folder):
        read = workdir.read_config(place)
        assert read.run._replace(facts={}, fields={}) == saved.run._replace(facts={}, fields={})
        assert int(read.run.facts["vocabulary_size"]) == 7
        np.testing.assert_array_equal(read.run.facts["counts"], facts["counts"])
        (place / "facts.npz").write_bytes(b"torn")
        with pytest.raises(UserError, match=r"^\S+(config|job).json is damaged"):
            workdir.read_config(place)


@pytest.mark.parametrize("content", [*ODD, {"step": "1"}, {"step": 1, "nonfinite": [1]}], ids=repr)
def test_a_line_of_metrics_of_another_kind_is_one_line(content, tmp_path):
    file, good = tmp_path / "metrics.jsonl", '{"step": 1, "loss": 2.0}\n'
    file.write_text(json.dumps(content) + "\n" + good)
    with pytest.raises(UserError, match="metrics.jsonl, line 1: no line of metrics"):
        metrics.read(file)
    with metrics.Metrics(file, 2):
        pass
    assert file.read_text() == good


def test_a_result_waits_for_the_disk_then_gives_up(tmp_path, monkeypatch, capfd):
    file, waited, made = tmp_path / "job" / "result.json", [], []

    def make():
        made.append(len(made))
        if len(made) == 1:  # a picture beside it
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return {"made": len(made)}

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            (tmp_path / "job").unlink()

    (tmp_path / "job").touch()  # where a folder belongs
    monkeypatch.setattr(insist, "time", types.SimpleNamespace(sleep=sleep))
    assert workdir.write_result(file, make) == {"made": 3} == json.loads(file.read_text())
    assert waited == [1, 2]
    first, second = capfd.readouterr().err.splitlines()
    assert f"{file} is not saved (No space left on device); trying again in 1 s" == first
    assert "(File exists)" in second

    def broken(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(workdir.os, "replace", broken)
    with pytest.raises(UserError, match="result.json could not be saved for 10 minutes .broken.;"):
        workdir.write_result(file, dict)
    assert sum(waited[2:]) == 600
    assert json.loads(file.read_text()) == {"made": 3}, "the old one stays"


def test_pictures_wait_for_the_disk_all_or_none_torn(tmp_path, monkeypatch, capfd):
    files = {tmp_path / name: name.encode() for name in ("a.png", "b.png", "c.png")}
    in_the_way = tmp_path / "b.png.tmp"
    in_the_way.mkdir()
    monkeypatch.setattr(insist, "time", types.SimpleNamespace(sleep=lambda _: in_the_way.rmdir()))
    workdir.write_files(tmp_path, files, "the page shows the same")
    assert {f: f.read_bytes() for f in sorted(tmp_path.iterdir())} == files
    assert f"{tmp_path} is not saved (Is a directory); trying again" in capfd.readouterr().err


def test_runs_and_jobs_wait_with_their_result(tmp_path, monkeypatch, capsys):
    in_the_way = [tmp_path / "result.json.tmp", tmp_path / "knn" / "result.json.tmp"]

    def sleep(seconds):
        in_the_way.pop(0).rmdir()

    for folder in in_the_way:
        folder.mkdir(parents=True)
    monkeypatch.setattr(insist, "time", types.SimpleNamespace(sleep=sleep))
    assert tiny_run.run(tmp_path, "--config.steps=4") == 0
    assert tiny_run.probe("knn", tmp_path) == 0
    assert not in_the_way and workdir.read_result(tmp_path)["steps"] == 4
    assert json.loads((tmp_path / "knn" / "result.json").read_text())["job"] == "knn"
    said = capsys.readouterr().err
    assert said.count("trying again in 1 s") == 2 and said.count("Is a directory") == 2
