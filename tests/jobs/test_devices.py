"""The same run on one device, on four by every mapping, and on 2 processes × 2 devices.

In float64, where equal means equal to nine digits on any processor.
"""

import functools
import json
import os
import shutil

import numpy as np
import pytest
from kit import programs, tiny_run

from ssl_jax.contract.batch import image
from ssl_jax.contract.method import Run
from ssl_jax.logs import metrics
from ssl_jax.processes import host
from ssl_jax.runs import config as configs
from ssl_jax.runs import workdir
from ssl_jax.train import experiment

STEPS = 8
SGD = (
    *tiny_run.FLOAT64,
    f"--config.steps={STEPS}",
    "--config.optimizer.name=sgd",
    "--config.optimizer.learning_rate=0.002",
    "--config.optimizer.momentum=0.0",
    "--config.checkpoint.every_steps=4",
)


@pytest.fixture(scope="module", autouse=True)
def in_float64():
    """Here, and in the processes that are started."""
    os.environ["JAX_ENABLE_X64"] = "1"
    with programs.float64():
        yield
    del os.environ["JAX_ENABLE_X64"]


def losses(folder):
    return [r["loss"] for r in metrics.read(folder / "metrics.jsonl") if "loss" in r]


@functools.cache
def on_one_device(folder, *more):
    process = tiny_run.start(folder, *SGD, "--config.cpu_devices=1", *more)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "on 1 cpu device " in out, out
    found = losses(folder)
    assert len(found) == STEPS and np.mean(found[-2:]) < np.mean(found[:2]), "it does not learn"
    return found


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return on_one_device(tmp_path_factory.mktemp("single"))


@functools.cache
def on_four_devices(folder, mode):
    assert tiny_run.run(folder, *SGD, f"--config.parallel={mode}") == 0
    return folder


@pytest.fixture(scope="module")
def four(tmp_path_factory):
    """One process of four devices, all the way, by each mapping: mode -> its folder."""
    folder = tmp_path_factory.mktemp("four")
    return lambda mode: on_four_devices(folder / mode, mode)


@pytest.mark.parametrize(
    "mode", ["shard_map", *(pytest.param(m, marks=pytest.mark.long) for m in ("pmap", "jit"))]
)
def test_four_devices_equal_one(single, four, mode):
    np.testing.assert_allclose(losses(four(mode)), single, rtol=1e-9)


@pytest.fixture(scope="module")
def two_by_two(tmp_path_factory):
    """Two processes of two devices, all the way; what they said."""
    folder = tmp_path_factory.mktemp("two_by_two")
    processes = tiny_run.start_several(
        2, folder, *SGD, "--config.cpu_devices=2", "--config.report=True"
    )
    codes, outs = tiny_run.finish(processes)
    assert codes == [0, 0], "\n".join(outs)
    return folder, outs


def test_two_processes_of_two_devices_equal_one(single, two_by_two):
    folder, outs = two_by_two
    assert "on 4 cpu devices of 2 processes" in outs[0]
    assert "step" not in outs[1], "only process 0 talks"
    np.testing.assert_allclose(losses(folder), single, rtol=1e-9)
    assert (folder / "report" / "summary.png").is_file()


@pytest.mark.long
def test_micro_batches_on_four_devices_equal_one(tmp_path):
    accumulate = ("--config.accumulate=2",)
    reference = on_one_device(tmp_path / "one", *accumulate)
    assert tiny_run.run(tmp_path / "four", *SGD, *accumulate) == 0
    np.testing.assert_allclose(losses(tmp_path / "four"), reference, rtol=1e-9)


def cut(finished, folder):
    """`finished` as it was after its checkpoint of step 4."""
    shutil.copytree(finished, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "checkpoints" / str(STEPS))
    (folder / "result.json").unlink()
    return folder


def resumed_on(folder, processes, devices, *more):
    """Continues the run on other devices; its losses."""
    given = (*SGD, f"--config.cpu_devices={devices}", *more)
    if processes > 1:
        started = tiny_run.start_several(processes, folder, *given)
    else:
        started = [tiny_run.start(folder, *given)]
    codes, outs = tiny_run.finish(started)
    assert not any(codes) and "continuing at step 4" in outs[0], "\n".join(outs)
    assert f"on {processes * devices} cpu device" in outs[0]
    assert json.loads((folder / "config.json").read_text())["cpu_devices"] == devices
    steps = [r["step"] for r in metrics.read(folder / "metrics.jsonl") if "loss" in r]
    assert steps == list(range(1, STEPS + 1))
    return losses(folder)


@pytest.mark.long
def test_two_by_two_continues_on_one_device(single, two_by_two, tmp_path):
    folder = cut(two_by_two[0], tmp_path / "run")
    np.testing.assert_allclose(resumed_on(folder, 1, 1), single, rtol=1e-9)


@pytest.mark.long
def test_four_devices_continue_on_two_processes_and_on_eight_devices(single, four, tmp_path):
    for processes, devices in ((2, 1), (1, 8)):
        folder = cut(four("shard_map"), tmp_path / f"{processes}x{devices}")
        np.testing.assert_allclose(resumed_on(folder, processes, devices), single, rtol=1e-9)


@pytest.mark.parametrize(("before", "now"), [(2, 2), (3, None)])
def test_the_devices_of_before_are_taken_again_where_they_share_the_batch(monkeypatch, before, now):
    config, _ = configs.load("configs/simclr.py:digits")
    config.update(batch=64, steps=4, compile_cache="")
    taken = []
    monkeypatch.setattr(host, "set_cpu_devices", taken.append)
    alone = host.Cluster(1, 0, 1)
    run = Run(4_000, 64, steps_per_epoch=62, total_steps=4, fields=image(28, 1))
    experiment.assemble(config, alone, workdir.Saved(config, run, before))
    assert taken == [now or host.cpu_devices(64, 1, alone)]
