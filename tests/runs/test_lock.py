"""One process trains in a workdir; the second is told who does. By real processes."""

import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import types

import pytest
from kit import tiny_run

from ssl_jax.errors import UserError
from ssl_jax.processes.host import Cluster
from ssl_jax.runs import lock

ALONE = Cluster(1, 0, 1)
HOLDER = """
import pathlib, socket, sys, time
from ssl_jax.processes.host import Cluster
from ssl_jax.runs import lock
if sys.argv[2] == "a pod of the same name":
    lock._boot = lambda: "another"
elif sys.argv[2]:
    socket.gethostname = lambda: sys.argv[2]
with lock.hold(pathlib.Path(sys.argv[1]), Cluster(1, 0, 1)):
    print("held", flush=True)
    time.sleep(float(sys.argv[3]))
"""


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold the lock of `<tmp_path>/run`; they end with the test."""
    started = []

    def start(host="", seconds=60):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, tmp_path / "run", host, str(seconds)],
            cwd=tiny_run.REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def ended_while_waiting(monkeypatch, process):
    """The first pause of one who waits ends the holder."""

    def sleep(seconds):
        process.kill()
        process.wait()

    now = types.SimpleNamespace(monotonic=time.monotonic, strftime=time.strftime, sleep=sleep)
    monkeypatch.setattr(lock, "time", now)


def test_the_second_is_told_who_holds_it_and_kill_9_frees_it(holder, tmp_path, monkeypatch):
    folder, process = tmp_path / "run", holder()
    with monkeypatch.context() as during:
        during.setattr(time, "sleep", lambda seconds: pytest.fail("it is said at once"))
        with pytest.raises(UserError) as error, lock.hold(folder, ALONE):
            pass
    assert re.fullmatch(
        rf"{folder} is in use by process {process.pid} on {socket.gethostname()} since "
        rf"\d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d: -c {folder} '' 60; wait for its end, or choose "
        r"another --workdir",
        str(error.value),
    )
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / lock.NAME).exists(), "left behind"
    with lock.hold(folder, ALONE):
        assert str(os.getpid()) in (folder / lock.NAME).read_text()
        with pytest.raises(UserError, match=f"process {os.getpid()} on"), lock.hold(folder, ALONE):
            pass
    assert list(folder.iterdir()) == []


def test_a_holder_on_another_host_is_waited_for(holder, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    with monkeypatch.context() as during:
        ended_while_waiting(during, holder(host="elsewhere"))
        with lock.hold(folder, ALONE, patience=60):
            assert str(os.getpid()) in (folder / lock.NAME).read_text()
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "on elsewhere since" in line and "waiting 60 s" in line
    holder(host="elsewhere")
    message = f"on elsewhere since .* if that host is gone for good, delete {folder / lock.NAME}$"
    with pytest.raises(UserError, match=message), lock.hold(folder, ALONE, patience=0.2):
        pass
    (folder / lock.NAME).unlink()  # what the message says
    with lock.hold(folder, ALONE, patience=0):
        pass


def test_a_pod_of_the_same_name_on_another_machine_is_waited_for(
    holder, tmp_path, capsys, monkeypatch
):
    """In an indexed job of Kubernetes pod 0 has one host name, wherever it comes up again."""
    ended_while_waiting(monkeypatch, holder(host="a pod of the same name"))
    with lock.hold(tmp_path / "run", ALONE, patience=60):
        assert "waiting 60 s" in capsys.readouterr().err


def test_a_folder_that_stays_empty_is_removed_again(tmp_path):
    with lock.hold(tmp_path / "a" / "b", ALONE):
        assert (tmp_path / "a" / "b" / lock.NAME).exists()
    assert not (tmp_path / "a").exists()
    with lock.hold(tmp_path / "a" / "b", ALONE):
        (tmp_path / "a" / "b" / "config.json").touch()
    assert [f.name for f in (tmp_path / "a" / "b").iterdir()] == ["config.json"]
    with pytest.raises(ZeroDivisionError), lock.hold(tmp_path / "c", ALONE):
        1 / 0  # noqa: B018
    assert not (tmp_path / "c").exists()


def test_where_there_are_no_locks_that_is_said(tmp_path, monkeypatch, capsys):
    def flock(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with lock.hold(tmp_path, ALONE):
        pass
    assert "cannot be locked (Function not implemented)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_left_to_what_must_write(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with lock.hold(tmp_path / "file" / "run", ALONE):
        pass


def test_jobs_that_train_are_refused_and_probing_is_not(tmp_path, capsys):
    """By the command line; a refusal comes before data are opened."""
    run = tmp_path / "run"
    tiny_run.finished(run)
    capsys.readouterr()
    with lock.hold(run, ALONE), lock.hold(run / "finetune", ALONE):
        assert tiny_run.run(run) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"error: {run} is in use by process {os.getpid()} on ")
        assert err.count("\n") == 1
        assert tiny_run.probe("knn", run) == 0
        argv = ["--config=configs/finetune.py", f"--config.checkpoint={run}", "--config.batch=64"]
        argv += ["--config.steps=2", "--config.compile_cache=", "--config.cpu_devices=4"]
        capsys.readouterr()
        assert tiny_run.main.main(argv) == 2
        assert f"error: {run / 'finetune'} is in use by" in capsys.readouterr().err


@pytest.mark.long
def test_all_processes_of_a_run_are_refused(holder, tmp_path):
    process = holder()
    codes, outs = tiny_run.finish(
        tiny_run.start_several(2, tmp_path / "run", "--config.cpu_devices=2")
    )
    assert codes[0] == 2 and codes[1] != 0, (
        outs
    )  # on a busy machine XLA ends it, as process 0 is gone
    assert f"error: {tmp_path / 'run'} is in use by process {process.pid} on" in outs[0]
    assert [f.name for f in (tmp_path / "run").iterdir()] == [lock.NAME], "nothing was written"


def test_a_folder_that_can_never_be_made_is_left_to_what_must_write(monkeypatch):
    """`mkdir` below /proc says for ever that something is missing, as in a deleted folder."""
    monkeypatch.setattr(lock, "UNKNOWN", 0.2)
    with lock.hold(pathlib.Path("/proc/none/run"), ALONE):
        pass


def test_a_lock_of_another_user_is_said(tmp_path, monkeypatch, capsys):
    def refused(path, *_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / lock.NAME).touch()
    monkeypatch.setattr(lock.os, "open", refused)
    with lock.hold(tmp_path, ALONE):
        pass
    assert ".lock cannot be opened (Permission denied)" in capsys.readouterr().err


def test_the_lock_that_another_took_over_is_not_deleted(tmp_path):
    with lock.hold(tmp_path, ALONE):
        (tmp_path / lock.NAME).unlink()  # by hand, as the message says
        (tmp_path / lock.NAME).write_text("another's")
    assert (tmp_path / lock.NAME).read_text() == "another's"
