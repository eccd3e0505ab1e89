"""A tiny SimCLR on the digits, as command line, and ways to run it and to probe it."""

import atexit
import functools
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile

import jax

from ssl_jax import main

REPOSITORY = pathlib.Path(__file__).parents[2]
TINY = (
    "--config=configs/simclr.py:digits",
    "--config.batch=64",
    "--config.steps=12",
    "--config.model.width=8",
    "--config.model.blocks=(1,)",
    "--config.log_every=1",
    "--config.monitor.every_steps=0",
    "--config.monitor.train_examples=500",
    "--config.monitor.test_examples=200",
    "--config.evaluate.train_examples=500",
    "--config.evaluate.test_examples=200",
    "--config.checkpoint.every_steps=4",
    "--config.report=False",
    "--config.cpu_devices=4",
)

# In float64, for which there are no fast convolutions: few images, little is judged.
FLOAT64 = (
    "--config.model.dtype=float64",
    "--config.batch=16",
    "--config.views.both.size=16",
    "--config.monitor.train_examples=100",
    "--config.monitor.test_examples=50",
    "--config.evaluate.train_examples=100",
    "--config.evaluate.test_examples=50",
    "--config.evaluate.batch=52",
)


def arguments(workdir, *more):
    cache = jax.config.jax_compilation_cache_dir
    return [*TINY, f"--config.compile_cache={cache}", f"--workdir={workdir}", *more]


def run(workdir, *more):
    """Runs in this process, on its four devices; returns the exit code."""
    return main.main(arguments(workdir, *more))


def finished(folder, seed=0):
    """A finished run of 4 steps, for what reads one: trained once a process, copied to `folder`."""
    shutil.copytree(_finished(seed), folder, dirs_exist_ok=True)


@functools.cache
def _finished(seed):
    folder = tempfile.mkdtemp(prefix="ssl_jax_tiny_run_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    assert run(folder, "--config.steps=4", f"--config.seed={seed}") == 0
    return folder


def probe(job, checkpoint, *more, preset=""):
    """Runs configs/<job>.py on a finished run, in this process; returns the exit code."""
    return main.main(
        [
            f"--config=configs/{job}.py:{preset}" if preset else f"--config=configs/{job}.py",
            f"--config.checkpoint={checkpoint}",
            "--config.train_examples=500",
            "--config.test_examples=200",
            "--config.cpu_devices=4",
            "--config.compile_cache=",
            *more,
        ]
    )


def start(workdir, *more, **kwargs):
    """Starts a process of its own."""
    return launch(arguments(workdir, *more), **kwargs)


def start_several(processes, workdir, *more, **kwargs):
    """Starts the processes of one run on this machine."""
    return launch_several(processes, arguments(workdir, *more), **kwargs)


def launch(argv, **kwargs):
    """Starts a command line in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "ssl_jax.main", *argv],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )


def launch_several(processes, argv, **kwargs):
    """Starts a command line in several processes that join."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    cluster = (f"--coordinator=localhost:{port}", f"--processes={processes}")
    return [launch([*argv, *cluster, f"--process={i}"], **kwargs) for i in range(processes)]


def finish(processes, seconds=300):
    """Waits for processes; returns their exit codes and what they wrote."""
    outs = [p.communicate(timeout=seconds)[0] for p in processes]
    return [p.returncode for p in processes], outs
