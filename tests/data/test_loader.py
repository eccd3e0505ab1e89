import gc
import itertools
import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from ssl_jax.contract.batch import image
from ssl_jax.contract.source import Lost, Source
from ssl_jax.data import loader
from ssl_jax.data.sources import open_source
from ssl_jax.errors import UserError
from ssl_jax.processes import host


def count(n, read=None, name="counted"):
    """A source whose picture i holds the value i."""

    def plain(rows):
        rows = np.asarray(rows)
        image = np.broadcast_to(rows[:, None, None, None], (len(rows), 2, 2, 1)).astype(np.uint8)
        return {"image": image, "index": rows.astype(np.int32), "label": (rows % 3).astype("i4")}

    return Source(name, n, 3, image(2, 1), read or plain, lambda: [])


def alive():
    return [t for t in threading.enumerate() if t.name.startswith("ssl_jax_loader")]


def wait_until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def test_order_is_the_philox_permutation():
    # Written down once: the order is part of what a run reproduces.
    np.testing.assert_array_equal(loader.order(3, 1, 8), [7, 1, 0, 6, 2, 3, 5, 4])
    expected = np.random.Generator(np.random.Philox([3, 1])).permutation(8)
    np.testing.assert_array_equal(loader.order(3, 1, 8), expected)
    with pytest.raises(ValueError):
        loader.order(3, 1, 8)[0] = 0


def test_rows():
    # n = 10, batch = 4: two steps an epoch. Step 5 is the second of epoch 2.
    order = loader.order(0, 2, 10)
    np.testing.assert_array_equal(loader.rows(0, 5, 10, 4), order[4:8])
    np.testing.assert_array_equal(loader.rows(0, 5, 10, 4, 1, 2), order[6:8])


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_hold_parts_of_the_same_batch(processes):
    for step in range(7):
        whole = loader.rows(1, step, 30, 8)
        parts = [loader.rows(1, step, 30, 8, p, processes) for p in range(processes)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    source = count(30)
    single = loader.batches(source, seed=1, batch=8, stop=7, threads=1)
    shared = [
        loader.batches(source, seed=1, batch=8, stop=7, process=p, processes=processes)
        for p in range(processes)
    ]
    for batch, *parts in zip(single, *shared, strict=True):
        for key in batch:
            np.testing.assert_array_equal(np.concatenate([part[key] for part in parts]), batch[key])


def test_every_example_once_an_epoch():
    batches = list(loader.batches(count(30), seed=0, batch=10, stop=6))
    first, second = (np.concatenate([b["index"] for b in batches[i : i + 3]]) for i in (0, 3))
    assert sorted(first) == sorted(second) == list(range(30))
    assert (first != second).any()
    for b in batches:
        np.testing.assert_array_equal(b["image"][:, 0, 0, 0], b["index"])
    dropped = np.concatenate(
        [b["index"] for b in loader.batches(count(30), seed=0, batch=8, stop=3)]
    )
    assert len(set(dropped)) == 24  # 30 mod 8 = 6 are left out


@pytest.mark.parametrize("threads, ahead", [(1, 0), (2, 1), (7, 3), (None, 2)])
def test_threads_do_not_matter_and_start_equals_skipping(threads, ahead):
    slow = np.random.default_rng(0).random(30) / 500

    def read(rows):
        time.sleep(slow[rows[0]])  # finish out of order
        return count(30).read(rows)

    source = count(30, read)
    expected = [loader.rows(5, step, 30, 7) for step in range(12)]
    found = list(loader.batches(source, seed=5, batch=7, stop=12, threads=threads, ahead=ahead))
    late = list(
        loader.batches(source, seed=5, batch=7, start=9, stop=12, threads=threads, ahead=ahead)
    )
    assert len(found) == 12 and len(late) == 3
    for rows, batch in zip(expected, found, strict=True):
        np.testing.assert_array_equal(batch["index"], rows)
    for rows, batch in zip(expected[9:], late, strict=True):
        np.testing.assert_array_equal(batch["index"], rows)


def test_seeds_differ_and_a_late_step_starts_at_once():
    assert (loader.rows(0, 0, 30, 30) != loader.rows(1, 0, 30, 30)).any()
    with loader.batches(count(50_000), seed=0, batch=100, start=10**9) as batches:
        np.testing.assert_array_equal(next(batches)["index"], loader.rows(0, 10**9, 50_000, 100))


def test_an_error_comes_at_its_step_and_ends_the_threads():
    bad = loader.rows(0, 3, 40, 4)[0]

    def read(rows):
        if bad in rows:
            raise UserError("broken")
        return count(40).read(rows)

    before = set(alive())
    batches = loader.batches(count(40, read), seed=0, batch=4, threads=3, ahead=4)
    for _ in range(3):
        next(batches)
    with pytest.raises(UserError, match="broken"):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    assert wait_until(lambda: set(alive()) <= before)


@pytest.mark.parametrize("end", ["close", "with", "del", "exhaust", "interrupt"])
def test_threads_end(end, monkeypatch):
    before = set(alive())
    batches = loader.batches(count(40), seed=0, batch=4, stop=9, threads=3)
    next(batches)
    assert set(alive()) - before
    if end == "close":
        batches.close()
        assert list(batches) == []
    elif end == "with":
        with batches:
            next(batches)
    elif end == "del":
        del batches
        gc.collect()
    elif end == "exhaust":
        assert len(list(batches)) == 8
    else:
        from concurrent.futures import Future

        def result(self):
            raise KeyboardInterrupt

        monkeypatch.setattr(Future, "result", result)
        with pytest.raises(KeyboardInterrupt):
            next(batches)
    assert wait_until(lambda: set(alive()) <= before)


def test_reading_runs_ahead_but_not_away():
    made = []

    def read(rows):
        made.append(rows[0])
        return count(400).read(rows)

    with loader.batches(count(400, read), seed=0, batch=4, threads=2, ahead=3) as batches:
        assert wait_until(lambda: len(made) == 5)
        next(batches)
        assert wait_until(lambda: len(made) == 6)
        time.sleep(0.05)
        assert len(made) == 6


def test_waiting_is_measured():
    def read(rows):
        time.sleep(0.1)
        return count(40).read(rows)

    batches = loader.batches(count(40, read), seed=0, batch=4, stop=2, threads=2)
    next(batches)
    assert 0.05 < batches.waited < 1
    time.sleep(0.2)
    waited = batches.waited
    next(batches)  # was made meanwhile
    assert batches.waited - waited < 0.05


@pytest.mark.parametrize("processes", [1, 2])
def test_in_order_pads_the_last_batch(processes):
    parts = [
        list(loader.in_order(count(10), batch=4, process=p, processes=processes))
        for p in range(processes)
    ]
    assert [len(p) for p in parts] == [3] * processes
    whole = [
        {key: np.concatenate([b[key] for b in step]) for key in step[0]}
        for step in zip(*parts, strict=True)
    ]
    index = np.concatenate([b["index"] for b in whole])
    np.testing.assert_array_equal(index, [*range(10), -1, -1])
    label = np.concatenate([b["label"] for b in whole])
    np.testing.assert_array_equal(label[:10], np.arange(10) % 3)
    assert (label[10:] == -1).all()
    last = whole[-1]["image"]
    assert last.dtype == np.uint8 and last.shape == (4, 2, 2, 1)
    np.testing.assert_array_equal(last[:, 0, 0, 0], [8, 9, 0, 0])
    assert all(b["index"].dtype == np.int32 for b in whole)


def test_in_order_when_a_process_has_padding_alone():
    (batch,) = loader.in_order(count(3), batch=8, process=1, processes=2)
    assert batch["image"].shape == (4, 2, 2, 1) and (batch["index"] == -1).all()


def test_errors():
    with pytest.raises(UserError, match="counted has 30 examples, fewer than the batch of 31"):
        loader.batches(count(30), seed=0, batch=31)
    with pytest.raises(UserError, match="batch of 9 cannot be shared evenly by 2"):
        loader.batches(count(30), seed=0, batch=9, processes=2)
    with pytest.raises(UserError, match="seed=-1"):
        loader.batches(count(30), seed=-1, batch=9)
    with pytest.raises(UserError, match="cannot be shared"):
        loader.in_order(count(30), batch=0)


def test_synthetic(config):
    data = config(source="synthetic", examples=3000, classes=7, size=8)
    train, test = open_source(data, "train"), open_source(data, "test")
    assert (train.examples, test.examples, train.classes) == (3000, 750, 7)
    batch = train.read(np.arange(3000))
    assert batch["image"].shape == (3000, 8, 8, 3) and batch["image"].dtype == np.uint8
    np.testing.assert_array_equal(batch["label"], np.arange(3000) % 7)
    assert len({image.tobytes() for image in batch["image"]}) == 3000
    assert abs(batch["image"].mean() - 127.5) < 1  # noise over the whole range
    assert (test.read(np.arange(9))["image"] != batch["image"][:9]).any()
    again = open_source(data, "train").read(np.array([2999, 5, 5]))
    np.testing.assert_array_equal(again["image"], batch["image"][[2999, 5, 5]])
    assert open_source(config(source="synthetic", classes=0), "train").read([1])["label"] == -1


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_micro_batches_do_not_depend_on_the_number_of_processes(processes):
    whole = loader.rows(3, 5, 100, 24)
    parts = [loader.rows(3, 5, 100, 24, p, processes, accumulate=3) for p in range(processes)]
    micro = np.stack([part.reshape(3, -1) for part in parts], 1)  # [3, processes, rows]
    np.testing.assert_array_equal(micro.reshape(-1), whole)


@pytest.mark.parametrize("n, batch, accumulate", [(103, 12, 1), (97, 24, 2), (24, 24, 1)])
def test_no_example_is_read_twice_in_an_epoch_whatever_the_processes(n, batch, accumulate):
    # The number of processes changes in the middle of an epoch, as after a restart on other hosts.
    per_epoch = n // batch
    for epoch in range(3):
        read = []
        for k in range(per_epoch):
            step = epoch * per_epoch + k
            processes = ((1, 2), (3, 1), (2, 6))[epoch][k > per_epoch // 2]
            for p in range(processes):
                shared = {"process": p, "processes": processes, "accumulate": accumulate}
                (part,) = loader.batches(
                    count(n), seed=2, batch=batch, start=step, stop=step + 1, **shared
                )
                assert len(part["index"]) == batch // processes
                read.extend(part["index"])
        assert len(read) == len(set(read)) == per_epoch * batch
        assert set(read) == set(loader.order(2, epoch, n)[: per_epoch * batch])


@pytest.mark.parametrize("n, processes", [(10, 2), (11, 4), (3, 4), (17, 3)])
def test_in_order_reads_every_example_once_over_processes(n, processes):
    read = [
        i
        for p in range(processes)
        for part in loader.in_order(count(n), batch=12, process=p, processes=processes)
        for i in part["index"]
        if i >= 0
    ]
    assert sorted(read) == list(range(n))


def outage(n, fails, error):
    """A source of n whose reads after the first five fail `fails` times."""
    reads = itertools.count()

    def read(rows):
        if 5 <= next(reads) < 5 + fails:
            raise error
        return count(n).read(rows)

    return count(n, read)


@pytest.mark.parametrize(
    "error", [Lost("the disk is out of reach"), OSError(5, "Input/output error"), MemoryError()]
)
def test_an_outage_is_waited_for_and_changes_nothing(error, caplog, monkeypatch):
    monkeypatch.setattr(loader, "PAUSES", (0.05,))
    plain = list(loader.batches(count(40), seed=0, batch=4, stop=20))
    found = list(loader.batches(outage(40, 12, error), seed=0, batch=4, stop=20, threads=2))
    for a, b in zip(plain, found, strict=True):
        np.testing.assert_array_equal(a["index"], b["index"])
    said = [r.getMessage() for r in caplog.records]
    assert any("trying again for 600 s" in m for m in said) and "the data is back" in said[-1]
    assert sum("trying again" in m for m in said) <= 3  # not once a batch that was read ahead


def test_patience_ends_with_one_line(monkeypatch):
    monkeypatch.setattr(loader, "PAUSES", (0.05,))
    before = set(alive())
    source = outage(40, 10**9, Lost("the disk is out of reach"))
    batches = loader.batches(source, seed=0, batch=4, threads=1, patience=0.3)
    for _ in range(5):
        next(batches)
    with pytest.raises(Lost, match="the disk is out of reach; waited 0 s for it."):
        next(batches)
    assert wait_until(lambda: set(alive()) <= before)


@pytest.mark.parametrize("hangs", [False, True])
def test_one_may_leave_while_it_waits(hangs, monkeypatch, caplog):
    monkeypatch.setattr(loader, "LATE", 0.2)
    monkeypatch.setattr(loader, "POLL", 0.05)
    go = threading.Event()

    def read(rows):
        if hangs:
            go.wait(30)
        raise Lost("the disk is out of reach")

    batches = loader.batches(count(40, read), seed=0, batch=4, threads=1)
    end = time.monotonic() + 0.5
    batches.leave = lambda: time.monotonic() > end
    assert list(batches) == [] and time.monotonic() - end < 5
    go.set()
    late = "no batch for 0 s: a reader is slow, or hangs"
    assert (late in caplog.text) == hangs


def test_a_loader_that_is_left_open_ends_without_a_word():
    """It lives until the interpreter ends, where modules are taken apart."""
    script = """
import sys
import numpy as np
from ssl_jax.contract.source import Source
from ssl_jax.data import loader

def read(rows):
    return {"index": np.asarray(rows), "label": np.asarray(rows)}

batches = loader.batches(Source("x", 100, 0, {}, read, lambda: []), seed=0, batch=10, threads=2)
next(batches)
sys.modules["kept"] = batches
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(
    "cores, mebibytes, here, readers",
    [
        (2, 1, 1, 2),  # one a core
        (64, 1, 1, 64),
        (64, 128, 1, 28),  # 4 GiB hold 32 batches: 28 being read, 3 ahead, 1 in use
        (64, 600, 1, 8),  # never fewer than 8 for want of memory
        (4, 600, 1, 4),
        (64, 1, 8, 8),  # eight processes share the host
        (64, 128, 2, 12),  # 2 GiB each
        (64, 600, 8, 1),
        (2, 1, 4, 1),
    ],
)
def test_there_is_a_reader_for_every_core_that_memory_bears(
    cores, mebibytes, here, readers, monkeypatch
):
    monkeypatch.setattr(host, "cores", lambda: cores)
    fields = {"image": jax.ShapeDtypeStruct((1 << 20,), np.uint8)}
    source = count(10)._replace(fields=fields)
    assert loader.readers(source, mebibytes, 3, here) == readers


def test_cores_where_the_system_does_not_say(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert host.cores() == 6
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert host.cores() == 1
