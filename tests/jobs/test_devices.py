"""The same run on one device, on four by every mapping, and on 2 processes × 2 devices."""

import functools

import numpy as np
import pytest
import tiny_run

from ssl_jax.report import logs

STEPS = 20
SGD = (
    f"--config.steps={STEPS}",
    "--config.optimizer.name=sgd",
    # At ten times this rate, or with momentum, training is chaotic: rounding grows tenfold a step
    # (the black background of all digits crosses the kink of a ReLU at once). At twice it, the
    # devices agree to 1.3e-5.
    "--config.optimizer.learning_rate=0.0005",
    "--config.optimizer.momentum=0.0",
    "--config.checkpoint.every_steps=0",
)


def losses(folder):
    return [r["loss"] for r in logs.read(folder / "metrics.jsonl") if "loss" in r]


@functools.cache
def on_one_device(folder, *more):
    process = tiny_run.start(folder, *SGD, "--config.cpu_devices=1", *more)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and "on 1 cpu device " in out, out
    found = losses(folder)
    assert len(found) == STEPS and found[-1] < found[0] - 0.1, "it does not learn"
    return found


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    return on_one_device(tmp_path_factory.mktemp("single"))


@pytest.mark.parametrize("mode", ["shard_map", "pmap", "jit"])
def test_four_devices_equal_one(single, tmp_path, mode):
    assert tiny_run.run(tmp_path, *SGD, f"--config.parallel={mode}") == 0
    np.testing.assert_allclose(losses(tmp_path), single, rtol=1e-5)


def test_two_processes_of_two_devices_equal_one(single, tmp_path):
    processes = tiny_run.start_several(
        2, tmp_path, *SGD, "--config.cpu_devices=2", "--config.report=True"
    )
    codes, outs = tiny_run.finish(processes)
    assert codes == [0, 0], "\n".join(outs)
    assert "on 4 cpu devices of 2 processes" in outs[0]
    assert "step" not in outs[1], "only process 0 talks"
    np.testing.assert_allclose(losses(tmp_path), single, rtol=1e-5)
    assert (tmp_path / "report" / "summary.png").is_file()


def test_micro_batches_on_four_devices_equal_one(tmp_path):
    accumulate = ("--config.accumulate=2",)
    reference = on_one_device(tmp_path / "one", *accumulate)
    assert tiny_run.run(tmp_path / "four", *SGD, *accumulate) == 0
    np.testing.assert_allclose(losses(tmp_path / "four"), reference, rtol=1e-5)
