"""Runs whose images stay in device memory, in calls of several steps."""

import json
import shutil
import signal
import threading
import types

import jax
import numpy as np
import pytest
from kit import kills, programs, tiny_run

from ssl_jax.checkpoints import reading
from ssl_jax.checkpoints import store as checkpoint
from ssl_jax.data import resident
from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.evaluate import monitors
from ssl_jax.logs import metrics
from ssl_jax.processes import host
from ssl_jax.runs import config as configs
from ssl_jax.runs import workdir
from ssl_jax.train import experiment, loop, stopping

# The last call has two steps.
RUN = (
    "--config.steps=14",
    "--config.log_every=4",
    "--config.monitor.every_steps=4",
    "--config.checkpoint.every_steps=8",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.0005",
    "--config.optimizer.momentum=0.0",
)
CALLS = (*RUN, "--config.data.resident=True", "--config.steps_at_once=4")
ALONE = host.Cluster(1, 0, 1)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resident")
    assert tiny_run.run(folder, *CALLS) == 0
    return folder


def fingerprint(folder):
    return json.loads((folder / "result.json").read_text())["fingerprint"]


def records(folder, key):
    return [r for r in metrics.read(folder / "metrics.jsonl") if key in r]


def parameters(folder):
    config = workdir.read_config(folder).config
    like = experiment.like(experiment.assemble(config, ALONE, None))
    with checkpoint.open_manager(folder / "checkpoints", 2, read_only=True) as manager:
        return jax.tree.leaves(reading.restore(manager, 14, like).params)


@pytest.mark.long
def test_it_learns_what_the_ordinary_run_learns_and_logs_at_the_same_steps(tmp_path):
    """In float64: two programs round alike on no processor."""
    folders = tmp_path / "calls", tmp_path / "steps"
    with programs.float64():
        for folder, given in zip(folders, (CALLS, RUN), strict=True):
            assert tiny_run.run(folder, *given, "--config.model.dtype=float64") == 0
        for found, want in zip(*map(parameters, folders), strict=True):
            np.testing.assert_allclose(found, want, rtol=1e-9, atol=1e-12)
    ours, theirs = (records(f, "loss") for f in folders)
    assert [r["step"] for r in ours] == [r["step"] for r in theirs] == [4, 8, 12, 14]
    for name in ("loss", "gradient_norm", "embedding_std", "learning_rate"):
        np.testing.assert_allclose(*([r[name] for r in rs] for rs in (ours, theirs)), rtol=1e-6)
    looked = [[r["step"] for r in records(f, "knn_top1")] for f in folders]
    assert looked == [[4, 8, 12, 14]] * 2


@pytest.mark.long
def test_stopped_and_continued_is_as_never_stopped(undisturbed, tmp_path, monkeypatch, capsys):
    look = monitors.look

    def asked(e, encode, state):
        signal.raise_signal(signal.SIGTERM)  # before the monitor, which comes after step 4
        return look(e, encode, state)

    with monkeypatch.context() as during:
        during.setattr(monitors, "look", asked)
        assert tiny_run.run(tmp_path, *CALLS) == stopping.EXIT_STOPPED
    said = capsys.readouterr().out
    assert "stopped and saved at step 4" in said
    assert "images in device memory, 3.1 MB on every device; calls of 4 steps" in said
    assert tiny_run.run(tmp_path, *RUN) == 0  # what is left open is as before
    said = capsys.readouterr().out
    assert "continuing at step 4" in said and "calls of 4 steps" in said
    assert fingerprint(tmp_path) == fingerprint(undisturbed)
    assert [r["step"] for r in records(tmp_path, "loss")] == [4, 8, 12, 14]


@pytest.mark.long
def test_two_processes_stop_after_the_same_call(tmp_path):
    endless = (
        *("--config.steps=100000", "--config.batch=16", "--config.cpu_devices=2"),
        *("--config.data.resident=True", "--config.checkpoint.every_steps=0"),
        "--config.log_every=5",
    )
    processes = tiny_run.start_several(2, tmp_path, *endless)
    kills.wait(processes, lambda: kills.logged(tmp_path), 300)
    processes[1].send_signal(signal.SIGTERM)
    codes, outs = tiny_run.finish(processes)
    assert codes == [stopping.EXIT_STOPPED] * 2, "\n".join(outs)
    (saved,) = kills.saved(tmp_path)
    assert f"stopped and saved at step {saved}" in outs[0] and "calls of 5 steps" in outs[0]
    logged = [r["step"] for r in records(tmp_path, "loss")]
    assert logged == list(range(5, saved + 1, 5)) and saved % 5 == 0


@pytest.mark.parametrize("at_once", [1, 5])
def test_processes_agree_on_a_step_that_none_has_passed(at_once, monkeypatch):
    """Calls that are queued may be under way already; then comes the end of the one after them."""
    from jax._src import distributed

    store = {}

    def get(key):
        if key not in store:
            raise jax.errors.JaxRuntimeError("not found")
        return store[key]

    client = types.SimpleNamespace(
        key_value_try_get=get,
        key_value_set=store.setdefault,
        wait_at_barrier=lambda key, milliseconds: None,
    )
    monkeypatch.setattr(distributed.global_state, "client", client)
    asked = threading.Event()
    asked.set()
    with stopping.agreement(asked, "run", at_once) as stop:
        ends = [20 + at_once * calls for calls in range(5)]
        assert [stop(done) for done in ends] == [False] * (1 + loop.IN_FLIGHT) + [True, True]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("steps_at_once=4",), "steps_at_once=4 needs the images in device memory"),
        (("steps_at_once=4", "data.resident=False"), "needs the images in device memory"),
        (("steps_at_once=0",), "steps_at_once is 0; it must be at least 1"),
        (("steps_at_once=8", "data.resident=True"), "log_every=4 is not a multiple of the 8 steps"),
        (
            ("steps_at_once=4", "data.resident=True", "checkpoint.every_steps=6"),
            "checkpoint.every_steps=6 is not a multiple of the 4 steps",
        ),
    ],
)
def test_a_call_that_cannot_be_is_one_line(tmp_path, capsys, flags, message):
    folder = tmp_path / "run"
    assert tiny_run.run(folder, *RUN, *(f"--config.{flag}" for flag in flags)) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not folder.exists()


def test_a_run_that_stands_within_a_call_is_not_continued_so(undisturbed, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(undisturbed, folder)
    shutil.rmtree(folder / "checkpoints" / "14")
    (folder / "result.json").unlink()
    every = ("log_every", "monitor.every_steps", "checkpoint.every_steps")
    more = [f"--config.{field}=6" for field in every]
    assert tiny_run.run(folder, *CALLS, *more, "--config.steps_at_once=6") == 2
    err = capsys.readouterr().err
    assert "stands at step 8, where no call of 6 steps begins" in err and err.count("\n") == 1
    assert "--config.steps_at_once=1 continues it" in err


@pytest.fixture(scope="module")
def assembled():
    config, _ = configs.load("configs/simclr.py:digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "set_cpu_devices", lambda n: None)
        config.update(batch=64, steps=12, compile_cache="")
        return experiment.assemble(config, ALONE, None)


def settled(assembled, saved=None, **given):
    """(resident, steps at once) of a config with these fields."""
    config = assembled.config.copy_and_resolve_references()
    config.data.resident = given.pop("resident", None)
    config.update(given)
    if saved is not None:
        saved = workdir.Saved(saved, assembled.run, 4)
    c = experiment.settle(assembled._replace(config=config), saved).config
    return c.data.resident, c.steps_at_once


def before(assembled, resident, k):
    config = assembled.config.copy_and_resolve_references()
    config.data.resident, config.steps_at_once = resident, k
    return config


def test_what_is_left_open_is_decided(assembled, monkeypatch):
    assert settled(assembled) == (False, 1), "a CPU has no memory of its own"
    assert settled(assembled, resident=True) == (True, 10)  # of 10, 150 and 300
    assert settled(assembled, resident=True, log_every=7) == (True, 1)
    room = 8 * resident.size(assembled.train)
    monkeypatch.setattr(layout, "device_memory", lambda: room)
    assert settled(assembled) == (True, 10)
    assert settled(assembled, steps_at_once=2) == (True, 2)
    assert settled(assembled, resident=False) == (False, 1)
    monkeypatch.setattr(layout, "device_memory", lambda: room - 8)
    assert settled(assembled) == (False, 1)


def test_a_run_that_continues_does_as_it_did(assembled, monkeypatch):
    monkeypatch.setattr(layout, "device_memory", lambda: 2**40)
    old = before(assembled, None, None)
    with old.unlocked():
        del old.data["resident"], old["steps_at_once"]
    assert settled(assembled, old) == (False, 1), "older than the fields"
    assert settled(assembled, before(assembled, False, 1)) == (False, 1)
    monkeypatch.setattr(layout, "device_memory", lambda: 0)
    assert settled(assembled, before(assembled, True, 5)) == (True, 5)
    assert settled(assembled, before(assembled, True, 5), resident=False) == (False, 1)
    assert settled(assembled, before(assembled, True, "x")) == (True, 1), "a damaged file"
    with pytest.raises(UserError, match="log_every=7 is not a multiple of the 5 steps"):
        settled(assembled, before(assembled, True, 5), log_every=7)
