"""The whole road: a run that ends, one that is stopped, killed, continued, probed, refused."""

import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from kit import tiny_run

from ssl_jax.errors import UserError
from ssl_jax.evaluate.health import collapse
from ssl_jax.logs import metrics
from ssl_jax.report import collect, page
from ssl_jax.report import run as report
from ssl_jax.runs import workdir


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that nobody disturbed, with its report."""
    folder = tmp_path_factory.mktemp("run")
    assert tiny_run.run(folder, "--config.report=True", "--config.monitor.every_steps=6") == 0
    return folder


def result(folder):
    return json.loads((folder / "result.json").read_text())


def wait_for(path, process, seconds=120):
    """Waits until the running process has made `path`."""
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.time() < end, f"{path} did not come within {seconds} s"
        time.sleep(0.01)


def test_a_run_leaves_all_that_is_promised(finished):
    r = result(finished)
    assert 2**27 < r["peak_memory_bytes"] < 2**35
    assert r["images_per_second"] > 0 and r["wall_seconds"] > 0 and r["seed"] == 0
    assert "digits" in r["dataset"] and 0.1 < r["knn_top1"] <= 1 and 0.1 < r["linear_top1"] <= 1
    assert (r["job"], r["method"], r["steps"], r["batch"]) == ("pretrain", "simclr", 12, 64)
    for baseline in ("pixels", "untrained"):
        for accuracy in ("knn_top1", "linear_top1"):
            assert 0.1 < r["baselines"][baseline][accuracy] <= 1
    assert r["collapse"]["feature_std"] > 0 and r["collapse"]["effective_rank"] > 1
    assert r["collapse"]["embedding_std"] > 0 and r["collapse"]["embedding_rank"] >= 1
    assert len(r["fingerprint"]) == 64
    assert r["made_with"]["devices"] == 4 and r["made_with"]["jax"] == jax.__version__
    records = metrics.read(finished / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, 13))
    assert [r["step"] for r in records if "knn_top1" in r] == [6, 12]
    assert list(finished.glob("events.out.tfevents.*"))
    for picture in ("curves", "views", "embedding", "spectrum", "summary"):
        assert (finished / "report" / f"{picture}.png").stat().st_size > 5_000


def test_online_probes_do_not_touch_the_run(finished, tmp_path):
    """The same state to the bit with and without kNN and linear probe on the way."""
    assert tiny_run.run(tmp_path, "--config.monitor.linear=0.0") == 0
    assert result(tmp_path)["fingerprint"] == result(finished)["fingerprint"]
    with_probe, without = (metrics.read(f / "metrics.jsonl") for f in (finished, tmp_path))
    probed = [r["linear_top1"] for r in with_probe if "linear_top1" in r]
    assert len(probed) == 2 and all(0.2 < p <= 1 for p in probed)
    # C is fixed, and the final probe chooses: close, not equal.
    assert abs(probed[-1] - result(finished)["linear_top1"]) < 0.1
    assert not any("linear_top1" in r for r in without)


def test_a_finished_run_says_so_and_changes_nothing(finished, capsys):
    before = result(finished)
    assert tiny_run.run(finished, "--config.report=True", "--config.monitor.every_steps=6") == 0
    out = capsys.readouterr().out
    assert "is finished" in out and "learned features" in out
    assert result(finished) == before


def changes(content, path=()):
    """Every field of a result missing, and of other kinds: (path, a copy of the whole) each."""
    for key, value in content.items():
        yield (*path, key), {k: v for k, v in content.items() if k != key}
        for odd in (None, "x", [], {"x": []}, 10**400, float("nan")):
            yield (*path, key), {**content, key: odd}
        if isinstance(value, dict):
            for where, inner in changes(value, (*path, key)):
                yield where, {**content, key: inner}


def test_a_result_with_a_broken_field_is_one_line(finished, tmp_path, capsys):
    """Whatever a field holds, the console and the page take it, or one line names the file."""
    folder, refused = tmp_path / "run", set()
    folder.mkdir()
    shutil.copy(finished / "config.json", folder)
    for path, content in changes(result(finished)):
        (folder / "result.json").write_text(json.dumps(content))
        try:
            found = workdir.read_result(folder)
        except UserError as error:
            assert "\n" not in str(error) and "result.json is damaged (" in str(error)
            assert "move it away" in str(error)
            refused.add(path)
        else:
            assert path == ("fingerprint",) or found is not None
            if found is not None:
                report.text(found, folder)
                page.render([collect.run_of(folder, None)])
    assert {("steps",), ("collapse",), ("baselines", "pixels", "knn_top1")} <= refused
    (folder / "result.json").write_text(json.dumps({**result(finished), "collapse": 3}))
    assert "collapse is 3" in page.render([collect.run_of(folder, None)])
    assert tiny_run.run(folder, "--config.report=True", "--config.monitor.every_steps=6") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "collapse is 3" in error and error.count("\n") == 1


def test_another_config_in_the_same_workdir_is_refused(finished, capsys):
    assert tiny_run.run(finished, "--config.optimizer.learning_rate=0.5") == 2
    err = capsys.readouterr().err
    assert "differs in optimizer.learning_rate" in err and "--workdir" in err


def test_a_run_older_than_a_field_goes_on_as_it_began(finished, tmp_path, capsys):
    """As after an upgrade: what its config does not name, it did as the preset says."""
    old = tmp_path / "old"
    shutil.copytree(finished, old)
    content = json.loads((old / "config.json").read_text())
    del content["config"]["method"]["encoder_rows"], content["config"]["optimizer"]["momentum"]
    (old / "config.json").write_text(json.dumps(content))
    assert tiny_run.run(old) == 0 and "is finished" in capsys.readouterr().out
    assert tiny_run.run(old, "--config.method.encoder_rows=8") == 2
    assert "differs in method.encoder_rows;" in capsys.readouterr().err


def test_the_same_seed_gives_the_same_fingerprint_and_another_one_another(finished, tmp_path):
    assert tiny_run.run(tmp_path / "same") == 0
    assert tiny_run.run(tmp_path / "other", "--config.seed=1") == 0
    assert result(tmp_path / "same")["fingerprint"] == result(finished)["fingerprint"]
    assert result(tmp_path / "other")["fingerprint"] != result(finished)["fingerprint"]


@pytest.mark.parametrize("mode", ["pmap", pytest.param("jit", marks=pytest.mark.long)])
def test_the_other_mappings_end_at_the_same_loss(finished, tmp_path, mode):
    assert tiny_run.run(tmp_path, f"--config.parallel={mode}", "--config.steps=4") == 0
    tiny_run.finished(tmp_path / "default")
    mapped, default = (
        [r["loss"] for r in metrics.read(f / "metrics.jsonl") if "loss" in r]
        for f in (tmp_path, tmp_path / "default")
    )
    np.testing.assert_allclose(mapped, default, rtol=1e-3)  # AdamW magnifies rounding


@pytest.mark.parametrize(
    ("how", "after"),
    [
        pytest.param(signal.SIGTERM, "metrics.jsonl", marks=pytest.mark.long),
        (signal.SIGKILL, "checkpoints/4"),
    ],
)
def test_stopped_or_killed_and_continued_is_as_never_stopped(finished, tmp_path, how, after):
    process = tiny_run.start(tmp_path)
    wait_for(tmp_path / after, process)
    process.send_signal(how)
    out, _ = process.communicate(timeout=120)
    if how == signal.SIGTERM:
        assert process.returncode == 143, out
        assert "the same command continues" in out
    again = tiny_run.start(tmp_path)
    out, _ = again.communicate(timeout=240)
    assert again.returncode == 0, out
    assert "continuing at step" in out
    assert result(tmp_path)["fingerprint"] == result(finished)["fingerprint"]
    steps = [r["step"] for r in metrics.read(tmp_path / "metrics.jsonl") if "loss" in r]
    assert steps == list(range(1, 13)), "every step once"


def test_a_collapse_is_said_aloud_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collapse, "EMBEDDING_STD", 2.0)  # no embeddings are spread so far
    assert tiny_run.run(tmp_path, "--config.steps=4") == 0
    said = capsys.readouterr()
    assert "ALARM at step 4: complete collapse of the embeddings" in said.err
    assert "ALARM: complete collapse of the embeddings" in said.out
    assert result(tmp_path)["collapse"]["alarm"].startswith("complete collapse of the embeddings")


def test_a_last_step_that_was_skipped_does_not_spoil_the_result(tmp_path):
    tiny_run.finished(tmp_path)
    want = result(tmp_path)["collapse"]
    records = [r for r in metrics.read(tmp_path / "metrics.jsonl") if "loss" in r]
    nothing = {"embedding_std": float("nan"), "embedding_rank": float("nan")}
    with metrics.Metrics(tmp_path / "metrics.jsonl", 4) as file:
        file.write(4, {**records[-1], **nothing})
    (tmp_path / "result.json").unlink()
    assert tiny_run.run(tmp_path, "--config.steps=4") == 0
    collapse = result(tmp_path)["collapse"]
    assert collapse["embedding_std"] == pytest.approx(records[-2]["embedding_std"])
    assert collapse["feature_std"] == want["feature_std"] and collapse["alarm"] == want["alarm"]


@pytest.mark.parametrize("job", ["knn", "linear"])
def test_probing_the_checkpoint_gives_the_number_of_the_run(finished, job, capsys):
    probe = [
        f"--config=configs/{job}.py",
        f"--config.checkpoint={finished}",
        "--config.train_examples=500",
        "--config.test_examples=200",
        "--config.cpu_devices=4",
        "--config.compile_cache=",
    ]
    assert tiny_run.main.main(probe) == 0
    probed = result(finished / job)
    assert probed[f"{job}_top1"] == result(finished)[f"{job}_top1"]
    assert probed[f"{job}_top1"] <= probed[f"{job}_top5"] <= 1 and probed["step"] == 12
    assert f"{job} on digits" in capsys.readouterr().out


def test_probing_nothing_is_one_line(tmp_path, capsys):
    probe = ["--config=configs/knn.py", f"--config.checkpoint={tmp_path}", "--config.cpu_devices=4"]
    assert tiny_run.main.main(probe) == 2
    assert "there is no run in" in capsys.readouterr().err


def test_a_batch_that_the_devices_cannot_share_is_one_line(tmp_path, capsys):
    assert tiny_run.run(tmp_path / "run", "--config.batch=66") == 2
    err = capsys.readouterr().err
    assert "does not divide over 4 devices" in err and err.count("\n") == 1
    assert "1, 2, 3, 6, 11, 22, 33 devices would share it" in err and "multiple of 4" in err
    assert not (tmp_path / "run").exists()
