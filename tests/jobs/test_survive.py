"""Runs that are stopped, killed or diverge lose nothing: real processes and signals."""

import json
import signal
import time

import jax
import numpy as np
import pytest
from kit import kills, tiny_run

from ssl_jax.checkpoints import reading, store
from ssl_jax.logs import metrics
from ssl_jax.processes import host
from ssl_jax.runs import workdir
from ssl_jax.train import experiment, health, stopping

SEVERAL = (
    "--config.steps=100000",
    "--config.batch=16",
    "--config.cpu_devices=2",
    "--config.checkpoint.every_steps=0",
    "--config.log_every=5",
)
FINETUNE = (
    *("--config.steps=100000", "--config.batch=16", "--config.cpu_devices=2"),
    *("--config.train_examples=100", "--config.test_examples=50", "--config.log_every=5"),
)


def steps_of(folder):
    return [r["step"] for r in metrics.read(folder / "metrics.jsonl") if "loss" in r]


def stop(processes, folder, who, after):
    """Asks some of two processes to stop once `after` steps are logged.

    Args:
      processes: just started.
      folder: where they train.
      who: is asked.
      after: steps.

    Returns:
      what process 0 said, and the step they saved.
    """
    begun = time.monotonic()
    kills.wait(processes, lambda: (kills.logged(folder) or [0])[-1] > after, 300)
    asked = time.monotonic()
    for process in who:
        processes[process].send_signal(signal.SIGTERM)
    codes, outs = tiny_run.finish(processes)
    seconds = time.monotonic() - asked
    assert codes == [stopping.EXIT_STOPPED] * 2, "\n".join(outs)
    # To be out takes less than to start; where a start takes longer than 10 s, others share the
    # machine.
    assert seconds < max(10, asked - begun)
    saved = kills.saved(folder)[-1]
    assert f"stopped and saved at step {saved}" in outs[0]
    return outs[0], saved


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run of two processes that was stopped twice; what was said, the steps that were saved."""
    folder = tmp_path_factory.mktemp("stopped")
    processes = tiny_run.start_several(2, folder, *SEVERAL)
    _, first = stop(processes, folder, [1], 0)
    assert kills.saved(folder) == [first]
    processes = tiny_run.start_several(2, folder, *SEVERAL)
    said, second = stop(processes, folder, [0, 1], first)
    return folder, said, first, second


def test_one_or_both_of_two_processes_are_asked_to_stop_and_both_save_the_same_step(stopped):
    folder, said, first, second = stopped
    assert f"continuing at step {first}" in said and kills.saved(folder) == [first, second]
    assert steps_of(folder) == list(range(5, second + 1, 5)), "nothing twice, nothing left out"


@pytest.mark.long
def test_so_does_a_fine_tuning(stopped, tmp_path):
    argv = ["--config=configs/finetune.py", f"--config.checkpoint={stopped[0]}", *FINETUNE]
    argv.append(f"--config.compile_cache={jax.config.jax_compilation_cache_dir}")
    argv.append(f"--workdir={tmp_path}")
    _, saved = stop(tiny_run.launch_several(2, argv), tmp_path, [1], 0)
    assert kills.saved(tmp_path) == [saved] and not (tmp_path / "result.json").exists()
    assert steps_of(tmp_path) == list(range(5, saved + 1, 5))


@pytest.mark.long
def test_three_kills_of_worker_and_coordinator_leave_no_trace(tmp_path):
    """In a save, at the start, between saves; the long form is `python -m benchmarks.chaos`."""
    cache = f"--config.compile_cache={jax.config.jax_compilation_cache_dir}"
    killed, faults = kills.campaign(
        tmp_path, kills=3, processes=2, seed=58, patience=0.5, more=(cache,)
    )
    assert not faults, "\n".join(faults)
    assert {k.process for k in killed} == {0, 1} and all(not k.unreadable for k in killed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_is_obeyed_at_once(number):
    obeyed = []
    before = signal.signal(number, lambda *_: obeyed.append("before"))
    try:
        with stopping.requested(host.Cluster(1, 0, 1), "run") as stop:
            assert not stop(1)
            signal.raise_signal(number)
            assert stop(2) and not obeyed
            signal.raise_signal(number)
            assert obeyed == ["before"]
        signal.raise_signal(number)
        assert obeyed == ["before", "before"]
    finally:
        signal.signal(number, before)


def diverge(folder, *more):
    """Steps so large that the parameters overflow: exit code."""
    return tiny_run.run(
        folder,
        *("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=1e30"),
        *("--config.optimizer.momentum=0.0", "--config.optimizer.warmup_fraction=0.0"),
        *("--config.steps=40", "--config.max_bad_steps=5", *more),
    )


def test_steps_that_are_not_finite_end_the_run_and_name_the_first(tmp_path, capsys):
    assert diverge(tmp_path / "every") == 2
    every = capsys.readouterr()
    records = metrics.read(tmp_path / "every" / "metrics.jsonl")
    first = next(r for r in records if r["skipped"])
    name = "gradient norm" if np.isfinite(first["loss"]) else "loss"
    assert not np.isfinite(first[name.replace(" ", "_")])
    said = f"the {name} is not finite since step {first['step']}: 5 steps in a row"
    assert said in every.err and "max_bad_steps" in every.err
    assert f"step {first['step']} is skipped: its {name} is not finite" in every.err

    saved = kills.saved(tmp_path / "every")[-1]
    assert f"checkpoint {saved} has the last good ones" in every.err
    config = workdir.read_config(tmp_path / "every").config
    like = experiment.like(experiment.assemble(config, host.Cluster(1, 0, 1), None))
    with store.open_manager(tmp_path / "every" / "checkpoints", 2, read_only=True) as manager:
        state = reading.restore(manager, saved, like)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.params))

    # The first bad step lies between two that are logged, and is named all the same.
    assert diverge(tmp_path / "seldom", "--config.log_every=7") == 2
    seldom = capsys.readouterr().err
    assert f"the {name} is not finite since step {first['step']}: " in seldom


def test_a_bound_of_no_bad_step_is_refused(tmp_path, capsys):
    assert tiny_run.run(tmp_path, "--config.max_bad_steps=0") == 2
    assert "max_bad_steps is 0; it must be at least 1" in capsys.readouterr().err


@pytest.mark.long
def test_a_spike_is_said_once_and_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(health, "spike", lambda before, loss: 9.0 if 3 <= len(before) < 5 else None)
    assert tiny_run.run(tmp_path, "--config.steps=8") == 0
    err = capsys.readouterr().err
    assert "SPIKE at step 4: the loss, " in err and err.count("SPIKE") == 1
    kept = {r["step"]: r.get("loss_spike") for r in metrics.read(tmp_path / "metrics.jsonl")}
    assert kept == {s: 9.0 if s in (4, 5) else None for s in range(1, 9)}
    assert "loss_spike" not in json.dumps(workdir.read_result(tmp_path))
