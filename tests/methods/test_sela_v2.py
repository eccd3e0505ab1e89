"""SeLa-v2: nobody has published its code, so two epochs against the papers' equations in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.methods import sela_v2
from ssl_jax.runs import config as configs
from ssl_jax.train.state import written

HEADS = (4, 3, 5)
RUN = Run(examples=28, batch=12, steps_per_epoch=2, total_steps=8)


def context(step):
    step = jnp.asarray(step, jnp.int32)
    return Context(step, step // RUN.steps_per_epoch, step / 8, jax.random.key(3), None)


class Identity:
    dtype = jnp.float32

    def clone(self, axis):
        return self

    def apply(self, variables, x, train, mutable):
        return x, {}


@pytest.fixture
def setting(monkeypatch):
    """The method without networks, its parameters and state, and views of 28 examples."""
    config, _ = configs.load("configs/sela_v2.py:imagenet")
    config.method.update(prototypes=HEADS, local_crops=1, iterations=1000)
    monkeypatch.setattr(sela_v2.models, "make", lambda _: Identity())
    monkeypatch.setattr(sela_v2.heads, "make", lambda *_, **__: Identity())
    method = sela_v2.make(config, RUN)
    made = {"params": {}, "batch_stats": {}}
    monkeypatch.setattr(sela_v2.network, "create", lambda net, key, x: (made, jnp.zeros((1, 6))))
    params, state = method.init(jax.random.key(0), {"global": jnp.zeros((1, 2, 6))})
    rng = np.random.default_rng(0)
    return method, params, state, rng.normal(size=(28, 3, 6)).astype(np.float32) + 0.7, rng


def unit(x, axis=-1):
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def selas_labels(z, kernel, temperature=0.1, sharpness=25):
    """Sinkhorn–Knopp as SeLa's paper has it, in float64, until nothing changes."""
    p = np.exp(z.astype(np.float64) @ kernel / temperature)
    p = ((p / p.sum(1, keepdims=True)) ** sharpness).T  # [K, N]
    c = np.full(p.shape[1], 1 / p.shape[1])
    for _ in range(3000):
        r = 1 / (p.shape[0] * (p @ c))
        c = 1 / (p.shape[1] * (r @ p))
    return (r[:, None] * p).argmax(0)


def test_labels_and_loss_of_two_epochs(setting):
    method, params, state, x, rng = setting
    kernels = [np.asarray(params["prototypes"][f"head{h}"]["kernel"]) for h in range(3)]
    assert [k.shape for k in kernels] == [(6, 4), (6, 3), (6, 5)]
    for kernel in kernels:
        np.testing.assert_allclose(np.linalg.norm(kernel, axis=0), 1.0, rtol=1e-5)

    @jax.jit
    def learn(params, state, views, step):
        def loss(params):
            return method.loss(params, state, views, context(step))

        (value, (after, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        moved = jax.tree.map(lambda p, g: p - 0.3 * g, params, grads)
        return value, metrics, moved, *method.after_step(moved, written(after), context(step))

    labels = np.full((3, 28), -100)
    z = unit(x)
    for epoch in range(3):
        order = rng.permutation(28)
        for half in range(2):
            index = order[12 * half :][:12]
            views = {
                "global": jnp.asarray(x[index, :2]),
                "local": jnp.asarray(x[index, 2:]),
                "index": jnp.asarray(index, jnp.int32),
            }
            terms = []
            for kernel, own in zip(kernels, labels[:, index], strict=True):
                if (known := own >= 0).any():
                    logits = z[index][known] @ kernel / 0.1
                    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                    terms.append(-log_p[np.arange(known.sum()), :, own[known]].mean())
            value, metrics, moved, params, state = learn(params, state, views, 2 * epoch + half)
            np.testing.assert_allclose(value, sum(terms) / 3, rtol=1e-4)
            np.testing.assert_allclose(metrics["labelled"], (labels[:, index] >= 0).mean())
            raw = [np.asarray(moved["prototypes"][f"head{h}"]["kernel"]) for h in range(3)]
            if epoch:  # prototypes are learned, and scaled to unit length after that
                assert all(np.abs(a - b).max() > 1e-4 for a, b in zip(raw, kernels, strict=True))
            kernels = [unit(kernel, 0) for kernel in raw]
        # The memory of global crop h mod 2, of the examples that this epoch has seen.
        labels = np.full((3, 28), -100)
        members = np.sort(order[:24])
        for h, kernel in enumerate(kernels):
            labels[h, members] = selas_labels(z[members, h % 2], kernel)
        np.testing.assert_array_equal(state["labels"], labels)
    sizes = [np.bincount(own[own >= 0], minlength=k) for own, k in zip(labels, HEADS, strict=True)]
    assert all(np.ptp(n) <= 2 for n in sizes), "labels are balanced"


def test_the_iterations_are_bounded_and_the_transport_has_its_sharpness(setting):
    *_, x, _ = setting
    config, _ = configs.load("configs/sela_v2.py:imagenet")
    assert config.method.sharpness == 25 and config.method.tolerance == 0.1
    seen = {}
    config.method.update(prototypes=(4,), local_crops=0, sharpness=3.0, iterations=7)

    def record(bank, member, kernel, **transport):
        seen.update(transport)
        return jnp.zeros(len(bank), jnp.int32), None

    plain, sela_v2.clustering.balanced_labels = sela_v2.clustering.balanced_labels, record
    try:
        method = sela_v2.make(config, RUN)
        params, state = method.init(jax.random.key(0), {"global": jnp.asarray(x[:, :2])})
        method.after_step(params, state, context(1))
    finally:
        sela_v2.clustering.balanced_labels = plain
    assert seen == {"temperature": 0.1, "sharpness": 3.0, "iterations": 7, "tolerance": 0.1}


def test_prototypes_have_a_group_that_rests_longer(setting):
    method, params, *_ = setting
    labels = method.labels(params)
    assert jax.tree.structure(labels) == jax.tree.structure(params)
    assert set(jax.tree.leaves(labels["prototypes"])) == {"prototypes"}
    for preset in ("imagenet", "cifar10", "digits"):
        config, _ = configs.load(f"configs/sela_v2.py:{preset}")
        assert config.optimizer.freeze_epochs == 1.0
        assert config.optimizer.groups.prototypes.freeze_epochs > 1.0


def test_local_crops_need_a_view():
    config, _ = configs.load("configs/sela_v2.py:cifar10")
    config.method.local_crops = 2
    with pytest.raises(UserError, match="local_crops is 2, but there is no views.local"):
        sela_v2.make(config, RUN)
