"""Damaged checkpoints are found and gone around; a disk that fails costs no training."""

import errno
import json
import logging
import os
import pathlib
import pickle
import resource
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from kit import tiny_run
from kit.small_state import create, encoder, like, whole

from ssl_jax.checkpoints import manifest, reading, store, tree, verify
from ssl_jax.errors import UserError
from ssl_jax.logs import metrics as logs
from ssl_jax.processes import insist
from ssl_jax.runs import workdir

# ---------------------------------------------------------------- damaged checkpoints


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A folder with the checkpoints 4 and 8, and their fingerprints by step."""
    folder = tmp_path_factory.mktemp("kept") / "checkpoints"
    marks = {}
    make = jax.jit(create, static_argnames=("step",), out_shardings=whole())
    with store.open_manager(folder, 2) as manager:
        for step, accuracy in ((4, 0.5), (8, 0.25)):
            state = make(step=step)
            store.save(manager, state, {"knn_top1": accuracy})
            marks[step] = tree.fingerprint(state)
    return folder, marks


def files(step):
    return sorted(p for p in step.rglob("*") if p.is_file())


def flip(path, position):
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(bytes(data))


def damages(path):
    """What can happen to a file: name -> how to do it."""
    size = path.stat().st_size
    return {
        "flipped at the start": lambda: flip(path, 0),
        "flipped in the middle": lambda: flip(path, size // 2),
        "flipped at the end": lambda: flip(path, size - 1),
        "emptied": lambda: os.truncate(path, 0),
        "halved": lambda: os.truncate(path, size // 2),
        "a byte short": lambda: os.truncate(path, size - 1),
        "a byte long": lambda: path.write_bytes(path.read_bytes() + b"\0"),
        "deleted": path.unlink,
    }


def test_a_manifest_names_every_file_and_is_there_before_the_step_has_its_name(kept):
    folder, _ = kept
    for step in (folder / "4", folder / "8"):
        named = json.loads((step / manifest.NAME).read_text())["files"]
        there = {p.relative_to(step).as_posix(): p.stat().st_size for p in files(step)}
        there.pop(manifest.NAME)
        assert {name: entry["bytes"] for name, entry in named.items()} == there
        assert {"_CHECKPOINT_METADATA", "commit_success.txt", "state/manifest.ocdbt"} <= set(named)
        assert "metrics/metrics" in named and manifest.damage(step) is None


def test_every_damage_to_every_file_is_found_named_and_gone_around(kept, tmp_path, capsys):
    kept_folder, marks = kept
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept_folder, folder)
    names = [p.relative_to(folder / "8") for p in files(folder / "8")]
    assert len(names) > 8
    for name in names:
        for kind in damages(folder / "8" / name):
            damages(folder / "8" / name)[kind]()
            found = manifest.damage(folder / "8")
            assert found and (str(name) in found or name.name == manifest.NAME), (name, kind, found)
            with store.open_manager(folder, 2, read_only=True) as manager:
                assert verify.newest(manager, read_only=True) == 4, (name, kind)
            shutil.rmtree(folder / "8")
            shutil.copytree(kept_folder / "8", folder / "8")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(names) * 8, "one line each"
    assert all("/8 is damaged: " in line and "passed over" in line for line in said)


@pytest.mark.parametrize("name", ["_CHECKPOINT_METADATA", "metrics/metrics", "state/_METADATA"])
def test_training_sets_a_damaged_checkpoint_aside(kept, tmp_path, name, capsys):
    kept_folder, marks = kept
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept_folder, folder)
    (folder / "8" / name).unlink()
    with store.open_manager(folder, 2) as manager:
        assert verify.newest(manager) == 4 and manager.all_steps() == [4]
        assert tree.fingerprint(reading.restore(manager, 4, like())) == marks[4]
        store.save(manager, create(step=8))
    line = f"checkpoint {folder / '8'} is damaged: {name} is missing; set aside as 8.damaged\n"
    assert capsys.readouterr().err == line
    assert sorted(p.name for p in folder.iterdir()) == ["4", "8", "8.damaged"]


def test_files_that_were_added_and_links_are_damage(kept, tmp_path):
    step = tmp_path / "8"
    for added in ("state/more", "state/d/link"):
        shutil.copytree(kept[0] / "8", step)
        if added == "state/more":
            (step / added).write_text("x")
        else:
            (step / added).symlink_to("/etc/hostname")
        assert manifest.damage(step) == f"{added} was not there when it was saved"
        shutil.rmtree(step)
    shutil.copytree(kept[0] / "8", step)
    (step / "_CHECKPOINT_METADATA").unlink()
    os.mkfifo(step / "_CHECKPOINT_METADATA")  # reading it would wait for ever
    assert manifest.damage(step) == "_CHECKPOINT_METADATA is not a plain file"


def test_none_left_is_one_clear_error_and_stays_one(kept, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept[0], folder)
    for step in ("4", "8"):
        flip(folder / step / "state" / "manifest.ocdbt", 20)
    with store.open_manager(folder, 2, read_only=True) as manager:
        with pytest.raises(UserError, match="every checkpoint in .* is damaged"):
            verify.newest(manager, read_only=True)
    assert sorted(p.name for p in folder.iterdir()) == ["4", "8"], "probing changes nothing"
    for _ in range(2):  # the second time nothing but *.damaged is there: no silent start at step 0
        with store.open_manager(folder, 2) as manager:
            with pytest.raises(UserError, match="put back a copy .* begin again at step 0"):
                verify.newest(manager)
    assert sorted(p.name for p in folder.iterdir()) == ["4.damaged", "8.damaged"]


def test_one_without_a_manifest_is_used_only_if_an_older_version_made_it(kept, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept[0], folder)
    (folder / "8" / manifest.NAME).unlink()
    with store.open_manager(folder, 2, read_only=True) as manager:
        assert verify.newest(manager, read_only=True) == 4
    assert f"{manifest.NAME} is missing; passed over" in capsys.readouterr().err
    about = folder / "8" / "_CHECKPOINT_METADATA"
    about.write_text(json.dumps({**json.loads(about.read_text()), "custom_metadata": {}}))
    with store.open_manager(folder, 2) as manager:
        assert verify.newest(manager) == 8
    assert "no checksums (an older version made it)" in capsys.readouterr().err


def test_half_written_ones_never_count_and_are_deleted(kept, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept[0], folder)
    for name in ("12.orbax-checkpoint-tmp", "12.orbax-checkpoint-tmp-sealing"):
        shutil.copytree(folder / "8", folder / name)
    with store.open_manager(folder, 2, read_only=True) as manager:
        assert verify.newest(manager, read_only=True) == 8
    assert len(list(folder.iterdir())) == 4, "probing deletes nothing"
    with store.open_manager(folder, 2) as manager:
        assert verify.newest(manager) == 8
    assert sorted(p.name for p in folder.iterdir()) == ["4", "8"]


def test_the_best_is_still_kept_after_a_restart(kept, tmp_path):
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept[0], folder)  # 4 is the best
    with store.open_manager(folder, 2) as manager:
        for step in (12, 16):
            store.save(manager, create(step=step), {"knn_top1": 0.1})
    assert sorted(int(p.name) for p in folder.iterdir()) == [4, 12, 16]


def test_probing_a_run_that_deletes_what_is_being_read(kept, tmp_path, capsys):
    folder = tmp_path / "checkpoints"
    shutil.copytree(kept[0], folder)
    tried = []

    def read(step):
        tried.append(step)
        if step == 8:  # the run saves 12 and deletes 8 meanwhile
            shutil.copytree(folder / "8", folder / "12")
            shutil.rmtree(folder / "8" / "state")
        return reading.restore_part(manager, step, like(), encoder)

    with store.open_manager(folder, 1, read_only=True) as manager:
        found, step = verify.read_picked(manager, read, lambda f: verify.choose(f, read_only=True))
    assert tried == [8, 12] and step == 12 and capsys.readouterr().err == ""
    np.testing.assert_array_equal(found["params"]["w"], create().params["encoder"]["w"])


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run with the checkpoints 8 and 12, without its result, and its fingerprint."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert tiny_run.run(folder) == 0
    mark = json.loads((folder / "result.json").read_text())["fingerprint"]
    (folder / "result.json").unlink()
    return folder, mark


@pytest.mark.long
def test_two_processes_go_on_from_the_same_checkpoint(undisturbed, tmp_path):
    """Process 0 finds the damage; both continue from the one before, and process 0 alone saves."""
    folder = tmp_path / "run"
    shutil.copytree(undisturbed[0], folder)
    flip(folder / "checkpoints" / "12" / "state" / "_METADATA", 60)
    with socket.socket() as s:
        s.bind(("localhost", 0))
        cluster = (f"--coordinator=localhost:{s.getsockname()[1]}", "--processes=2")
    processes = [
        tiny_run.start(folder, *cluster, "--config.cpu_devices=2", f"--process={p}")
        for p in range(2)
    ]
    outs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outs)
    assert "set aside as 12.damaged" in outs[0] and "continuing at step 8" in outs[0]
    assert "damaged" not in outs[1]
    for step in ("8", "12"):
        assert manifest.damage(folder / "checkpoints" / step) is None
    steps = [r["step"] for r in logs.read(folder / "metrics.jsonl") if "loss" in r]
    assert steps == list(range(1, 13))


def test_a_finished_run_is_the_same_whatever_was_damaged(undisturbed, tmp_path, capsys):
    """The whole road, by the command line: a damaged checkpoint, the one before, the end."""
    whole_run, mark = undisturbed
    for place, change in (
        ("state/d", lambda p: flip(next(p.iterdir()), 40)),
        (manifest.NAME, lambda p: os.truncate(p, 100)),
    ):
        folder = tmp_path / "damaged"
        shutil.copytree(whole_run, folder)
        change(folder / "checkpoints" / "12" / place)
        assert tiny_run.run(folder) == 0
        said = capsys.readouterr()
        assert "checkpoints/12 is damaged" in said.err and "set aside as 12.damaged" in said.err
        assert "continuing at step 8" in said.out
        assert json.loads((folder / "result.json").read_text())["fingerprint"] == mark
        assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [
            "12",
            "12.damaged",
            "8",
        ]
        shutil.rmtree(folder)
    shutil.copytree(whole_run, tmp_path / "run")
    for step in ("8", "12"):
        flip(tmp_path / "run" / "checkpoints" / step / "commit_success.txt", 30)
    assert tiny_run.run(tmp_path / "run") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: every checkpoint in ") and "put back a copy" in error


# ---------------------------------------------------------------- disks that fail


def test_a_save_that_fails_is_said_and_the_next_one_is_tried(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "checkpoints"
    with store.open_manager(folder, 2) as manager:
        store.save(manager, create(step=1))
        manager.wait_until_finished()

        with monkeypatch.context() as m:  # read only
            m.setattr(os, "mkdir", failing(errno.EROFS))
            store.save(manager, create(step=2))
        folder.rename(tmp_path / "away")  # the mount is lost
        store.save(manager, create(step=3))
        assert not folder.exists(), "not made anew below an empty mount point"
        (tmp_path / "away").rename(folder)
        with monkeypatch.context() as m:  # full, when all but the manifest is written
            m.setattr(manifest, "write", failing(errno.ENOSPC))
            store.save(manager, create(step=4))
            store._settle(manager)
        assert [p.name for p in folder.iterdir()] == ["1"], "nothing half-written stays"
        store.save(manager, create(step=5))
    said = capfd.readouterr().err.splitlines()
    for line, step, why in zip(
        said, (2, 3, 4), ("Read-only file system", "is gone", "No space left"), strict=True
    ):
        assert f"/{step} is not saved" in line and why in line and "training goes on" in line
    assert sorted(p.name for p in folder.iterdir()) == ["1", "5"]


def failing(number):
    def call(*_, **__):
        raise OSError(number, os.strerror(number))

    return call


def test_the_last_save_waits_for_the_disk_then_gives_up(tmp_path, monkeypatch, capfd):
    folder, away = tmp_path / "checkpoints", tmp_path / "away"
    waited = []

    def sleep(seconds):
        waited.append(seconds)
        if len(waited) == 2:
            away.rename(folder)

    monkeypatch.setattr(insist.time, "sleep", sleep)
    with store.open_manager(folder, 2) as manager:
        folder.rename(away)
        store.save_last(manager, create(step=1))
        assert waited == [1, 2] and (folder / "1").is_dir()
        folder.rename(away)
        waited += [0, 0]
        with pytest.raises(UserError, match="2 could not be saved for 10 minutes .* is gone"):
            store.save_last(manager, create(step=2))
        assert sum(waited[4:]) == 600
        away.rename(folder)
    assert capfd.readouterr().err.count("trying again in") == 2 + len(insist.WAITS)


LIMITED = """
import os, pathlib, resource, sys
sys.path[:0] = sys.argv[2:]
from kit.small_state import create
from ssl_jax.checkpoints import store as checkpoint
folder = pathlib.Path(sys.argv[1])
with checkpoint.open_manager(folder, 2) as manager:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
    checkpoint.save(manager, create(step=1))
    checkpoint._settle(manager)
    assert not os.listdir(folder), os.listdir(folder)
    resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))
    checkpoint.save(manager, create(step=2))
assert os.listdir(folder) == ["2"], os.listdir(folder)
"""


def test_a_file_system_that_refuses_for_real(tmp_path):
    """The kernel's own refusal, which TensorStore meets in its threads."""
    paths = (str(tiny_run.REPOSITORY), str(tiny_run.REPOSITORY / "tests"))
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), *paths], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1 and "1 is not saved (File too large)" in done.stderr


@pytest.mark.parametrize(
    "file, error, said",
    [
        ("/x/orbax/a.py", "ValueError", False),
        ("/x/mine.py", "ValueError", True),
        ("/x/mine.py", """ValueError('DATA_LOSS: Error opening "zarr" driver: …')""", False),
    ],
)
def test_asyncio_says_nothing_of_a_failed_save_and_all_of_others(file, error, said, tmp_path):
    with store.open_manager(tmp_path, 2):
        pass  # what comes later counts
    try:
        exec(compile(f"raise {error}", file, "exec"))
    except ValueError:
        found = logging.LogRecord("asyncio", 40, file, 1, "never retrieved", (), sys.exc_info())
    assert bool(logging.getLogger("asyncio").filter(found)) == said
    plain = logging.LogRecord("asyncio", 40, file, 1, "slow", (), None)
    assert logging.getLogger("asyncio").filter(plain)


def test_logs_wait_in_memory_and_lose_no_line(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with logs.Metrics(path) as metrics, logs.Events(tmp_path / "events") as events:
        metrics.write(1, {"loss": 1.0})
        size = path.stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))  # in mid-line
        try:
            for step in (2, 3):
                metrics.write(step, {"loss": 1.0})
                for _ in range(50):  # more than a queue would hold
                    events.write(step, {"loss": 1.0})
            assert path.stat().st_size == size + 10
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        metrics.write(4, {"loss": 1.0})
        events.write(4, {"loss": 1.0})
    assert [r["step"] for r in logs.read(path)] == [1, 2, 3, 4]
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4 and sum("is written again" in line for line in said) == 2
    assert sum("cannot write" in line and "File too large" in line for line in said) == 2


def test_json_is_written_whole_or_not_at_all(tmp_path):
    workdir.write_json(tmp_path / "a.json", {"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, before[1]))
    try:
        with pytest.raises(UserError, match="a.json: File too large"):
            workdir.write_json(tmp_path / "a.json", {"a": 2})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# ---------------------------------------------------------------- safe to open


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


def test_the_bomb_goes_off_where_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "gone_off")))
    assert (tmp_path / "gone_off").exists()


def test_no_file_of_a_checkpoint_is_unpickled(kept, tmp_path):
    """A forger writes the manifest anew: then Orbax reads what is there, and must run nothing."""
    folder, bomb = tmp_path / "checkpoints", pickle.dumps(Bomb(tmp_path / "gone_off"))
    shutil.copytree(kept[0] / "8", folder / "8")
    for name in [p.relative_to(folder / "8") for p in files(folder / "8")]:
        (folder / "8" / name).write_bytes(bomb)
        if name.name != manifest.NAME:
            manifest.write(folder / "8")
        with store.open_manager(folder, 1, read_only=True) as manager:
            try:
                step = verify.newest(manager, read_only=True)
                reading.restore_part(manager, step, like(), encoder)
                reading.restore(manager, step, like())
            except Exception as error:
                assert "gone_off" not in str(error)
        shutil.rmtree(folder / "8")
        shutil.copytree(kept[0] / "8", folder / "8")
    assert not (tmp_path / "gone_off").exists()


def test_a_forged_manifest_opens_nothing_outside(kept, tmp_path):
    step = tmp_path / "8"
    shutil.copytree(kept[0] / "8", step)
    secret = tmp_path / "secret"
    os.mkfifo(secret)  # opening it would wait for ever
    named = json.loads((step / manifest.NAME).read_text())["files"]
    for outside in ("../secret", str(secret)):
        forged = {**named, outside: {"bytes": 0, "sha256": "0" * 64}}
        (step / manifest.NAME).write_text(manifest._text(forged))
        assert manifest.damage(step) == f"{outside} is missing"
    for odd in ([], 3, None, {"x": 3}, {"x": {"bytes": "1", "sha256": 2}}):
        (step / manifest.NAME).write_text(manifest._text(odd))
        assert manifest.damage(step) == f"{manifest.NAME} is damaged"


@pytest.mark.parametrize(
    "change",
    [
        lambda c: [],
        lambda c: {**c, "config": "x"},
        lambda c: {**c, "config": {**c["config"], "method": {"name": "os.system"}}},
        lambda c: {**c, "config": {**c["config"], "model": {"name": ["resnet18"]}}},
        lambda c: {**c, "config": {**c["config"], "batch": "64; touch gone_off"}},
        lambda c: {**c, "config": {**c["config"], "data": {"__class__": "Bomb"}}},
        lambda c: {**c, "run": {"__reduce__": 1}},
        lambda c: {**c, "cpu_devices": 10**400},
    ],
)
def test_a_hostile_config_is_one_line(kept, tmp_path, change, capsys):
    from ssl_jax.contract.method import Run
    from ssl_jax.runs import config as configs

    config, _ = configs.load("configs/simclr.py:digits")
    workdir.write_config(tmp_path, workdir.Saved(config, Run(4000, 256, 15, 15), 4))
    shutil.copytree(kept[0], tmp_path / "checkpoints")
    file = tmp_path / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    assert tiny_run.probe("knn", tmp_path) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and "config.json" in err


def test_hostile_weights_and_arrays_run_nothing(tmp_path):
    """Files that hold a pickle, by the names that pickles go by."""
    bomb = pickle.dumps(Bomb(tmp_path / "gone_off"))
    for name in ("weights.pth", "array.npy", "arrays.npz", "result.json", "config.json"):
        (tmp_path / name).write_bytes(bomb)
    assert workdir.read_result(tmp_path) is None
    with pytest.raises(UserError, match="is damaged"):
        workdir.read_config(tmp_path)
    for name in ("array.npy", "arrays.npz"):  # as every np.load in the code base: no pickles
        with pytest.raises(ValueError):
            np.load(tmp_path / name)
    assert not (tmp_path / "gone_off").exists()


def test_nothing_in_the_code_base_unpickles_or_evaluates():
    """No reader that can run what it reads, unless told not to."""
    unsafe = ("pickle.load", "allow_pickle=True", "marshal.load", "joblib.load", "eval(", " exec(")
    loaders = {"torch.load(": "weights_only=True", "yaml.load(": "SafeLoader"}
    for file in sorted((tiny_run.REPOSITORY / "ssl_jax").rglob("*.py")):
        text = file.read_text().replace("literal_eval(", "")
        text = text.replace(".eval()", "")
        assert not [word for word in unsafe if word in text], file
        for loader, safe in loaders.items():
            for call in text.split(loader)[1:]:
                assert safe in call.split("\n\n")[0], (file, loader)
