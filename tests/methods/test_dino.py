"""DINO: the authors' loss, centre, networks and groups through the method; its switches."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from kit import probed, tiny
from ml_collections import ConfigDict

from ssl_jax import models
from ssl_jax.contract.method import Context, Run
from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.exchange import torch_weights
from ssl_jax.losses import clustering
from ssl_jax.losses import self_distillation as losses
from ssl_jax.methods import dino
from ssl_jax.models import heads
from ssl_jax.optim import optimizers, rules
from ssl_jax.runs import config as configs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = Run(examples=64, batch=8, steps_per_epoch=8, total_steps=16)


def context(axis=None, step=0, epoch=0, key=3):
    step, epoch = jnp.int32(step), jnp.int32(epoch)
    return Context(step, epoch, jnp.zeros(()), jax.random.key(key), axis)


def inside(method, params, state, views, ctx):
    """What the loss compares: logits of student and teacher, targets; and the state after it."""

    def loss(params, state, views):
        seen = {}
        cross, centred = losses.cross_view, losses.centred_targets
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                losses,
                "cross_view",
                lambda s, q, t: seen.update(student=s, targets=q) or cross(s, q, t),
            )
            patch.setattr(
                losses,
                "centred_targets",
                lambda t, *more: seen.update(teacher=t) or centred(t, *more),
            )
            _, (seen["state"], _) = method.loss(params, state, views, ctx)
        return seen

    return jax.jit(loss)(params, state, views)


class Table:
    """An 'encoder' whose parameters are its outputs: a view is the number of a row."""

    dtype = jnp.float32
    out = 0

    def clone(self, axis):
        return self

    def apply(self, variables, x, train, mutable, keys=None):
        if "table" not in variables["params"]:  # as a head
            return x, {}
        return variables["params"]["table"][x.reshape(len(x), -1)[:, 0].astype(int)], {}


def table_method(monkeypatch, config, run=RUN):
    monkeypatch.setattr(dino.models, "make", lambda _: Table())
    monkeypatch.setattr(dino, "head", lambda *_: Table())
    return dino.make(config, run)


def tables(student, teacher, centre):
    params = {"encoder": {"table": jnp.asarray(student)}, "projector": {}}
    empty = {"encoder": {}, "projector": {}}
    target = {"encoder": {"table": jnp.asarray(teacher)}, "projector": {}}
    return params, {**empty, "target": target, "target_stats": empty, "centre": centre}


def test_five_steps_of_the_official_loss(monkeypatch):
    """Loss, gradient and centre with the preset's fields; the temperature goes by the epoch."""
    golden = np.load(GOLDEN / "dino_loss_multicrop.npz")
    config, _ = configs.load("configs/dino.py:imagenet")
    config.method.local_crops = 4
    config.method.teacher_temperature = 0.07
    config.method.warmup_teacher_epochs = 5
    method = table_method(monkeypatch, config)
    rows = jnp.arange(36.0).reshape(6, 6).T  # [b, crop]: crop v of image i is row 6 v + i
    views = {"global": rows[:, :2, None, None], "local": rows[:, 2:, None]}
    centre = jnp.zeros(12)

    @jax.jit
    def step(params, state, epoch):
        ctx = context(epoch=epoch)
        return jax.value_and_grad(method.loss, has_aux=True)(params, state, views, ctx)

    for k, epoch in enumerate(golden["epoch"]):
        params, state = tables(golden["student"][k], golden["teacher"][k], centre)
        (loss, (state, metrics)), grad = step(params, state, epoch)
        centre = state["centre"]
        np.testing.assert_allclose(loss, golden["loss"][k], rtol=1e-5)
        want = golden["grad_student"][k]
        np.testing.assert_allclose(grad["encoder"]["table"], want, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(centre, golden["center_after"][k, 0], rtol=1e-5, atol=1e-7)
        want = loss - metrics["teacher_entropy"]
        np.testing.assert_allclose(metrics["teacher_student_kl"], want, rtol=1e-5)


@pytest.mark.parametrize("warmup, want", [(0, [0.07] * 4), (1, [0.04, 0.07, 0.07, 0.07])])
def test_temperature_of_short_warm_ups(monkeypatch, warmup, want):
    """np.linspace of none or one epoch; one of five is in the test above."""
    config, _ = configs.load("configs/dino.py:imagenet")
    config.method.local_crops = 0
    config.method.teacher_temperature = 0.07
    config.method.warmup_teacher_epochs = warmup
    method = table_method(monkeypatch, config)
    params, state = tables(jnp.eye(2, 3), jnp.eye(2, 3), jnp.zeros(3))
    views = {"global": jnp.array([[0.0, 1.0]])[..., None]}
    for epoch in range(4):
        seen = inside(method, params, state, views, context(epoch=epoch))
        want_targets = jax.nn.softmax(jnp.eye(2, 3) / want[epoch])
        np.testing.assert_allclose(seen["targets"][0], want_targets, rtol=1e-5)


def test_centre_of_two_processes(monkeypatch):
    golden = np.load(GOLDEN / "world2_dino_center.npz")
    config, _ = configs.load("configs/dino.py:imagenet")
    config.method.local_crops = 0
    method = table_method(monkeypatch, config)
    teacher = golden["teacher_out"].reshape(16, 7)  # [rank · crop · image, K]
    rows = (
        jnp.arange(16.0).reshape(2, 2, 4).transpose(0, 2, 1).reshape(8, 2)
    )  # [rank · image, crop]

    def twice(rows):
        ctx, centre = context(layout.AXIS), jnp.zeros(7)
        for factor in (1.0, 0.5):
            params, state = tables(teacher, factor * teacher, centre)
            centre = method.loss(params, state, {"global": rows[..., None]}, ctx)[1][0]["centre"]
        return centre[None]

    mapped = jax.jit(
        jax.shard_map(
            twice,
            mesh=layout.mesh(jax.devices()[:2]),
            in_specs=P("batch"),
            out_specs=P("batch"),
            check_vma=False,
        )
    )
    for centre in mapped(rows):
        np.testing.assert_allclose(centre, golden["center_after"][0], rtol=1e-5, atol=1e-7)


def official_networks():
    """(parameters of the authors' tiny ViT with head, their images and output)."""
    arrays = dict(np.load(GOLDEN / "dino_vit_tiny.npz"))
    fields = {"name": "vit", "size": 32, "patch": 8, "width": 32, "heads": 4, "depth": 3}
    model = ConfigDict({**fields, "positions": "learned", "initial": "dino", "dtype": "float32"})
    sd = {k[3:]: v for k, v in arrays.items() if k.startswith("sd/")}
    head = {k[7:]: v for k, v in arrays.items() if k.startswith("headsd/")}
    mlp = heads.MLP((24, 24, 8), ("none",) * 3, (True,) * 3, activation="gelu")
    names = ("mlp.0", "mlp.2", "mlp.4")
    projector = {
        "mlp": torch_weights.mlp(mlp, head, names, (None,) * 3, drop=("last_layer",))["params"],
        "v": jnp.asarray(head["last_layer.weight_v"].T),
    }
    encoder = torch_weights.vit(models.make(model), sd)["params"]
    return model, {"encoder": encoder, "projector": projector}, arrays


def vit_config(**method):
    """`imagenet` with the official tiny networks: 2 global views of 32, 2 local crops of 24."""
    config, _ = configs.load("configs/dino.py:imagenet")
    config.model = official_networks()[0]
    config.method.projector.update({"out": 20, "hidden": 24, "bottleneck": 8})
    config.method.local_crops = 2
    for view, size in (("global_1", 32), ("global_2", 32), ("local", 24)):
        config.views[view].size = size
    with config.unlocked():
        config.method.update(method)
    return config


def test_multi_crop_of_the_official_networks():
    """Student: all crops, each size on its own, positions resampled. Teacher: global views."""
    _, params, arrays = official_networks()
    method = dino.make(vit_config(), RUN)
    big, small = (arrays[name].transpose(0, 2, 3, 1) for name in ("img32", "img24"))
    # The second crop of each size is the other image.
    views = {"global": jnp.stack([big, big[::-1]], 1), "local": jnp.stack([small, small[::-1]], 1)}
    empty = {"encoder": {}, "projector": {}}
    state = {**empty, "target": params, "target_stats": empty, "centre": jnp.zeros(20)}
    seen = inside(method, params, state, views, context())
    want = np.stack(np.split(arrays["multicrop_out"], 4), 1)  # crop by crop -> [b, v, K]
    np.testing.assert_allclose(seen["student"], want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen["teacher"], want[:, :2], rtol=1e-4, atol=1e-5)


@pytest.mark.long
def test_drop_path_of_the_student_alone():
    """Every crop of every image on its own; the same on any number of devices."""
    _, params, _ = official_networks()
    config = vit_config()
    config.model.drop_path = 0.9
    method = dino.make(config, RUN)
    views = {"global": jnp.ones((8, 2, 32, 32, 3)), "local": jnp.ones((8, 2, 24, 24, 3))}
    empty = {"encoder": {}, "projector": {}}
    state = {**empty, "target": params, "target_stats": empty, "centre": jnp.zeros(20)}
    seen, other = (inside(method, params, state, views, context(key=k)) for k in (3, 4))
    student, teacher = seen["student"], seen["teacher"]
    for crops in (student[:, :2], student[:, 2:]):  # equal pictures, other blocks dropped
        assert len(np.unique(np.round(crops.reshape(16, -1), 4), axis=0)) > 4
    assert float(jnp.abs(student - other["student"]).max()) > 1e-3
    np.testing.assert_allclose(teacher, other["teacher"], atol=1e-6)
    np.testing.assert_allclose(teacher[0, 0], teacher[5, 1], atol=1e-6)

    def local(views):
        loss, (new, _) = method.loss(params, state, views, context(layout.AXIS))
        return collectives.pmean(loss, layout.AXIS), new["centre"]

    mapped = jax.shard_map(
        local, mesh=layout.mesh(), in_specs=P("batch"), out_specs=P(), check_vma=False
    )
    loss, centre = jax.jit(mapped)(views)
    want = losses.cross_view(student, seen["targets"], 0.1)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(centre, seen["state"]["centre"], rtol=1e-5, atol=1e-6)


def test_weight_decay_groups_of_the_official_code():
    golden = np.load(GOLDEN / "dino_param_groups.npz")
    names = [*golden["regularized"], *golden["not_regularized"]]
    model = official_networks()[0]
    model.depth = 1
    # Each of the official parameters filled with its own number finds its place among ours.
    shapes = {k[3:]: v.shape for k, v in np.load(GOLDEN / "dino_vit_tiny.npz").items()}
    filled = {name: np.full(shapes[name], i) for i, name in enumerate(names)}
    ours = torch_weights.vit(models.make(model), filled)["params"]
    config, _ = configs.load("configs/dino.py:imagenet")
    decayed = rules.outside(config.optimizer.decay_exclude, {"encoder": ours})
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(decayed), strict=True)
    found = {names[int(leaf.ravel()[0])] for leaf, decays in pairs if decays}
    assert found == set(golden["regularized"])
    assert len(jax.tree.leaves(ours)) == len(names)


@pytest.fixture(scope="module")
def setting():
    """The tiny ResNet of every test of methods, 2 + 2 crops."""
    config = tiny.config("dino")
    method = dino.make(config, RUN)
    image = np.random.default_rng(0).integers(0, 255, (8, 28, 28, 1), dtype=np.uint8)
    views = jax.jit(lambda x: method.views(jax.random.key(1), {"image": x}, context()))(image)
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    return config, method, views, params, state


def test_crops(setting):
    _, _, views, _, _ = setting
    assert views["global"].shape == (8, 2, 28, 28, 1) and views["local"].shape == (8, 2, 16, 16, 1)
    for x in views.values():
        assert float(jnp.abs(x[:, 0] - x[:, 1]).max()) > 0.1


def test_the_teacher_starts_as_the_student_and_is_probed(setting):
    config, method, _, params, state = setting
    for name in ("encoder", "projector"):
        jax.tree.map(np.testing.assert_array_equal, state["target"][name], params[name])
    moved = jax.tree.map(lambda x: x + 1, state["target"]["encoder"])
    state = {**state, "target": {**state["target"], "encoder": moved}}
    assert probed.variables(method, params, state)["params"] is moved
    assert (
        probed.variables(method, params, state)["batch_stats"] is state["target_stats"]["encoder"]
    )
    config = config.copy_and_resolve_references()
    config.method.encoder = "online"
    online = probed.variables(dino.make(config, RUN), params, state)
    assert online["params"] is params["encoder"] and online["batch_stats"] is state["encoder"]


def test_the_teacher_follows_the_new_student_by_the_official_momentum(setting):
    config, *_ = setting
    golden = np.load(GOLDEN / "dino_cosine_scheduler.npz")["momentum"]  # .996 to 1 in 70 steps
    config = config.copy_and_resolve_references()
    config.method.momentum = 0.996
    method = dino.make(config, RUN._replace(total_steps=70))
    params = {"encoder": {"w": jnp.ones(1)}, "projector": {"w": jnp.ones(1)}, "predictor": {}}
    state = {"target": jax.tree.map(jnp.zeros_like, {k: params[k] for k in dino.TEACHER})}
    for step in (0, 1, 35, 69):
        same, after = method.after_step(params, state, context(step=step))
        assert same is params
        for name in dino.TEACHER:
            np.testing.assert_allclose(after["target"][name]["w"], 1 - golden[step], atol=1e-6)


def test_momentum_0_makes_the_teacher_the_student(setting):
    config, *_ = setting
    config = config.copy_and_resolve_references()
    config.method.momentum = 0.0
    method = dino.make(config, RUN)
    params = {"encoder": jnp.ones(1), "projector": jnp.full(1, 2.0)}
    state = {"target": {"encoder": jnp.zeros(1), "projector": jnp.zeros(1)}}
    for step in (0, 9, 15):
        _, after = method.after_step(params, state, context(step=step))
        assert after["target"] == params


def test_the_last_layer_rests_for_one_epoch():
    config = vit_config()
    config.optimizer.warmup_epochs = 0.0
    method = dino.make(config, RUN)
    _, params, _ = official_networks()
    params["projector"]["g"] = jnp.ones(20)  # there without norm_last
    labels = method.labels(params)
    paths = jax.tree_util.tree_leaves_with_path(labels)
    last = {jax.tree_util.keystr(p, simple=True, separator="/") for p, x in paths if x != "default"}
    assert last == {"projector/v", "projector/g"}
    optimizer = optimizers.make(
        config.optimizer, params, labels, batch=8, steps_per_epoch=2, total_steps=8
    )

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, params), state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state, before = optimizer.init(params), params
    for k in range(3):
        params, state = step(params, state)
        for name in ("v", "g"):
            rests = np.array_equal(params["projector"][name], before["projector"][name])
            assert rests == (k < 2), (k, name)
        assert not np.array_equal(params["encoder"]["positions"], before["encoder"]["positions"])


def with_method(config, **fields):
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for name, value in fields.items():
            config.method[name] = value
    return dino.make(config, RUN)


@pytest.mark.parametrize("centring", ["mean", "none", "sinkhorn"])
def test_centring(setting, centring):
    config, method, views, params, state = setting
    seen = inside(method, params, state, views, context())
    t, old = seen["teacher"], seen["state"]["centre"]
    np.testing.assert_allclose(old, 0.1 * t.mean((0, 1)), rtol=1e-5, atol=1e-8)
    method = with_method(config, centring=centring)
    start = {**state, "centre": old if centring == "mean" else jnp.zeros(32)}
    seen = inside(method, params, start, views, context())
    centre = seen["state"]["centre"]
    if centring == "mean":
        want = jax.nn.softmax((t - old) / 0.04)  # the centre as it was
        np.testing.assert_allclose(centre, 0.9 * old + 0.1 * t.mean((0, 1)), rtol=1e-4, atol=1e-8)
    else:
        np.testing.assert_array_equal(centre, np.zeros(32))
        want = jax.nn.softmax(t / 0.04)
    if centring == "sinkhorn":
        want = clustering.sinkhorn(t.reshape(16, 32), 0.04, 3).reshape(8, 2, 32)
    np.testing.assert_allclose(seen["targets"], want, rtol=1e-3, atol=1e-5)


def test_micro_batches_share_one_update_of_the_centre(setting):
    """Of two that say the same, as one batch would."""
    config, method, views, params, state = setting
    want = inside(method, params, state, views, context())["state"]["centre"]
    config = config.copy_and_resolve_references()
    config.accumulate = 2
    method = dino.make(config, RUN)
    first = inside(method, params, state, views, context())["state"]
    np.testing.assert_array_equal(
        first["target"]["projector"]["v"], state["target"]["projector"]["v"]
    )
    again = {**state, "centre": first["centre"]}
    second = inside(method, params, again, views, context())["state"]
    np.testing.assert_allclose(second["centre"], want, rtol=1e-4, atol=1e-8)


def test_a_predictor_is_the_students_alone(setting):
    config, _, views, *_ = setting
    fields = {"widths": (8, 32), "norms": ("affine", "none"), "biases": (True, True)}
    method = with_method(config, predictor=ConfigDict(fields))
    params, state = jax.jit(method.init)(jax.random.key(0), views)
    assert set(params) == {"encoder", "projector", "predictor"}
    assert set(state["target"]) == {"encoder", "projector"}
    f = jax.jit(jax.value_and_grad(lambda p: method.loss(p, state, views, context()), has_aux=True))
    (_, (after, _)), grad = f(params)
    assert all(float(jnp.abs(g).max()) > 0 for g in jax.tree.leaves(grad["predictor"]["linear1"]))
    assert float(jnp.abs(after["predictor"]["norm0"]["mean"]).max()) > 0
    _, later = method.after_step(params, after, context())
    assert jax.tree.structure(later) == jax.tree.structure(state)
    with pytest.raises(UserError, match="widths ends with 8; .*method.projector.out is 32"):
        with_method(config, predictor=ConfigDict({**fields, "widths": (8, 8)}))
    without = with_method(config, predictor=None)
    assert "predictor" not in jax.eval_shape(without.init, jax.random.key(0), views)[0]


def test_batch_norm_sees_crops_of_one_size_together(setting):
    """As MultiCropWrapper: one pass per size, so its statistics move once per size."""
    config, _, views, params, state = setting
    seen = []

    class Spy:
        def __init__(self, net):
            self.net, self.dtype = net, net.dtype

        def __getattr__(self, name):
            return getattr(self.net, name)

        def clone(self, **fields):
            return Spy(self.net.clone(**fields))

        def apply(self, variables, x, **more):
            seen.append(x.shape)
            return self.net.apply(variables, x, **more)

    patch = pytest.MonkeyPatch()
    with patch.context() as p:
        made = models.make(config.model)
        p.setattr(dino.models, "make", lambda _: Spy(made))
        method = with_method(config)
    after = inside(method, params, state, views, context())["state"]
    assert seen == [(16, 28, 28, 1), (16, 28, 28, 1), (16, 16, 16, 1)]  # teacher, student
    seen.clear()
    same = {"global": views["global"], "local": views["global"] + 0.1}
    jax.eval_shape(lambda: method.loss(params, state, same, context()))
    assert seen == [(16, 28, 28, 1), (32, 28, 28, 1)]
    # The teacher's statistics are of the global views, the student's go on to the local ones.
    stats = state["encoder"]
    for name, got in (("global", after["target_stats"]), ("local", after)):
        variables = {"params": params["encoder"], "batch_stats": stats}
        x = views[name].reshape(16, *views[name].shape[2:])
        _, new = jax.jit(lambda v, x: made.apply(v, x, True, mutable=["batch_stats"]))(variables, x)
        stats = new["batch_stats"]
        for a, b in zip(*map(jax.tree.leaves, (got["encoder"], stats)), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_presets():
    for preset, crops in (("imagenet", 8), ("cifar10", 0), ("digits", 0), ("peer", 0)):
        config, _ = configs.load(f"configs/dino.py:{preset}")
        assert config.method.local_crops == crops
        dino.make(config, RUN)
    config, _ = configs.load("configs/dino.py:imagenet")
    # The end of the official rate, whatever the batch it was scaled for.
    rate = config.optimizer.learning_rate * config.batch / 256
    np.testing.assert_allclose(config.optimizer.final * rate, 1e-6)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"centring": "means"}, "Did you mean mean"),
        ({"encoder": "teacher"}, "method.encoder is 'teacher'"),
        ({"momentum": 1.5}, "from 0 to 1"),
    ],
)
def test_errors(setting, fields, message):
    with pytest.raises(UserError, match=message):
        with_method(setting[0], **fields)


def test_local_crops_need_their_view():
    config, _ = configs.load("configs/dino.py:cifar10")
    config.method.local_crops = 2
    with pytest.raises(UserError, match="there is no views.local"):
        dino.make(config, RUN)
