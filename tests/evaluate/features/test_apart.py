"""Features that no process keeps whole, in one process of four devices and in two of two."""

import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import apart
from ssl_jax.evaluate.probes import accuracy, linear, linear_sgd, neighbours

REPOSITORY = pathlib.Path(__file__).parents[3]
N, D, CLASSES, BATCH = 203, 6, 3, 16
RECIPE = {"batch": BATCH, "epochs": 3, "learning_rates": (0.03, 0.3), "batch_norm": True}


def blobs(n=N, seed=0):
    """Whole numbers of mean 0, so that distances are exact; rows stand twice, far apart."""
    r = np.random.default_rng(seed)
    y = r.integers(0, CLASSES, n).astype(np.int32)
    centres = np.random.default_rng(99).normal(size=(CLASSES, D))
    x = np.round(2 * (centres[y] + 0.6 * r.normal(size=(n, D))))
    x[n // 2 :], y[n // 2 :] = x[: n - n // 2], y[: n - n // 2]
    y[:5] = y[-1] = -1
    x[-1] -= x.sum(0)
    return x.astype(np.float32), y


def dealt(x, y):
    """The rows as the jobs have them: every process computes its own."""
    return apart.extract(lambda rows: (x[rows], y[rows]), np.arange(len(x)), layout.mesh())


def message(f, *args):
    with pytest.raises(UserError) as error:
        f(*args)
    return str(error.value)


def numbers():
    """What may not depend on the number of processes."""
    x, y = blobs()
    queries, labels = blobs(31, seed=1)
    train = dealt(x, y)
    far = dealt(np.stack([x[:, 0], 1e4 + 1e-2 * x[:, 1]], axis=1), y)
    few = dealt(x[10:12], y[10:12])  # a device has one row, two of the four none
    broken = dealt(np.where(np.arange(N)[:, None] == N - 1, np.nan, x), y)
    again = dealt(x + 1, y)
    near = {
        "cosine": neighbours.by_cosine_apart(train, queries, 9),
        "distance": neighbours.by_distance_apart(train, queries, 9),
        "few": neighbours.by_distance_apart(few, queries, 3),
    }
    sgd = (queries, labels, CLASSES, RECIPE)
    return {
        "own": [len(train.own), len(few.own)],
        "labels": train.labels.tolist(),
        "gathered": [apart.gather(a).tolist() for a in (train, few)],
        "index": {name: n.index.tolist() for name, n in near.items()},
        "similarity": {
            name: np.nan_to_num(n.similarity, neginf=-9e9).tolist() for name, n in near.items()
        },
        "standardisation": [c.tolist() for c in linear._standardisation(far)],
        "lbfgs": linear.probe_apart(train, queries, labels, CLASSES),
        "sgd": linear_sgd.probe(lambda epoch: train, train, *sgd),
        "augmented": linear_sgd.probe(lambda epoch: (train, again)[epoch % 2], train, *sgd),
        "errors": [
            message(neighbours.by_cosine_apart, broken, queries, 3),
            message(neighbours.by_distance_apart, broken, queries, 3),
            message(linear.probe_apart, broken, queries, labels, CLASSES),
            message(linear_sgd.probe, lambda epoch: broken, broken, *sgd),
        ],
    }


def process(port, number):
    """One of two processes: prints the numbers as its last line."""
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, number)
    print(json.dumps(numbers(), default=np.ndarray.tolist))


@pytest.fixture(scope="module")
def one():
    return json.loads(json.dumps(numbers(), default=np.ndarray.tolist))


@pytest.fixture(scope="module")
def two():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    paths = [
        str(pathlib.Path(__file__).parent),
        str(REPOSITORY),
        str(REPOSITORY / "tests"),
        os.environ["PYTHONPATH"],
    ]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", f"import test_apart; test_apart.process({port}, {p})"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for p in range(2)
    ]
    outs = [p.communicate(timeout=300)[0] for p in processes]
    assert [p.returncode for p in processes] == [0, 0], "\n".join(outs)
    return [json.loads(out.splitlines()[-1]) for out in outs]


@pytest.mark.long
def test_each_process_has_its_own_rows_and_all_know_the_labels(one, two):
    assert one["own"] == [N, 2]
    assert [numbers["own"] for numbers in two] == [[102, 2], [101, 0]]  # blocks of 51 and of 1
    x, y = blobs()
    for found in (one, *two):
        assert found["labels"] == y.tolist()
        assert found["gathered"] == [x.tolist(), x[10:12].tolist()]


def test_neighbours_are_those_of_one_process(one, two):
    for found in two:
        assert found["index"]["distance"] == one["index"]["distance"]
        assert found["index"]["few"] == one["index"]["few"]
        for name in ("cosine", "few"):
            np.testing.assert_allclose(
                found["similarity"][name], one["similarity"][name], atol=1e-6
            )
    # Rows stand twice, in different processes: of equals the earlier one comes first.
    for row in one["index"]["distance"]:
        assert all(r - N // 2 in row[: row.index(r)] for r in row if r >= N // 2 + 5)
    assert one["index"]["few"][0][2] == -1


def test_neighbours_of_one_process_are_those_of_the_plain_search():
    x, y = blobs()
    queries = blobs(31, seed=1)[0]
    for apart_by, by in (
        (neighbours.by_cosine_apart, neighbours.by_cosine),
        (neighbours.by_distance_apart, neighbours.by_distance),
    ):
        found, plain = apart_by(dealt(x, y), queries, 9), by(x, queries, 9, y >= 0)
        np.testing.assert_array_equal(found.similarity, plain.similarity)
        np.testing.assert_array_equal(found.index, plain.index)


def test_sums_over_processes_are_of_float64(one, two):
    x, y = blobs()
    far = np.stack([x[:, 0], 1e4 + 1e-2 * x[:, 1]], axis=1)[y >= 0].astype(np.float64)
    want = far.mean(0), 1 / far.std(0)
    for found in (one, *two):
        np.testing.assert_allclose(found["standardisation"], want, rtol=2e-7)
    assert two[0]["standardisation"] == two[1]["standardisation"] == one["standardisation"]


@pytest.mark.parametrize("name", ["lbfgs", "sgd", "augmented"])
def test_probes_find_what_one_process_finds(one, two, name):
    assert two[0][name] == two[1][name]  # to the bit, or they would part ways
    want, found = one[name], two[0][name]
    assert len(want["curve"]) >= 2 and 0.6 < want["top1"] <= 1
    for key in want.keys() - {"curve", "gap", "steps", "classifier"}:
        assert found[key] == pytest.approx(want[key], abs=1e-6), key
    for row, other in zip(found["curve"], want["curve"], strict=True):
        assert row["top1"] == other["top1"]
        assert row["cross_entropy"] == pytest.approx(other["cross_entropy"], rel=1e-3)
    if name == "augmented":
        assert want["curve"] != one["sgd"]["curve"]


def test_probes_of_one_process_are_those_of_one_device(one):
    x, y = blobs()
    queries, labels = blobs(31, seed=1)
    plain = linear.probe(x, y, queries, labels, CLASSES)
    assert plain["C"] == one["lbfgs"]["C"] and plain["top1"] == one["lbfgs"]["top1"]
    assert plain["curve"][0]["cross_entropy"] == pytest.approx(
        one["lbfgs"]["curve"][0]["cross_entropy"], rel=1e-4
    )
    alone = apart.alone(x, y)
    sgd = linear_sgd.probe(lambda epoch: alone, alone, queries, labels, CLASSES, RECIPE)
    assert sgd["top1"] == one["sgd"]["top1"]
    for row, other in zip(sgd["curve"], one["sgd"]["curve"], strict=True):
        assert row == pytest.approx(other, rel=1e-6)


def test_what_is_wrong_with_one_process_ends_all_with_the_same_line(one, two):
    assert all("train features are not all finite" in line for line in one["errors"])
    assert two[0]["errors"] == two[1]["errors"] == one["errors"]  # the row is the second's


@pytest.mark.parametrize("n", [1, 7, 8, 9, 203])
@pytest.mark.parametrize("processes, here", [(1, 4), (3, 1), (2, 4), (8, 2)])
def test_rows_are_dealt_once_and_in_order(monkeypatch, n, processes, here):
    devices = [
        types.SimpleNamespace(process_index=p) for p in range(processes) for _ in range(here)
    ]
    mesh = types.SimpleNamespace(devices=np.array(devices))
    assert layout.processes(mesh) == processes
    rows = []
    for p in range(processes):
        monkeypatch.setattr(jax, "process_index", lambda p=p: p)
        first, past = layout.own_rows(n, mesh)
        assert 0 <= past - first <= -(-n // (processes * here)) * here
        rows += range(first, past)
    assert rows == list(range(n))


def test_features_are_placed_once_and_left_as_they_are():
    x, y = blobs()
    aligned = dealt(x, y).own  # read where it is, and never written to
    assert aligned.ctypes.data % 64 == 0
    for a in (apart.alone(aligned, y), dealt(aligned, y)._replace(own=aligned)):
        placed = apart.place(a, a.mesh)
        np.testing.assert_array_equal(placed[:N], x)
        assert len(placed) == -(-N // a.mesh.devices.size) * a.mesh.devices.size
        assert not np.asarray(placed[N:]).any()
        assert len(placed.addressable_shards) == a.mesh.devices.size
        standardised = linear._placed(a)
        mean, scale = linear.standardisation(x[y >= 0])
        want = np.where(y[:, None] >= 0, (x - mean) * scale, 0)
        np.testing.assert_array_equal(standardised.x[:N], want)
        assert standardised.y[N:].tolist() == [-1] * (len(placed) - N)
        np.testing.assert_array_equal(aligned, x)


def test_sums_are_the_accuracy_of_the_rows_counted():
    r = np.random.default_rng(0)
    scores = np.round(2 * r.normal(size=(200, 5))).astype(np.float32)  # many equal ones
    scores[0], scores[1, 2], scores[2] = np.nan, np.nan, -np.inf
    y = r.integers(0, 5, 200)
    params = linear.Params(jnp.eye(5), jnp.zeros(5))
    right, cross_entropy, broken = linear.sums(params, scores, y, np.arange(200) >= 3)
    assert int(right) / 197 == accuracy.top(scores[3:], y[3:], 1) and broken == 0
    shifted = scores[3:] - np.log(np.exp(scores[3:]).sum(1, keepdims=True))
    want = -np.take_along_axis(shifted, y[3:, None], axis=1).sum()
    assert float(cross_entropy) == pytest.approx(want, rel=1e-5)
    # The product with 0 spreads a NaN over its row: such rows are wrong, and nothing else is.
    wrong, _, broken = linear.sums(params, scores, y, np.ones(200, bool))
    assert wrong == right and broken == 3


def largest(text):
    """Kind of collective -> numbers in its largest array, of the text of an HLO module."""
    kinds = "all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all"
    found = {}
    for shapes, kind in re.findall(rf"= (\(.*?\)|\S+) ({kinds})(?:-start)?\(", text):
        for dimensions in re.findall(r"\w+\[([\d,]*)\]", shapes):
            size = int(np.prod([int(d) for d in dimensions.split(",") if d]))
            found[kind] = max(found.get(kind, 0), size)
    return found


def test_no_features_travel():
    x, y = blobs()
    a = dealt(x, y)
    placed = linear._placed(a)
    fitted = linear.fit.lower(
        placed.x, placed.y, linear._weights(a, y >= 0), 1.0, linear._start(a, np.zeros(CLASSES))
    )
    assert largest(fitted.compile().as_text()) == {"all-reduce": D * CLASSES}
    scored = linear.sums.lower(
        linear._start(a, np.zeros(CLASSES)), placed.x, placed.y, placed.y >= 0
    )
    assert largest(scored.compile().as_text()) == {"all-reduce": 1}
    assert largest(epoch(a, layout.mesh()).as_text()) == {"all-reduce": BATCH * D}


def epoch(a, mesh):
    return linear_sgd._epoch.lower(*epoch_arguments(a, mesh), FIELDS, mesh).compile()


FIELDS = ("sgd", 0.9, True)


def epoch_arguments(a, mesh):
    start = linear_sgd.begin(D, CLASSES, 2, FIELDS, 0)
    state = layout.put_whole(jax.tree.map(np.asarray, start), mesh)
    order = np.random.default_rng(0).permutation(N)[: N // BATCH * BATCH]
    order = order.reshape(-1, BATCH).astype(np.int32)
    rates = np.full((len(order), 2), 0.1, np.float32)
    labels = layout.put_whole(np.maximum(a.labels, 0), mesh)
    return state, apart.place(a, mesh), labels, order, rates, np.float32([0, 1e-3])


def test_an_epoch_on_split_rows_is_that_of_one_device_to_the_bit():
    x, y = blobs()
    a = dealt(x, y)
    assert layout.repeating(a.mesh).devices.size == 1  # CPU devices share the cores
    states = [
        linear_sgd._epoch(*epoch_arguments(a, mesh), FIELDS, mesh)
        for mesh in (layout.mesh(), layout.repeating(a.mesh))
    ]
    for split, whole in zip(*map(jax.tree.leaves, states), strict=True):
        assert len(split.addressable_shards) == 4 and len(whole.addressable_shards) == 1
        for shard in split.addressable_shards:
            np.testing.assert_array_equal(shard.data, whole)
