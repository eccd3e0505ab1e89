"""The page of real runs: at the end of a run, and from folders alone."""

import json
import pathlib
import re
import shutil
import types

import jax
import numpy as np
import pytest
from kit import tiny_run

from ssl_jax.jobs import report as report_job
from ssl_jax.processes import insist
from ssl_jax.runs import workdir

PROBED = ("--config.train_examples=300", "--config.test_examples=100")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs that differ in their seed; the first wrote its page when it ended."""
    folder = tmp_path_factory.mktemp("report")
    few = ("--config.steps=3", "--config.evaluate.train_examples=300",
           "--config.evaluate.test_examples=100")  # fmt: skip
    assert tiny_run.run(folder / "0", *few, "--config.report=True") == 0
    assert tiny_run.run(folder / "1", *few, "--config.seed=1") == 0
    return folder


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    """A run of MAE on pictures without labels, of which there are few."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("mae")
    r = np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(40):
        noise = r.integers(0, 256, (20, 20), dtype=np.uint8)
        Image.fromarray(noise).save(folder / "pictures" / f"{i}.png")
    flags = [
        "--config=configs/mae.py:digits",
        f"--config.data.source=folder:{folder / 'pictures'}",
        "--config.batch=16",
        "--config.steps=1",
        "--config.log_every=1",
        "--config.model.depth=1",
        "--config.model.width=16",
        "--config.method.decoder.depth=1",
        "--config.method.decoder.width=8",
        "--config.cpu_devices=4",
        f"--config.compile_cache={jax.config.jax_compilation_cache_dir}",
        f"--workdir={folder / 'run'}",
    ]
    assert tiny_run.main.main(flags) == 0
    return folder


def report(names, *more):
    cache = jax.config.jax_compilation_cache_dir
    flags = ["--config=configs/report.py", f"--config.runs={names}", "--config.cpu_devices=4"]
    return tiny_run.main.main([*flags, f"--config.compile_cache={cache}", *PROBED, *more])


def data(file):
    """The text of a page and what is embedded in it."""
    text = file.read_text()
    block = text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    return text, json.loads(block)


def headings(text):
    return [part.split("</h2>")[0] for part in text.split("<h2>")[1:]]


FULL = ["Result", "Training", "Collapse monitors", "What the method measures", "Features",
        "Nearest neighbours", "Augmented views: both", "Commands"]  # fmt: skip


def test_a_run_ends_with_its_page(runs, capsys):
    text, found = data(runs / "0" / "report" / "index.html")
    assert headings(text) == FULL
    result = json.loads((runs / "0" / "result.json").read_text())
    assert f"{100 * result['knn_top1']:.1f}<small> %" in text and result["fingerprint"] in text
    plane = found["planes"]["run0"]
    tsne, pca, before = plane["places"]
    assert (tsne, before) == ("t-SNE", "before training (t-SNE)")
    assert re.fullmatch(r"PCA \(\d+ % \+ \d+ %\)", pca)
    assert len(plane["labels"]) == 100 and plane["names"] == [str(i) for i in range(10)]
    # Confusions of kNN say the same as its accuracy.
    assert f"{100 * result['knn_top1']:.1f} % of 100 are right" in text
    assert "--config simclr:digits" in text
    assert not (runs / "1" / "report").exists()
    assert tiny_run.run(runs / "1", "--config.steps=3", "--config.seed=1",
                        "--config.evaluate.train_examples=300",
                        "--config.evaluate.test_examples=100") == 0  # fmt: skip
    assert "index.html" not in capsys.readouterr().out  # it has none


def test_the_same_page_from_the_folder_alone_waits_for_the_disk(
    runs, tmp_path, monkeypatch, capsys
):
    in_the_way = tmp_path / "index.html.tmp"
    in_the_way.mkdir()
    monkeypatch.setattr(insist, "time", types.SimpleNamespace(sleep=lambda _: in_the_way.rmdir()))
    assert report(runs / "0", f"--workdir={tmp_path}") == 0
    said = capsys.readouterr()
    assert "index.html" in said.out
    (line,) = (line for line in said.err.splitlines() if "not saved" in line)
    assert f"{tmp_path / 'index.html'} is not saved (Is a directory); trying again in 1 s" in line
    text, found = data(tmp_path / "index.html")
    written, at_end = data(runs / "0" / "report" / "index.html")
    assert headings(text) == FULL
    assert found["charts"]["run0-training-0"] == at_end["charts"]["run0-training-0"]
    a, b = found["planes"]["run0"], at_end["planes"]["run0"]
    assert a["labels"] == b["labels"] and a["names"] == b["names"]
    # The encoder that was read back, and the untrained one that was made again, are the same.
    for spectrum in (d["charts"]["run0-collapse-4"]["series"] for d in (found, at_end)):
        assert [s["name"].split(":")[0] for s in spectrum] == ["untrained", "learned"]
    for i in (0, 1):
        mine, theirs = (d["charts"]["run0-collapse-4"]["series"][i]["y"] for d in (found, at_end))
        np.testing.assert_allclose(mine, theirs, rtol=1e-3)


def test_runs_side_by_side(runs, tmp_path):
    assert report(f"{runs / '0'},{runs / '1'}", f"--workdir={tmp_path}") == 0
    text, found = data(tmp_path / "index.html")
    assert {"Results", "Configs", "Training"} <= set(headings(text)) and "mean ± sd" in text
    assert "2 seeds of simclr" in text and "that differ" in text
    loss = next(c for c in found["charts"].values() if c["title"] == "Loss")
    assert [s["name"] for s in loss["series"]] == ["0", "1", "2 seeds of simclr, mean ± sd"]
    assert set(found["planes"]) == {"run0", "run1"}
    assert not (runs / "1" / "report").exists()


def test_an_unfinished_run_and_data_that_is_gone(runs, tmp_path, capsys):
    unfinished = tmp_path / "unfinished"
    shutil.copytree(runs / "0", unfinished)
    (unfinished / "result.json").unlink()
    lines = (unfinished / "metrics.jsonl").read_text().splitlines(keepends=True)
    (unfinished / "metrics.jsonl").write_text(lines[0])
    saved = json.loads((unfinished / "config.json").read_text())
    saved["config"]["data"]["source"] = "folder:/nowhere/<b>"
    (unfinished / "config.json").write_text(json.dumps(saved))
    assert report(unfinished) == 0
    text, found = data(unfinished / "report" / "index.html")
    assert "The run is not finished" in text and "No pictures:" in text
    assert "/nowhere/&lt;b&gt;" in text and "<b>" not in text.split("No pictures:")[1][:80]
    assert found["planes"] == {} and "1 of 3 steps" in text
    (loss,) = [c for c in found["charts"].values() if c["title"] == "Loss"]
    assert loss["series"][0]["x"] == [1]
    shutil.rmtree(unfinished / "checkpoints")
    assert report(unfinished) == 0  # nor a checkpoint
    assert "no finished checkpoint" in (unfinished / "report" / "index.html").read_text()


@pytest.mark.long
def test_mae_without_labels(mae, tmp_path):
    written, at_end = data(mae / "run" / "report" / "index.html")
    assert report(mae / "run", f"--workdir={tmp_path}") == 0
    text, found = data(tmp_path / "index.html")
    for page, plane in ((written, at_end), (text, found)):
        assert {"Reconstructions", "Attention", "Features", "Nearest neighbours"} <= set(
            headings(page)
        )
        assert "No labels, so no accuracies" in page and "Confusions" not in page
        assert set(plane["planes"]["run0"]["labels"]) == {-1}
        assert "same class" not in page


@pytest.mark.parametrize(
    "names, message",
    [
        ("", "which runs?"),
        ("{0}/nowhere", "there is no run in"),
        ("{0}/0,{0}/0", "2 times"),
    ],
)
def test_a_mistake_is_one_line(runs, capsys, names, message):
    assert report(names.format(runs)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_what_the_pictures_would_be_of_is_checked(runs, tmp_path, capsys):
    for more, message in (
        ("--config.split=tset", "Did you mean test?"),
        ("--config.batch=0", "--config.batch is 0"),
        ("--config.train_examples=0", "--config.train_examples is 0"),
    ):
        assert report(runs / "0", more) == 2
        assert message in capsys.readouterr().err
    tuned = tmp_path / "finetune"
    saved = workdir.read_config(runs / "0")
    job = {"config": {}, "classes": 10, "pretrained": workdir.described(tuned, saved)}
    workdir.write_json(tuned / "job.json", job)
    assert report(tuned) == 2
    assert "holds a fine-tuning; a page is of a pretraining run" in capsys.readouterr().err


def test_runs_in_folders_of_the_same_name_are_told_apart():
    def names(*folders):
        return report_job.names_of([pathlib.Path(folder) for folder in folders])

    assert names("/r/simclr/0", "/r/byol/1") == ["0", "1"]
    assert names("/r/simclr/0", "/r/byol/0", "/r/byol/1") == ["simclr/0", "byol/0", "1"]
    assert names("/a/simclr/0", "/b/simclr/0", "/b/x/0") == ["a/simclr/0", "b/simclr/0", "x/0"]
    assert names("/r/0", "/r/./0") == ["//r/0", "//r/0"]  # the same run twice


def test_the_style_and_the_script_are_installed():
    import configparser

    setup = configparser.ConfigParser()
    setup.read(pathlib.Path(__file__).parents[2] / "setup.cfg")
    listed = setup["options.package_data"]["ssl_jax.report"].replace(" ", "").split(",")
    folder = pathlib.Path(__file__).parents[2] / "ssl_jax" / "report"
    assert set(listed) == {f.name for f in folder.iterdir() if f.suffix not in (".py", "")}
