"""Every job on a checkpoint, in one process of four devices and in two of two: the same result."""

import json
import socket
import subprocess
import sys

import jax
import pytest
from kit import tiny_run

from ssl_jax import main
from ssl_jax.checkpoints import verify
from ssl_jax.contract.method import Run
from ssl_jax.evaluate.features import encoder
from ssl_jax.jobs import pretrain
from ssl_jax.processes import talk
from ssl_jax.runs import config as configs
from ssl_jax.runs import workdir

SMALL = (
    "--config.train_examples=300",
    "--config.test_examples=199",  # no multiple of the devices
    "--config.batch=100",
)
SGD = (
    *("--config.solver=sgd", "--config.sgd.epochs=3", "--config.sgd.batch=100"),
    *("--config.sgd.batch_norm=True", "--config.sgd.learning_rates=(1.0,)"),
)
JOBS = {
    "knn": ("--config.grid_k=(1,20)",),
    "linear": (),
    "linear_sgd": SGD,
    "linear_augmented": (
        *SGD,
        *("--config.augment=True", "--config.flip=0.0", "--config.crop_area=(0.5,1.0)"),
    ),
    "lowshot": ("--config.shares=(0.1,)", "--config.shots=(2,)", "--config.draws=2"),
    "finetune": (
        *("--config.steps=4", "--config.batch=64", "--config.log_every=1"),
        *("--config.optimizer.name=sgd", "--config.optimizer.learning_rate=0.02"),
        "--config.optimizer.warmup_fraction=0.0",
    ),
    # Not synthetic: of noise, which C is best is a matter of rounding.
    "transfer": ("--config.sources=digits,scenes", "--config.data.test_split=test"),
    "retrieve": ("--config.shown=2",),
    "cluster": ("--config.restarts=2",),
    "analyze": ("--config.examples=100", "--config.policy=digits"),
    "report": (),
}
# The command lines one after the other; the processes join once. Writes down how many rows of
# features a job ever had in one array, in one search and on its devices.
DRIVER = """
import json, pathlib, sys
from ssl_jax import main
from ssl_jax.devices import layout
from ssl_jax.evaluate.features import collect
from ssl_jax.evaluate.probes import neighbours
from ssl_jax.processes import join as joining
rows = []
def recording(module, name, length):
    f = getattr(module, name)
    def recorded(*args, **kwargs):
        found = f(*args, **kwargs)
        rows[-1].append(length(args, found))
        return found
    setattr(module, name, recorded)
recording(collect, "extract", lambda args, found: len(found[0]))
recording(neighbours, "search", lambda args, found: len(args[0]))
recording(layout, "put_own", lambda args, found: len(args[0]))
join, joined = joining.join, []
def join_once(found):
    if not joined:
        joined.append(join(found))
    return joined[0]
joining.join = join_once
codes = []
for argv in json.loads(sys.argv[1]):
    rows.append([0])
    codes.append(main.main(argv))
pathlib.Path(sys.argv[2]).write_text(json.dumps([max(r) for r in rows]))
sys.exit(max(codes))
"""


def commands(run, into, devices, *more):
    """A command line for each job."""
    given = []
    for name, fields in JOBS.items():
        job = name.partition("_")[0]
        runs, small = ("checkpoint", SMALL) if job != "report" else ("runs", SMALL)
        given.append(
            [
                *(f"--config=configs/{job}.py", f"--config.{runs}={run}", *small, *fields),
                *(f"--workdir={into / name}", f"--config.cpu_devices={devices}", *more),
                f"--config.compile_cache={jax.config.jax_compilation_cache_dir}",
            ]
        )
    return given


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The folders of every job, in one process and in two, and what the two processes said."""
    folder = tmp_path_factory.mktemp("processes")
    tiny_run.finished(folder / "run")
    for argv in commands(folder / "run", folder / "one", 4):
        assert tiny_run.main.main(argv) == 0, argv
    with socket.socket() as s:
        s.bind(("localhost", 0))
        cluster = (f"--coordinator=localhost:{s.getsockname()[1]}", "--processes=2")
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", DRIVER),
                json.dumps(commands(folder / "run", folder / "two", 2, *cluster, f"--process={p}")),
                str(folder / f"rows_{p}.json"),
            ],
            cwd=tiny_run.REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for p in range(2)
    ]
    outs = [p.communicate(timeout=600)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outs)
    return folder, outs


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in JOBS if name != "report"])
def test_two_processes_find_what_one_finds(found, name):
    folder, _ = found
    one, two = (json.loads((folder / n / name / "result.json").read_text()) for n in ("one", "two"))
    for result in (one, two):
        for key in ("images_per_second", "table", "curve", "histograms", "spectrum", "hardness"):
            result.pop(key, None)
    assert one.keys() == two.keys() and len(one) > 8
    for key, value in one.items():
        if isinstance(value, float):
            assert two[key] == pytest.approx(value, rel=1e-4, abs=0.006), key  # one image of 199
        elif not isinstance(value, dict | list):
            assert two[key] == value, key


@pytest.mark.long
def test_one_process_writes_and_speaks(found):
    folder, (first, second) = found
    assert "knn_top1" in first and "index.html" in first
    assert "top1" not in second and "index.html" not in second
    page, other = (folder / n / "report" / "index.html" for n in ("one", "two"))
    assert other.stat().st_size > 0.9 * page.stat().st_size > 100_000


class Reached(Exception):
    pass


@pytest.mark.parametrize("name", sorted({name.partition("_")[0] for name in main.JOBS}))
def test_processes_connect_before_work_that_may_take_one_of_them_longer(
    name, tmp_path, monkeypatch
):
    """Gloo gives up on a process that is 30 s late for the first collective, not for later ones."""
    config, _ = configs.load("configs/simclr.py:digits")
    if name != "pretrain":
        workdir.write_config(tmp_path, workdir.Saved(config, Run(4000, 256, 15, 15), 4))
    called = []

    def first_collective(*_, **__):
        raise Reached

    monkeypatch.setattr(talk, "connect", called.append)
    monkeypatch.setattr(encoder, "restore", first_collective)
    monkeypatch.setattr(verify, "newest", first_collective)
    monkeypatch.setattr(pretrain, "compile_step", lambda e: None)
    argv = (
        tiny_run.arguments(tmp_path)
        if name == "pretrain"
        else [f"--config=configs/{name}.py", *JOBS.get(name, ()), "--config.compile_cache="]
    )
    if name != "pretrain":
        runs = "runs" if name == "report" else "checkpoint"
        argv += [f"--config.{runs}={tmp_path}", "--config.cpu_devices=4"]
    with pytest.raises(Reached):
        main.main(argv)
    assert len(called) == 1 and str(tmp_path) in called[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "rows"),
    [
        (("knn", "linear", "linear_sgd", "linear_augmented"), 150),
        (("cluster", "transfer"), 300),  # gathered: what is counted is true
    ],
)
def test_no_process_has_all_the_features_to_learn_from(found, names, rows):
    """300 rows on two processes: 150 each, where the sets may be large."""
    folder, _ = found
    for p in range(2):
        most = dict(zip(JOBS, json.loads((folder / f"rows_{p}.json").read_text()), strict=True))
        assert {most[name] for name in names} == {rows}
