"""A set kept in device memory: its batches are the loader's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.contract.source import Lost, Source
from ssl_jax.data import loader, resident
from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.train.steps import make_steps

N, BROKEN, SHAPE = 37, 5, (3, 2, 3)
FIELDS = {"image": jax.ShapeDtypeStruct(SHAPE, np.uint8)}
BATCH, ACCUMULATE, SEED = 16, 2, 7
START, STOP = 1, 6  # two steps an epoch: over two of its ends
IMAGES = np.random.default_rng(0).integers(0, 256, (N, *SHAPE), np.uint8)


def read(rows):
    """The picture after BROKEN stands in for it, as `decode/reader.py` has it."""
    index = np.where(rows == BROKEN, BROKEN + 1, rows).astype(np.int32)
    return {"image": IMAGES[index], "index": index, "label": index % 3}


SOURCE = Source("noise", N, 3, FIELDS, read, lambda: [])


def collect(source, **more):
    with resident.pieces(source, threads=2, ahead=1, **more) as pieces:
        return resident.collect(source, pieces)


@functools.cache
def expected():
    """The loader's batches, micro-batch by micro-batch: leaves [steps, accumulate, B, …]."""
    with loader.batches(
        SOURCE, seed=SEED, batch=BATCH, start=START, stop=STOP, accumulate=ACCUMULATE
    ) as batches:
        found = list(batches)
    stacked = {k: np.stack([b[k] for b in found]) for k in found[0]}
    return {k: x.reshape(len(x), ACCUMULATE, -1, *x.shape[2:]) for k, x in stacked.items()}


def rows_of(at_once, **more):
    return list(
        resident.calls(
            N,
            seed=SEED,
            batch=BATCH,
            start=START,
            stop=STOP,
            at_once=at_once,
            accumulate=ACCUMULATE,
            **more,
        )
    )


@pytest.mark.parametrize(
    ("devices", "mode"), [(1, "shard_map"), (4, "shard_map"), (4, "pmap"), (4, "jit")]
)
def test_a_step_sees_the_batch_that_the_loader_would_give(devices, mode, monkeypatch):
    monkeypatch.setattr(resident, "PIECE", 8)
    mesh = layout.mesh(jax.devices()[:devices])

    def step(state, batch, axis):
        def everyone(x):  # [accumulate, b, …] -> [accumulate, B, …]
            return jnp.swapaxes(collectives.gather(jnp.swapaxes(x, 0, 1), axis), 0, 1)

        return state + 1, jax.tree.map(everyone, batch)

    steps = mapping.compile_steps(make_steps(step, ACCUMULATE, FIELDS), mesh, mode)
    images = layout.put_whole(collect(SOURCE), mesh)
    state, found = jax.device_put(np.int32(0), layout.replicated(mesh)), []
    for rows in rows_of(at_once=3):
        state, seen = steps(state, images, layout.put_batch(rows, mesh, mode))
        found.append(seen)
    assert int(state) == STOP - START and [len(f["index"]) for f in found] == [3, 2]
    assert found[0]["image"].dtype == jnp.uint8
    for name, want in expected().items():
        np.testing.assert_array_equal(np.concatenate([f[name] for f in found]), want, name)
    index = np.concatenate([f["index"] for f in found])
    assert BROKEN not in index and (np.unique(index, return_counts=True)[1] > 1).any()


def test_processes_have_the_rows_of_their_devices():
    whole = rows_of(2)
    halves = zip(*(rows_of(2, process=p, processes=2) for p in range(2)), strict=True)
    assert [r.shape for r in whole] == [(4, 8), (4, 8), (2, 8)]
    for rows, parts in zip(whole, halves, strict=True):
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), rows)


def test_a_set_that_is_out_of_reach_is_waited_for_or_lost(monkeypatch):
    monkeypatch.setattr(resident, "PIECE", 10)
    monkeypatch.setattr(loader, "PAUSES", (0.01,))
    fails = [2]

    def sometimes(rows):
        if rows[0] == 20 and fails[0]:
            fails[0] -= 1
            raise Lost("noise is out of reach")
        return read(rows)

    found = collect(SOURCE._replace(read=sometimes))
    np.testing.assert_array_equal(found["index"], read(np.arange(N))["index"])
    np.testing.assert_array_equal(found["image"], read(np.arange(N))["image"].reshape(N, -1))
    assert fails == [0]
    fails = [10**9]
    with pytest.raises(Lost, match="waited"):
        collect(SOURCE._replace(read=sometimes), patience=0.05)


def test_reading_ends_where_the_run_is_asked_to_leave():
    def lost(rows):
        raise Lost("noise is out of reach")

    source = SOURCE._replace(read=lost)
    with resident.pieces(source, threads=1, ahead=0) as pieces:
        pieces.leave = lambda: True
        assert resident.collect(source, pieces) is None


def test_what_fits():
    size = resident.size(SOURCE)
    assert size == IMAGES.nbytes
    assert resident.fits(SOURCE, 8 * size, size)
    assert not resident.fits(SOURCE, 8 * size - 1, size), "an eighth of a device"
    assert not resident.fits(SOURCE, 8 * size, size - 1), "not kept by the host either"
    assert not resident.fits(SOURCE, 0, size), "CPU"
