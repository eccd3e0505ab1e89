"""ReSSL: the authors' loss through the method, the teacher before its rows, the queue after."""

import functools
import pathlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kit import probed, tiny

from ssl_jax.augment import policies
from ssl_jax.contract.method import Context, Run
from ssl_jax.errors import UserError
from ssl_jax.methods import ressl
from ssl_jax.optim import optimizers
from ssl_jax.runs import config as configs
from ssl_jax.train.state import written

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(examples=160, batch=16, steps_per_epoch=10, total_steps=10)


def context(step=0):
    step = jnp.asarray(step, jnp.int32)
    return Context(step, step // 10, step / 10, jax.random.key(3), None)


class Identity(nn.Module):
    dtype: jnp.dtype = jnp.float32
    group: int | None = None
    axis: str | None = None

    def __call__(self, x, train=False):
        return x


SCALE = 8.0  # above the length of every row of logits


class Lift(nn.Module):
    """Similarities s to the queue [8·I, 0] -> the unit vector that has them: (s / 8, √(1 − …))."""

    group: int | None = None
    axis: str | None = None

    def __call__(self, x, train=False):
        x = x / SCALE
        return jnp.concatenate([x, jnp.sqrt(1 - jnp.sum(x * x, -1, keepdims=True))], -1)


def test_the_official_loss_through_the_method(monkeypatch):
    golden = np.load(GOLDEN / "ressl_loss.npz")
    config, _ = configs.load("configs/ressl.py:imagenet")
    config.method.update(queue=24, group=2, shuffle=2)
    monkeypatch.setattr(ressl.models, "make", lambda model: Identity())
    monkeypatch.setattr(ressl.heads, "make", lambda *_, **__: Lift())
    method = ressl.make(config, RUN._replace(batch=8))
    views = jnp.asarray(np.stack([golden["logitsq"], golden["logitsk"]], 1))  # [8, 2, 20]
    params, state = method.init(jax.random.key(0), views)
    queue = np.zeros((20, 21), np.float32)
    queue[:, :20] = SCALE * np.eye(20)
    assert state["queue"].shape == (24, 21)
    # 20 rows in the fixture; four more that nothing is like.
    far = np.zeros((4, 21), np.float32)
    far[:, 20] = -1e3
    state |= {"queue": jnp.concatenate([queue, far]), "pointer": jnp.int32(16)}

    def f(views):
        return method.loss(params, state, views, context())

    (loss, (new, _)), grad = jax.jit(jax.value_and_grad(f, has_aux=True))(views)
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-4)
    np.testing.assert_allclose(grad[:, 0], golden["grad_logitsq"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(grad[:, 1], np.zeros((8, 20)))
    new = written(new)
    # The old queue was compared with; then the teacher's rows took the place of the oldest.
    np.testing.assert_array_equal(new["queue"][:16], state["queue"][:16])
    np.testing.assert_allclose(new["queue"][16:, :20], golden["logitsk"] / SCALE, rtol=1e-5)
    assert new["pointer"] == 0


@pytest.fixture(scope="module")
def small():
    config = tiny.config("ressl")
    views = np.random.default_rng(0).normal(size=(16, 2, 28, 28, 1)).astype(np.float32)
    return config, views


def variant(config, **method):
    config = config.copy_and_resolve_references()
    config.method.update(method)
    return ressl.make(config, RUN)


def test_the_teacher_moves_before_its_rows(small):
    config, views = small
    method = variant(config, momentum=0.8, momentum_final=1.0)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    start = jax.tree.map(lambda p: 1.5 * p, params)
    f = jax.jit(method.loss)
    _, (new, _) = f(params, {**state, "target": start}, views, context(step=5))
    new = written(new)
    want = jax.tree.map(lambda t, p: 0.9 * t + 0.1 * p, start, params)  # halfway: 0.9
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), new["target"], want
    )
    # Rows of the moved teacher entered the queue: in place beforehand, momentum 1 gives the same.
    _, (moved, _) = f(params, {**state, "target": want}, views, context(step=10))
    np.testing.assert_allclose(new["queue"], written(moved["queue"]), rtol=1e-4, atol=1e-5)
    _, (old, _) = f(params, {**state, "target": start}, views, context(step=10))
    assert np.abs(np.asarray(new["queue"]) - written(old["queue"])).max() > 1e-3


def test_micro_batches_share_one_update_of_the_teacher(small):
    config, views = small
    config = config.copy_and_resolve_references()
    config.accumulate = 2
    method = variant(config, momentum=0.9)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    state["target"] = jax.tree.map(jnp.ones_like, state["target"])
    for micro in np.split(views, 2):
        _, (state, _) = jax.jit(method.loss)(params, state, micro, context())
        state = written(state)
    p = params["projector"]["linear0"]["kernel"]
    got = state["target"]["projector"]["linear0"]["kernel"]
    np.testing.assert_allclose(got, 0.9 + 0.1 * p, rtol=1e-5)
    assert state["pointer"] == 16


def test_the_teacher_sees_the_weak_view(small):
    config, _ = small
    assert config.views.first.jitter == 1 and config.views.second.jitter == 0
    config = config.copy_and_resolve_references()
    config.views.second = policies.make("none", 28)._asdict()
    method = ressl.make(config, RUN)
    image = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), dtype=np.uint8)
    views = jax.jit(lambda x: method.views(jax.random.key(1), {"image": x}, context()))(image)
    assert views.shape == (16, 2, 28, 28, 1)
    np.testing.assert_allclose(views[:, 1], image / 255, atol=1e-6)
    assert np.abs(views[:, 0] - image / 255).max() > 0.1
    # Statistics of an empty second view are the teacher's, not the student's.
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    empty = views.at[:, 1].set(0.0)
    _, (new, _) = jax.jit(method.loss)(params, state, empty, context())
    student, teacher = new["encoder"]["bn1"], new["target_stats"]["encoder"]["bn1"]
    assert np.abs(student["mean"]).max() > 0 and np.abs(teacher["mean"]).max() == 0


def test_weight_decay_of_the_official_names(small):
    """Names with 'bn' or 'bias' are left out; the shortcuts' norms have neither in PyTorch."""
    config, _ = configs.load("configs/ressl.py:imagenet")
    method = ressl.make(config, RUN._replace(batch=config.batch))
    views = jax.ShapeDtypeStruct((2, 2, 64, 64, 3), "float32")
    params, _ = jax.eval_shape(method.init, jax.random.key(0), views)
    mask = optimizers.rules.outside(config.optimizer.decay_exclude, params)
    decayed, left = set(), set()
    for path, value in jax.tree_util.tree_leaves_with_path(mask):
        (decayed if value else left).add(optimizers.rules.name_of(path))
    assert all(name.endswith(("kernel", "downsample_bn/scale")) for name in decayed)
    assert all(name.endswith(("bias", "scale")) for name in left)
    assert sum(name.endswith("downsample_bn/scale") for name in decayed) == 4
    assert sum(name.endswith("scale") for name in left) == 1 + 16 * 3


def test_probing_reads_either_encoder(small):
    config, views = small
    params, state = jax.jit(variant(config).init)(jax.random.key(0), views)
    online = probed.variables(variant(config), params, state)
    assert online["params"] is params["encoder"] and online["batch_stats"] is state["encoder"]
    target = probed.variables(variant(config, encoder="target"), params, state)
    assert target["params"] is state["target"]["encoder"]
    assert target["batch_stats"] is state["target_stats"]["encoder"]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("encoder", "teacher", "encoder is 'teacher'"),
        ("queue", 24, "queue=24 is not a multiple of the 16 rows"),
        ("group", -1, "group"),
    ],
)
def test_user_errors(small, field, value, words):
    with pytest.raises(UserError, match=words):
        variant(small[0], **{field: value})
