"""What happens to a workdir that holds a run already: gone on with, given way, extended."""

import json
import shutil

import jax
import numpy as np
import pytest
from kit import programs, tiny_run

from ssl_jax.checkpoints import kept
from ssl_jax.devices import layout
from ssl_jax.evaluate import monitors
from ssl_jax.evaluate.features import encoder
from ssl_jax.logs import metrics
from ssl_jax.train import loop

SHORT = ("--config.steps=4",)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def rates(folder):
    lines = metrics.read(folder / "metrics.jsonl")
    return {r["step"]: r["learning_rate"] for r in lines if "loss" in r}


@pytest.fixture
def run(tmp_path):
    tiny_run.finished(tmp_path / "run")
    return tmp_path / "run"


def losses(folder):
    return {r["step"]: r["loss"] for r in metrics.read(folder / "metrics.jsonl") if "loss" in r}


@pytest.mark.parametrize("schedule", ["cosine", pytest.param("constant", marks=pytest.mark.long)])
def test_a_finished_run_is_extended(tmp_path, schedule, capsys):
    """Tenths of the peak for 0.024 epochs of 250 steps; in one go or in two it is the same.

    In float64: the two are different programs, which round differently.
    """
    with programs.float64():
        assert_extended(tmp_path / "run", tmp_path / "whole", schedule, capsys)


def assert_extended(run, whole, schedule, capsys):
    short = (*SHORT, *tiny_run.FLOAT64)
    assert tiny_run.run(run, *short) == 0
    more = (*short, "--config.extend=0.024", f"--config.extend_schedule={schedule}")
    assert tiny_run.run(run, *more) == 0
    assert "10 steps of 16 images" in capsys.readouterr().out
    assert result(run)["steps"] == 10 and (run / "checkpoints" / "10").is_dir()
    peak, done = 6e-3, np.arange(6) / 6
    expected = 0.1 * peak * (1 + np.cos(np.pi * done)) / 2 if schedule == "cosine" else 0.1 * peak
    found = [rates(run)[step] for step in range(5, 11)]
    np.testing.assert_allclose(found, np.broadcast_to(expected, 6), rtol=1e-5, atol=1e-9)
    assert tiny_run.run(whole, *more) == 0
    assert losses(whole) == pytest.approx(losses(run), rel=1e-9) and len(losses(run)) == 10
    # Killed within its extension: the result is still that of four steps, and not the end.
    shutil.rmtree(run / "checkpoints" / "10")
    before = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**before, "steps": 4}))
    capsys.readouterr()
    assert tiny_run.run(run, *more) == 0
    assert "continuing at step" in capsys.readouterr().out
    assert result(run)["fingerprint"] == before["fingerprint"] and result(run)["steps"] == 10
    assert tiny_run.run(run, *more) == 0
    assert "is finished" in capsys.readouterr().out


@pytest.mark.long
def test_an_extended_run_has_another_target(tmp_path):
    """DINO's is what is probed, and its momentum ends at 1."""
    run = ("--config=configs/dino.py:digits", *tiny_run.arguments(tmp_path)[1:], *SHORT)
    run += ("--config.method.projector.out=64", "--config.recipe=keep")
    found = []
    for extend in (0.0, 0.1):
        assert tiny_run.main.main([*run, f"--config.extend={extend}"]) == 0
        params = encoder.restore(tmp_path, layout.mesh()).variables["params"]
        found.append(np.concatenate([np.ravel(x) for x in jax.tree.leaves(params)]))
    assert np.isfinite(found).all() and np.abs(found[1] - found[0]).max() > 1e-6


def test_a_state_beyond_the_end_is_no_result(run, capsys):
    """It stands within an extension that the command does not ask for."""
    (run / "checkpoints" / "4").rename(run / "checkpoints" / "9")
    (run / "result.json").unlink()
    assert tiny_run.run(run, *SHORT) == 2
    assert "stands at step 9, beyond its end, 4" in capsys.readouterr().err


def test_the_best_of_a_value_of_the_step(tmp_path):
    """Not of a monitor: there is none."""
    more = ("--config.checkpoint.best=min:loss", "--config.checkpoint.every_steps=2")
    assert tiny_run.run(tmp_path, *more, "--config.checkpoint.keep=1") == 0
    found = losses(tmp_path)
    there = kept.listed(tmp_path / "checkpoints")
    assert all(one.metrics["loss"] == pytest.approx(found[one.step]) for one in there)
    least = min(found[step] for step in range(2, 13, 2))
    assert found[kept.resolve(tmp_path / "checkpoints", "best", kept.parse("min:loss"))] == least


def test_a_checkpoint_has_what_was_measured_of_itself_and_of_no_other(tmp_path):
    """Or the best would be one that nobody has looked at."""
    more = ("--config.monitor.every_steps=4", "--config.checkpoint.every_steps=2")
    assert tiny_run.run(tmp_path, *more, "--config.steps=10", "--config.checkpoint.keep=9") == 0
    looked = {
        r["step"]: r["knn_top1"]
        for r in metrics.read(tmp_path / "metrics.jsonl")
        if "knn_top1" in r
    }
    there = {one.step: one.metrics for one in kept.listed(tmp_path / "checkpoints")}
    assert list(there) == [2, 4, 6, 8, 10] and list(looked) == [4, 8, 10]
    for step, found in there.items():
        assert found.get("knn_top1") == looked.get(step), step


def test_a_run_that_learned_nothing_gives_way(tmp_path, monkeypatch, capsys):
    """It failed before its first step; the flags are mended and it begins."""

    def fails(*args, **kwargs):
        raise RuntimeError("no step was made")

    with monkeypatch.context() as during:
        during.setattr(loop, "train", fails)
        with pytest.raises(RuntimeError):
            tiny_run.run(tmp_path, *SHORT, "--config.seed=3")
    assert (tmp_path / "config.json").exists()
    assert tiny_run.run(tmp_path, *SHORT, "--config.seed=4") == 0
    assert result(tmp_path)["seed"] == 4


def test_overwrite_deletes_a_run_of_other_values_and_continues_one_of_the_same(run, capsys):
    (run / "notes.txt").write_text("mine")
    other = (*SHORT, "--config.seed=9")
    assert tiny_run.run(run, *other) == 2
    assert "--overwrite" in capsys.readouterr().err and result(run)["seed"] == 0
    assert tiny_run.run(run, *other, "--overwrite", "--config.data.source=folder:/no/such") == 2
    assert tiny_run.run(run, *other, "--overwrite", "--config.batch=100000") == 2
    assert result(run)["seed"] == 0, "what cannot begin costs the run that is there nothing"
    assert tiny_run.run(run, *other, "--overwrite") == 0
    assert result(run)["seed"] == 9 and (run / "notes.txt").read_text() == "mine"
    assert list(rates(run)) == [1, 2, 3, 4]
    capsys.readouterr()
    assert tiny_run.run(run, *other, "--overwrite") == 0
    assert "is finished" in capsys.readouterr().out


def test_a_monitor_that_fails_costs_no_training(tmp_path, monkeypatch, capsys):
    def broken(*args):
        raise ZeroDivisionError("no votes")

    monkeypatch.setattr(monitors.knn, "classify", broken)
    assert tiny_run.run(tmp_path, *SHORT, "--config.monitor.every_steps=2") == 0
    said = capsys.readouterr()
    assert "monitor 'knn' failed at step 2 (ZeroDivisionError: no votes)" in said.err
    found = result(tmp_path)
    assert found["steps"] == 4 and (tmp_path / "checkpoints" / "4").is_dir()
    assert found["knn_top1"] is None and found["linear_top1"] > 0.1
    assert "ZeroDivisionError: no votes" in found["problems"]["learned"]
    shutil.rmtree(tmp_path)
