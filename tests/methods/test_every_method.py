"""What every method of the dictionary must do: a method is under these tests by being in it.

Two programs are compiled for each, in float64: the step as it is written for one device, without
an axis, and as it is mapped over four. Six steps of both are made once, and all tests here read
them. The other mappings are tested for three methods that differ in what their state is,
float32 for the one with the most, and both for all of them by `pytest -m long`.
"""

import collections
import types
from typing import NamedTuple

import jax
import numpy as np
import pytest
from kit import probed, programs
from kit.hlo import collectives as listed
from kit.hlo import copies

from ssl_jax.checkpoints import reading, store, tree
from ssl_jax.devices import collectives
from ssl_jax.evaluate.features import encoder
from ssl_jax.methods import METHODS
from ssl_jax.models import norm

DEVICES, WIDTH = 4, 8
SMALL = ("statistics", "metrics")
# With a queue, a bank or a target; of the others' state the largest are means and variances.
REMEMBER = (
    "moco_v1",
    "moco_v2",
    "moco_v3",
    "ressl",
    "npid",
    "swav",
    "deepcluster_v2",
    "sela_v2",
    "byol",
    "dino",
)
# The one with the most state: statistics, a target, a queue, its rows shuffled in blocks. All the
# others are in the long set.
KINDS = ("moco_v2",)
# And of the other kinds: a bank, written by the number of the example; no state at all.
MAPPED = ("moco_v2", "npid", "mae")


@pytest.fixture(autouse=True)
def in_float64():
    with programs.float64():
        yield


class Twins(NamedTuple):
    """A method on one device and on four: built, its first state, programs, six steps of each."""

    built: programs.Built
    first: programs.TrainState
    one: programs.Program
    four: programs.Program
    after_one: tuple
    after_four: tuple


@pytest.fixture(scope="module", params=METHODS)
def twins(request):
    with programs.float64():
        built = programs.build(programs.exact(request.param))
        first = programs.start(built)
        one, four = programs.compile(built, 1, "jit"), programs.compile(built, DEVICES)
        yield Twins(built, first, one, four, *(programs.train(p, first) for p in (one, four)))
    jax.clear_caches()


def assert_equal(found, wanted, first):
    """Six steps that were the same but for the rounding of float64, 1e-9 of what they changed."""
    (metrics, state), (wanted_metrics, reference) = found, wanted
    for step, (a, b) in enumerate(zip(metrics, wanted_metrics, strict=True)):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9, abs=1e-12), step
        for name in a:  # they are float32
            assert a[name] == pytest.approx(b[name], rel=1e-6, abs=1e-7), (step, name)
    for (path, a), b, c in zip(
        programs.named(state.params),
        *map(jax.tree.leaves, (reference.params, first.params)),
        strict=True,
    ):
        assert a.dtype == np.float64, path
        move = np.abs(np.asarray(b) - c).max()
        np.testing.assert_allclose(a, b, atol=1e-9 * move + 1e-13, rtol=0, err_msg=path)
    for (path, a), b in zip(
        programs.named(state.state), jax.tree.leaves(reference.state), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9, err_msg=path)


def test_one_device_trains(twins):
    metrics, state = twins.after_one
    assert all(np.isfinite(list(m.values())).all() for m in metrics) and int(state.skipped) == 0
    labels = jax.tree.leaves(twins.built.method.labels(twins.first.params))
    moved = []
    for (path, a), b, label in zip(
        programs.named(twins.first.params), jax.tree.leaves(state.params), labels, strict=True
    ):
        moved.append(not np.array_equal(a, b))
        if label == "frozen":
            assert not moved[-1], path
    assert sum(moved) >= 0.6 * len(moved), "most parameters learn"


def test_four_devices_equal_one(twins):
    assert_equal(twins.after_four, twins.after_one, twins.first)


def test_the_state_is_whole_and_equal_on_every_device(twins):
    for path, leaf in programs.named(twins.after_four[1]._replace(key=None)):
        shards = [np.asarray(s.data) for s in leaf.addressable_shards]
        assert len(shards) == DEVICES and all(s.shape == leaf.shape for s in shards), path
        for shard in shards[1:]:
            np.testing.assert_array_equal(shard, shards[0], err_msg=path)


def test_a_stop_and_a_restart_change_nothing(twins, tmp_path):
    state = programs.on_devices(twins.first, twins.four.mesh)
    with store.open_manager(tmp_path, 2) as manager:
        for k, batch in enumerate(programs.batches(twins.four)):
            state, _ = twins.four.call(state, batch)
            if k == 2:  # within the second epoch
                store.save(manager, state)
                manager.wait_until_finished()
                like = programs.on_devices(twins.first, twins.four.mesh)
                state = reading.restore(manager, 3, like)
    assert tree.fingerprint(state) == tree.fingerprint(twins.after_four[1])


def test_probing_reads_an_encoder_that_has_moved(twins):
    method = twins.built.method
    encode = encoder.compile_encode(probed.features(method), twins.one.mesh)
    rows = {
        "image": np.random.default_rng(1).integers(0, 256, (8, 28, 28, 1), dtype=np.uint8),
        "index": np.arange(8, dtype=np.int32),
        "label": np.zeros(8, np.int32),
    }
    first = programs.on_devices(twins.first, twins.one.mesh)
    before, after = (
        np.asarray(encode(probed.variables(method, s.params, s.state), rows)["features"])
        for s in (first, twins.after_one[1])
    )
    assert np.isfinite([before, after]).all() and np.ptp(after, axis=0).max() > 0
    assert np.abs(after - before).max() > 0


def test_the_state_is_updated_in_place(twins):
    assert_in_place(twins.built, twins.four.text)


def test_no_image_and_nothing_needless_crosses_devices(twins):
    assert_frugal(twins.built, twins.four.text)


def assert_in_place(built, text):
    """Queues, banks and targets are written where they are: the program copies none of them."""
    state = jax.tree.leaves(built.like)
    assert text.splitlines()[0].count("may-alias") == len(state)
    if built.config.method.name in REMEMBER:
        held = [f"{listed_type(x)}[{','.join(map(str, x.shape))}]" for x in state]
        found = copies.copies(text)
        assert found["came"] == [] and not [copy for copy in found["branches"] if copy[0] in held]


def listed_type(x):
    """As HLO writes it: f64."""
    return {"float64": "f64", "float32": "f32"}.get(str(x.dtype), str(x.dtype))


def assert_frugal(built, text):
    """The program sends gradients, statistics and embeddings, each once; no images."""
    config, state = built.config, built.like
    found = listed.read(text, DEVICES)
    assert not listed.image_sized(found, listed.images(config, DEVICES, state.params))
    size = collections.Counter()
    for c in found:
        size[listed.part(c)] += listed.size(c)
    # Every parameter's gradient once.
    assert size["gradients"] == leaf_bytes(jax.tree.leaves(state.params))
    # Forward and backward, and again for views of another size.
    statistics = leaf_bytes(
        [x for name, x in programs.named(state.state) if name.endswith(("['mean']", "['var']"))]
    )
    assert statistics / 2 <= size["BatchNorm"] <= 4 * statistics
    # Rows of two views of every example; DINO's Sinkhorn sends a row of its outputs a device.
    for c in found:
        if c.kind != "all-reduce":
            outputs = config.method.projector.out * DEVICES if config.method.name == "dino" else 0
            assert listed.elements(c) <= max(2 * programs.BATCH * WIDTH, outputs), c
    # In numbers; 8,192 bytes of float32.
    numbers = [listed.elements(c) * c.times for c in found if listed.part(c) in SMALL]
    assert sum(numbers) < 2_048


def leaf_bytes(leaves):
    return sum(x.size * x.dtype.itemsize for x in leaves)


def representatives(kinds):
    """All methods, those of no kind in the long set."""
    return [n if n in kinds else pytest.param(n, marks=pytest.mark.long) for n in METHODS]


def in_mode(name, mode, change=lambda method: method):
    """(six steps on four devices, six on one, their first state)."""
    built = programs.build(programs.exact(name))
    first = programs.start(built)
    four = programs.compile(programs.build(built.config, change=change), DEVICES, mode)
    one = programs.compile(built, 1, "jit")
    return *(programs.train(p, first) for p in (four, one)), first


@pytest.mark.parametrize("mode", ["pmap", "jit"])
@pytest.mark.parametrize("name", representatives(MAPPED))
def test_so_do_they_by_the_other_mappings(name, mode):
    assert_equal(*in_mode(name, mode))


def change(after, before):
    """What a step changed of the parameters, all in one vector."""
    leaves = zip(*map(jax.tree.leaves, (after.params, before.params)), strict=True)
    return np.concatenate([(np.asarray(a, float) - b).ravel() for a, b in leaves])


def after_step(program, state, batch):
    """The state after one step, both on the host."""
    return programs.on_host(program.call(programs.on_devices(state, program.mesh), batch)[0])


def one_unit_away(state, step):
    """The state with every parameter moved by about one unit in its last place, up or down."""
    rng = np.random.default_rng(step)

    def moved(x):
        return x * (1 + np.float32(2**-23) * rng.choice([-1, 1], x.shape)).astype(np.float32)

    return state._replace(params=jax.tree.map(moved, state.params))


@pytest.mark.parametrize("name", representatives(KINDS))
def test_in_float32_four_devices_are_as_near_as_rounding_lets_them(name):
    """From the same state, in each of six steps, against one device that began a unit away.

    How far that twin comes out is what the processor makes of rounding, ReLUs that it turned on or
    off included; in the middle of six steps the four devices may be no more than ten times as far.
    """
    with programs.float64(False):
        built = programs.build(programs.config(name))
        one = programs.compile(built, 1, "jit", options={})
        four = programs.compile(built, DEVICES, options={})
        assert_in_place(built, four.text)
        assert_frugal(built, four.text)
        state, apart = programs.start(built), []
        split = programs.batches(four)
        for step, batch in enumerate(programs.batches(one)):
            near = one_unit_away(state, step)
            after = after_step(one, state, batch)
            right = change(after, state)
            twin = change(after_step(one, near, batch), near)
            other = change(after_step(four, state, next(split)), state)
            length = np.linalg.norm(right) or 1.0  # a first step may change nothing
            apart.append([np.linalg.norm(x - right) / length for x in (twin, other)])
            state = after
    twin, other = np.median(apart, 0)
    assert other <= 10 * twin + 1e-6, apart


def quarter(x):
    return jax.lax.stop_gradient(0.75 * x) + 0.25 * x


def mistaken_gather(x, axis, right=collectives.gather):
    """The gradient of a gathered row has a quarter of its length."""
    x = right(x, axis)
    return x if axis is None else jax.tree.map(quarter, x)


def mistaken_keys(key, b, axis, right=collectives.example_keys):
    """Noise named by the row of the device, not of the batch."""
    return right(key, b, None)


ALONE = types.SimpleNamespace(pmean=lambda x, axis: x, size=lambda axis: 1)
MISTAKES = {
    "gathered gradients": (collectives, "gather", mistaken_gather),
    "noise by local row": (collectives, "example_keys", mistaken_keys),
    "statistics of one device": (norm, "collectives", ALONE),
}


@pytest.mark.parametrize(
    "mistake",
    [m if m == "gathered gradients" else pytest.param(m, marks=pytest.mark.long) for m in MISTAKES],
)
def test_a_mistake_would_show(mistake, monkeypatch):
    monkeypatch.setattr(*MISTAKES[mistake])
    found, wanted, first = in_mode("simclr", "shard_map")
    with pytest.raises(AssertionError):
        assert_equal(found, wanted, first)
    kernels = [
        (np.asarray(a), np.asarray(b), c)
        for a, b, c in zip(
            *map(jax.tree.leaves, (found[1].params, wanted[1].params, first.params)), strict=True
        )
        if np.ndim(c) > 1
    ]
    apart = [np.linalg.norm(a - b) / np.linalg.norm(b - c) for a, b, c in kernels]
    assert min(apart) > 1e-3, "a million times the bound"
