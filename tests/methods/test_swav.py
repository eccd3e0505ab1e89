"""SwAV: the authors' loop, their order of normalising and stepping, the queue, the balance."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kit import tiny

from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.methods import swav
from ssl_jax.runs import config as configs
from ssl_jax.train.state import written

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "swav_multicrop_noqueue.npz")
RUN = Run(examples=64, batch=8, steps_per_epoch=3, total_steps=30)
EMPTY = {"encoder": {}, "projector": {}}


def context(step=0, axis=None):
    step = jnp.asarray(step, jnp.int32)
    return Context(step, step // RUN.steps_per_epoch, step / 30, jax.random.key(3), axis)


class Identity:
    dtype = jnp.float32

    def clone(self, axis):
        return self

    def apply(self, variables, x, train, mutable):
        return x, {}


@pytest.fixture
def make(monkeypatch):
    """The method of the imagenet preset with the networks taken out, and changed fields."""

    def make(**changes):
        config, _ = configs.load("configs/swav.py:imagenet")
        config.method.update(prototypes=10, local_crops=4, **changes)
        monkeypatch.setattr(swav.models, "make", lambda _: Identity())
        monkeypatch.setattr(swav.heads, "make", lambda *_, **__: Identity())
        return swav.make(config, RUN)

    return make


def given(kernel):
    """Parameters with these prototypes [K, d]."""
    return {"encoder": {}, "projector": {}, "prototypes": {"kernel": jnp.asarray(kernel).T}}


def crops(raw):
    """Views from crops [V, b, d], the first two global."""
    rows = jnp.swapaxes(jnp.asarray(raw), 0, 1)
    return {"global": rows[:, :2], "local": rows[:, 2:]}


def official(queue, raw, kernel, started, epsilon=0.05):
    """One step in float64, in the order of main_swav.py: (loss, queue [2, Q, d]) after it."""
    kernel = kernel / np.linalg.norm(kernel, axis=1, keepdims=True)
    z = raw / np.linalg.norm(raw, axis=-1, keepdims=True)  # [V, b, d]
    b, total = z.shape[1], 0.0
    queue = queue.copy()
    for a in range(2):
        rows = z[a]
        if started:
            if np.any(queue[a, -1] != 0):
                rows = np.concatenate([queue[a], rows])
            queue[a] = np.concatenate([z[a], queue[a, :-b]])
        q = np.exp(rows @ kernel.T / epsilon)
        for _ in range(3):
            q /= q.sum(0)
            q /= q.sum(1, keepdims=True)
        q = q[-b:]
        for v in range(len(z)):
            if v != a:
                p = np.exp(z[v] @ kernel.T / 0.1)
                total -= (q * np.log(p / p.sum(1, keepdims=True))).sum(1).mean()
    return total / (2 * (len(z) - 1)), queue


def test_loss_and_gradients_are_the_official_ones(make):
    method = make()
    params, _ = method.after_step(given(GOLDEN["prototypes_init"]), EMPTY, context())
    kernel = params["prototypes"]["kernel"]
    np.testing.assert_allclose(kernel.T, GOLDEN["prototypes_normalized"][0], rtol=1e-5)

    def loss(params, views):
        return method.loss(params, EMPTY, views, context())[0]

    value, (grads, views) = jax.value_and_grad(loss, (0, 1))(params, crops(GOLDEN["crops"][0]))
    np.testing.assert_allclose(value, GOLDEN["loss"][0], rtol=1e-5)
    got = grads["prototypes"]["kernel"].T
    np.testing.assert_allclose(got, GOLDEN["grad_prototypes"][0], rtol=1e-4, atol=1e-6)
    got = jnp.swapaxes(jnp.concatenate([views["global"], views["local"]], 1), 0, 1)
    np.testing.assert_allclose(got, GOLDEN["grad_crops"][0], rtol=1e-4, atol=1e-6)


def test_two_devices_give_the_same(make):
    method = make(queue=16, queue_epoch=0)
    params, _ = method.after_step(given(GOLDEN["prototypes_init"]), EMPTY, context())
    queue = jax.random.normal(jax.random.key(0), (2, 16, 6))
    queue = queue / jnp.linalg.norm(queue, axis=-1, keepdims=True)
    views = crops(GOLDEN["crops"][0])

    def step(params, views, axis):
        def mean_loss(params, views):  # as in train/step.py
            value, aux = method.loss(params, {**EMPTY, "queue": queue}, views, context(0, axis))
            return collectives.pmean(value, axis), aux

        (value, (state, metrics)), (grads, inputs) = jax.value_and_grad(
            mean_loss, (0, 1), has_aux=True
        )(params, views)
        kernel = collectives.pmean(grads["prototypes"]["kernel"], axis)
        inputs = jax.tree.map(lambda x: x / collectives.size(axis), inputs)
        alike = value, kernel, written(state["queue"]), metrics["prototypes_used"]
        return jax.tree.map(lambda x: x[None], alike), inputs

    want, want_inputs = jax.jit(lambda p, v: step(p, v, None))(params, views)
    mapped = jax.shard_map(
        lambda params, views: step(params, views, layout.AXIS),
        mesh=layout.mesh(jax.devices()[:2]),
        in_specs=(P(), P("batch")),
        out_specs=P("batch"),
        check_vma=False,
    )
    got, inputs = jax.jit(mapped)(params, views)
    for a, b in zip(got, want, strict=True):
        for device in a:
            np.testing.assert_allclose(device, b[0], rtol=1e-4, atol=1e-6)
    for a, b in zip(*map(jax.tree.leaves, (inputs, want_inputs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_prototypes_move_as_in_the_official_order(make):
    """Normalise, forward, step, again and again; here it is step, normalise."""
    method = make()
    rng = np.random.default_rng(0)
    batches = [crops(rng.normal(size=(6, 8, 6)).astype(np.float32)) for _ in range(4)]

    @jax.jit
    def gradient(kernel, views):
        params = {"encoder": {}, "projector": {}, "prototypes": {"kernel": kernel}}
        return jax.grad(lambda p: method.loss(p, EMPTY, views, context())[0])(params)["prototypes"]

    def unit(w):
        return w / jnp.linalg.norm(w, axis=0, keepdims=True)

    theirs = jnp.asarray(GOLDEN["prototypes_init"]).T
    for views in batches:
        theirs = unit(theirs)
        theirs = theirs - 0.7 * gradient(theirs, views)["kernel"]

    params, _ = method.after_step(given(GOLDEN["prototypes_init"]), EMPTY, context())
    for views in batches:
        kernel = params["prototypes"]["kernel"]
        moved = kernel - 0.7 * gradient(kernel, views)["kernel"]
        params = {**params, "prototypes": {"kernel": moved}}
        last, (params, _) = moved, method.after_step(params, EMPTY, context())
    np.testing.assert_allclose(last, theirs, rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(jnp.linalg.norm(last, axis=0) - 1).max()) > 1e-2


def test_the_queue_fills_from_its_epoch_and_is_used_once_full(make):
    method = make(queue=20, queue_epoch=1)  # rounded down to 16, two batches
    rng = np.random.default_rng(1)
    kernel = rng.normal(size=(10, 6))
    params, _ = method.after_step(given(kernel.astype(np.float32)), EMPTY, context())
    loss = jax.jit(lambda state, views, step: method.loss(params, state, views, context(step)))
    state = {**EMPTY, "queue": jnp.zeros((2, 16, 6))}
    queue, differs = np.zeros((2, 16, 6)), []
    for step in range(8):  # the queue starts at step 3 and is full at step 5
        raw = rng.normal(size=(6, 8, 6)).astype(np.float32)
        alone, _ = official(queue, raw, kernel, False)
        want, queue = official(queue, raw, kernel, step >= 3)
        value, (state, _) = loss(state, crops(raw), step)
        state = written(state)
        np.testing.assert_allclose(value, want, rtol=1e-4)
        np.testing.assert_allclose(state["queue"], queue, rtol=1e-4, atol=1e-6)
        differs.append(abs(want - alone) > 1e-3 * want)
    assert differs == [False] * 5 + [True] * 3


def test_without_sinkhorn_assignments_are_the_softmax_of_the_scores(make):
    raw, kernel = GOLDEN["crops"][0], GOLDEN["prototypes_normalized"][0]
    value, _ = make(sinkhorn=False).loss(given(kernel), EMPTY, crops(raw), context())
    z = raw / np.linalg.norm(raw, axis=-1, keepdims=True)
    q = jax.nn.softmax(z[:2] @ kernel.T / 0.05, -1)
    log_p = jax.nn.log_softmax(z @ kernel.T / 0.1, -1)
    terms = [-(q[a] * log_p[v]).sum(1).mean() for a in range(2) for v in range(6) if v != a]
    np.testing.assert_allclose(value, np.mean(terms), rtol=1e-5)
    # All crops on one prototype: nothing is left to learn, while Sinkhorn–Knopp disagrees.
    same = crops(np.broadcast_to(kernel[0], raw.shape))
    only = {**given(np.eye(6)[:2]), "prototypes": {"kernel": jnp.array([kernel[0], -kernel[0]]).T}}
    collapsed, (_, metrics) = make(sinkhorn=False).loss(only, EMPTY, same, context())
    assert float(collapsed) < 1e-6
    np.testing.assert_allclose(metrics["prototypes_used"], 0.5, atol=1e-3)
    balanced, _ = make().loss(only, EMPTY, same, context())
    assert float(balanced) > 1


@pytest.mark.parametrize(
    "size, passes",
    [
        (16, [(16, 28, 28, 1), (16, 16, 16, 1), (32, 8)]),
        (28, [(32, 28, 28, 1), (32, 8)]),
    ],
)
def test_crops_of_one_size_go_together_and_all_crops_through_the_projector(
    size, passes, monkeypatch
):
    config = tiny.config("swav")
    config.method.queue = 0
    config.views.local.size = size
    method, seen, forward = swav.make(config, RUN), [], swav.network.forward

    def recorded(module, params, stats, x, axis):
        seen.append(x.shape)
        return forward(module, params, stats, x, axis)

    monkeypatch.setattr(swav.network, "forward", recorded)

    def everything(image):
        views = method.views(jax.random.key(1), {"image": image}, context())
        params, state = method.init(jax.random.key(0), views)
        return method.loss(params, state, views, context())

    jax.eval_shape(everything, jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.uint8))
    assert seen == passes


def test_views_differ_prototypes_begin_with_unit_length_and_have_a_group():
    config = tiny.config("swav")
    config.method.queue = 0
    config.views.local.size = 28
    method = swav.make(config, RUN)
    image = np.random.default_rng(0).integers(0, 256, (8, 28, 28, 1), dtype=np.uint8)
    views = jax.jit(lambda x: method.views(jax.random.key(1), {"image": x}, context()))(image)
    rows = jnp.concatenate([views["global"], views["local"]], 1)
    assert rows.shape == (8, 4, 28, 28, 1)
    for one in range(4):
        for other in range(one):
            assert float(jnp.abs(rows[:, one] - rows[:, other]).max()) > 0.1
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    np.testing.assert_allclose(
        jnp.linalg.norm(params["prototypes"]["kernel"], axis=0), np.ones(12), rtol=1e-5
    )
    labels = method.labels(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert jax.tree.leaves(labels["prototypes"]) == ["prototypes"]
    assert set(jax.tree.leaves({**labels, "prototypes": ()})) == {"default"}
    assert "queue" not in state


def test_the_prototypes_of_the_recipes_rest_for_the_official_iterations():
    for preset, batch, iterations in (("imagenet", 4096, 313), ("imagenet_256", 256, 5005)):
        config, _ = configs.load(f"configs/swav.py:{preset}")
        assert config.batch == batch
        group = config.optimizer.groups.prototypes
        assert round(group.freeze_epochs * (1_281_167 // batch)) == iterations


def test_what_cannot_be_is_refused(make):
    with pytest.raises(UserError, match=r"method.queue is 7, less than a batch of 8"):
        make(queue=7)
    config, _ = configs.load("configs/swav.py:cifar10")
    config.method.local_crops = 2
    with pytest.raises(UserError, match="local_crops is 2, but there is no views.local"):
        swav.make(config, RUN)
