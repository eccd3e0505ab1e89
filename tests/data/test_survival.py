"""Files, folders and disks that fail while a run goes on."""

import errno
import json
import logging
import os
import threading

import numpy as np
import pytest
from kit import tiny_run
from PIL import Image

from ssl_jax.checkpoints.store import open_manager
from ssl_jax.contract.source import Lost
from ssl_jax.data import loader
from ssl_jax.data.decode import reader
from ssl_jax.data.sources import folder as folders
from ssl_jax.data.sources import open_source
from ssl_jax.errors import UserError


@pytest.fixture
def flat(tmp_path):
    """A folder of n pictures, picture i of level i."""

    def write(n, name="set"):
        root = tmp_path / name
        root.mkdir()
        for i in range(n):
            Image.fromarray(np.full((6, 6), i, np.uint8)).save(root / f"{i:03d}.png")
        return root

    return write


@pytest.fixture
def faulty(monkeypatch):
    """Makes reading a file fail: names -> what is raised, for ever or so many times."""
    whole = folders.content
    monkeypatch.setattr(reader, "PAUSES", (0.01, 0.02))

    def install(faults, times=10**9):
        left = dict.fromkeys(faults, times)

        def content(path):
            name = os.path.basename(path)
            if left.get(name, 0) > 0:
                left[name] -= 1
                raise faults[name]
            return whole(path)

        monkeypatch.setattr(folders, "content", content)

    return install


def read(source, stop=4):
    """Index and grey level of the pictures of some batches."""
    seen = list(loader.batches(source, seed=0, batch=10, stop=stop, threads=2))
    index = np.concatenate([b["index"] for b in seen])
    np.testing.assert_array_equal(np.concatenate([b["image"] for b in seen])[:, 0, 0, 0], index)
    return index


def test_pictures_that_vanish_or_cannot_be_read_any_more_are_replaced(config, flat, caplog):
    root = flat(40)
    source = open_source(config(source=f"folder:{root}", cache_bytes=0), "train")
    assert sorted(read(source)) == list(range(40))
    (root / "007.png").unlink()
    (root / "020.png").unlink()
    (root / "020.png").mkdir()
    (root / "030.png").write_bytes(b"overwritten")
    index = list(read(source))
    assert sorted(set(index)) == [i for i in range(40) if i not in (7, 20, 30)]
    assert all(index.count(i) == 2 for i in (8, 21, 31))
    reasons = [reason for _, reason in source.bad()]
    assert reasons[:2] == ["No such file or directory", "Is a directory"]
    assert len([r for r in caplog.records if "the next picture takes its place" in r.msg]) == 3


@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), MemoryError()])
def test_a_reader_that_fails_is_tried_again(config, flat, faulty, error):
    root = flat(40)
    source = open_source(config(source=f"folder:{root}", cache_bytes=0), "train")
    faulty({"005.png": error, "006.png": error}, times=2)
    assert sorted(read(source)) == list(range(40)) and source.bad() == []
    faulty({"005.png": error})
    index = list(read(source))
    assert 5 not in index and index.count(6) == 2
    ((path, reason),) = source.bad()
    assert path.endswith("005.png")
    assert reason == ("Input/output error" if isinstance(error, OSError) else "not enough memory")


def test_whatever_else_a_reader_raises_costs_one_picture(config, flat, faulty):
    root = flat(40)
    source = open_source(config(source=f"folder:{root}", cache_bytes=0), "train")
    faulty({"005.png": ValueError("a\nbug"), "006.png": RuntimeError("hash mismatch")})
    assert not {5, 6} & set(read(source))
    assert [r for _, r in source.bad()] == ["ValueError: a bug", "RuntimeError: hash mismatch"]


def test_a_lost_folder_counts_no_picture_as_broken(config, flat, caplog):
    root = flat(40)
    source = open_source(config(source=f"folder:{root}", cache_bytes=0), "train")
    os.rename(root, f"{root}.away")
    with pytest.raises(Lost) as error:
        source.read([3, 4])
    expected = f"folder:{root} is out of reach ({root}/003.png: No such file or directory)"
    assert f"folder:{error.value}" == expected and isinstance(error.value, UserError)
    os.mkdir(root)  # an unmounted disk leaves an empty folder
    with pytest.raises(Lost):
        source.read([3, 4])
    os.rmdir(root)
    os.rename(f"{root}.away", root)
    np.testing.assert_array_equal(source.read([3, 4])["index"], [3, 4])
    assert source.bad() == [] and not caplog.records


def test_a_lost_folder_is_waited_for(config, flat, caplog, monkeypatch):
    monkeypatch.setattr(loader, "PAUSES", (0.05,))
    root = flat(40)
    source = open_source(config(source=f"folder:{root}", cache_bytes=0), "train")
    os.rename(root, f"{root}.away")
    threading.Timer(0.5, os.rename, (f"{root}.away", root)).start()
    with caplog.at_level(logging.WARNING):
        assert sorted(read(source)) == list(range(40))
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2 and "is out of reach" in said[0] and "the data is back" in said[1]


def test_what_only_has_the_name_of_a_picture_is_not_opened(config, flat):
    root = flat(40)
    os.mkfifo(root / "a.png")  # would wait for a writer
    os.symlink("/dev/zero", root / "b.png")  # would never end
    with open(root / "c.png", "wb") as file:
        file.truncate(folders.MAX_BYTES + 1)
    source = open_source(config(source=f"folder:{root}", cache_bytes=0), "train")
    np.testing.assert_array_equal(source.read([40, 41, 42])["index"], [0, 0, 0])
    reasons = [reason for _, reason in source.bad()]
    assert reasons[:2] == ["not a file"] * 2 and "more than the" in reasons[2]


@pytest.mark.long
def test_a_run_outlives_its_folder(flat, tmp_path, monkeypatch, capfd, caplog):
    """Gone and back: the run goes on. Gone for good: it saves and stops, and continues later."""
    root = flat(60)
    monkeypatch.setattr(loader, "PAUSES", (0.1,))
    whole, away, gone = folders.content, f"{root}.away", []
    lock, count = threading.Lock(), {"read": 0, "failed": 0}

    def content(path):
        with lock:
            if gone and count["read"] >= gone[0]:
                gone.pop(0)
                os.rename(root, away)
            try:
                found = whole(path)
            except FileNotFoundError:
                count["failed"] += 1
                if count["failed"] == 100:
                    os.rename(away, root)
                raise
            if threading.current_thread().name.startswith("ssl_jax_loader"):
                count["read"] += 1
            return found

    monkeypatch.setattr(folders, "content", content)
    fields = {"data.source": f"folder:{root}", "data.cache_bytes": 0, "data.patience": 2}
    fields = {**fields, "data.threads": 1, "batch": 16, "checkpoint.every_steps": 0}
    more = [f"--config.{k}={v}" for k, v in fields.items()]

    def fingerprint(workdir):
        return (workdir / "result.json").read_text().split('"fingerprint": "')[1][:64]

    assert tiny_run.run(tmp_path / "calm", *more) == 0
    count["read"] = 0
    gone += [100, 150]  # 12 steps read 192
    assert tiny_run.run(tmp_path / "hit", *more) == 2
    assert count["failed"] > 100
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ") and "is out of reach" in line and "saved at step" in line
    with open_manager(tmp_path / "hit" / "checkpoints", 1, read_only=True) as manager:
        assert f"saved at step {manager.latest_step()}" in line and manager.latest_step() >= 5
    assert "the data is back" in caplog.text
    lines = (tmp_path / "hit" / "metrics.jsonl").read_text().splitlines()
    shares = [json.loads(line).get("data_wait_share", 0) for line in lines]
    assert max(shares) > 0.5 and min(shares) >= 0 and max(shares) <= 1
    os.rename(away, root)
    assert tiny_run.run(tmp_path / "hit", *more) == 0
    assert fingerprint(tmp_path / "hit") == fingerprint(tmp_path / "calm")
