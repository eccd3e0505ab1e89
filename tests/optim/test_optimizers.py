import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.optim import optimizers, rules

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
RUN = {"batch": 256, "steps_per_epoch": 2, "total_steps": 10}
CONSTANT = {"schedule": "constant", "learning_rate": 0.1}


def walk(optimizer, params, grads):
    """Parameters after each of the steps: leaves [steps, …]. `grads` leaves [steps, …]."""

    @jax.jit
    def run(params, grads):
        def step(carry, grad):
            params, state = carry
            updates, state = optimizer.update(grad, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, (params, optimizer.init(params)), grads)[1]

    return run(params, grads)


def given_rates(changes, rates, wd=0.0):
    """The rule with these fields, at these learning rates, one a step."""
    rates = jnp.asarray(rates, jnp.float32)
    return rules.rule({**optimizers.FIELDS, **changes}, lambda step: rates[step], wd)


def entries(golden, prefix):
    return {k.removeprefix(prefix): golden[k] for k in golden.files if k.startswith(prefix)}


TORCH_1D = (r"bn\.", r"\.bias$")
GOOGLE = ("batch_normalization", "bias", "head_supervised")
CASES = {
    "lars_barlowtwins filtered": ("lars", 1e-2, TORCH_1D, "lrs", "filtered/", {}),
    "lars_barlowtwins unfiltered": ("lars", 1e-2, (), "lrs", "unfiltered/", {}),
    "lars_byol_optax": ("lars", 1e-2, ("norm", "/b$"), "lrs", "out/", {}),
    "lars_google_simclr classic": ("lars_google", 1e-4, GOOGLE, 0.3, "classic/", {}),
    "lars_google_simclr nesterov": (
        "lars_google", 1e-4, GOOGLE, 0.3, "nesterov/", {"nesterov": True},
    ),
    "adamw_torch_mae": ("adamw", 0.04, TORCH_1D, "adamw_lrs", "out/", {"betas": (0.9, 0.95)}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_official_updates(case):
    name, wd, exclude, rates, out, changes = CASES[case]
    golden = np.load(GOLDEN / f"{case.split()[0]}.npz")
    params, grads = entries(golden, "params0/"), entries(golden, "grads/")
    steps = len(next(iter(grads.values())))
    rates = golden[rates] if isinstance(rates, str) else np.full(steps, rates)
    fields = {"name": name, "decay_exclude": exclude, "trust_exclude": exclude, **changes}
    got = walk(given_rates(fields, rates, wd), params, grads)
    want = entries(golden, out)
    assert set(got) == set(want)
    for key in want:
        np.testing.assert_allclose(got[key], want[key], rtol=1e-5, atol=1e-7, err_msg=key)


def numpy_walk(name, p, grads, rates, wd, m, eta, nesterov=False):
    """The rules as written in `rules.descent`, one parameter, float64. Returns [steps, …]."""
    p, v, out = p.astype(np.float64), 0.0, []
    norm = np.linalg.norm
    for g, lr in zip(grads.astype(np.float64), rates, strict=True):
        u = g + wd * p
        inside, outside = 1.0, lr
        if name in ("lars", "lars_google"):
            u = u * (eta * norm(p) / norm(u) if norm(p) and norm(u) else 1)
            inside, outside = (lr, 1.0) if name == "lars_google" else (1.0, lr)
        if name.startswith("larc"):
            ratio = eta * norm(p) / (norm(g) + wd * norm(p) + 1e-8)
            ratio = min(ratio / lr, 1) if name == "larc_clip" else ratio
            u = ratio * u if norm(p) and norm(g) else g
        v = m * v + inside * u
        p = p - outside * (inside * u + m * v if nesterov else v)
        out.append(p)
    return np.stack(out)


@pytest.mark.parametrize(
    "name", ["sgd", "sgd nesterov", "lars", "lars_google", "larc", "larc_clip"]
)
def test_equals_the_formulas_under_a_changing_rate(name):
    name, _, nesterov = name.partition(" ")
    rng = np.random.default_rng(0)
    # Weight (adapted, decayed), a larger one whose clipped rate differs, zeros, a bias (neither).
    params = {
        "w": rng.normal(size=(3, 4)),
        "large": 50 * rng.normal(size=(3, 4)),
        "zero": np.zeros((2, 2)),
        "bias": rng.normal(size=4),
    }
    params = {k: v.astype(np.float32) for k, v in params.items()}
    grads = {k: rng.normal(size=(4, *v.shape)).astype(np.float32) for k, v in params.items()}
    grads["w"][2] = 0  # a gradient of no length
    rates = [0.2, 0.5, 0.3, 0.01]
    fields = {"name": name, "trust_coefficient": 0.02, "nesterov": bool(nesterov)}
    got = walk(given_rates(fields, rates, 0.1), params, grads)
    for key in params:
        rule, wd = ("sgd", 0.0) if key == "bias" else (name, 0.1)
        if key == "bias" and name == "lars_google":  # ratio 1, the rate still inside the buffer
            rates_inside = np.asarray(rates).reshape(4, 1)
            want = numpy_walk("sgd", params[key], rates_inside * grads[key], np.ones(4), 0, 0.9, 0)
        else:
            want = numpy_walk(rule, params[key], grads[key], rates, wd, 0.9, 0.02, nesterov)
        np.testing.assert_allclose(got[key], want, rtol=1e-5, atol=1e-6, err_msg=key)


def test_the_kinds_of_lars_differ_only_when_the_rate_changes():
    params, grads = {"w": np.ones((2, 2), np.float32)}, {"w": np.ones((3, 2, 2), np.float32)}
    ends = {}
    for rates in ((0.3, 0.3, 0.3), (0.3, 0.2, 0.1)):
        for name in ("lars", "lars_google"):
            ends[name, rates] = walk(given_rates({"name": name}, rates), params, grads)["w"][-1]
    same, other = (0.3, 0.3, 0.3), (0.3, 0.2, 0.1)
    np.testing.assert_allclose(ends["lars", same], ends["lars_google", same], rtol=1e-6)
    assert (ends["lars", other] - ends["lars_google", other]).min() > 1e-4


TREE = {
    "encoder": {
        "conv": {"kernel": jnp.full((2, 2), 2.0)},
        "bn": {"scale": jnp.ones(2), "bias": jnp.ones(2)},
    },
    "predictor": {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2)},
    "cls_token": jnp.ones((1, 1, 2)),
}
LABELS = {
    "encoder": {"conv": {"kernel": "default"}, "bn": {"scale": "default", "bias": "default"}},
    "predictor": {"kernel": "predictor", "bias": "predictor"},
    "cls_token": "default",
}
ZEROS = jax.tree.map(jnp.zeros_like, TREE)
ONES = jax.tree.map(jnp.ones_like, TREE)


def updates_of(config, grads=ONES, labels=None, steps=1, params=TREE):
    """The updates of each step, leaves [steps, …], at unchanged parameters."""
    optimizer = optimizers.make(config, params, labels, **RUN)
    state, out = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        updates, state = update(grads, state, params)
        out.append(updates)
    return jax.tree.map(lambda *x: np.stack(x), *out)


SGD = {"name": "sgd", "momentum": 0.0, **CONSTANT}


def test_masks_are_regular_expressions_over_paths():
    decay = SGD | {"weight_decay": 0.5}
    u = updates_of(decay, ZEROS)  # by default biases and norm scales have no decay
    np.testing.assert_allclose(u["encoder"]["conv"]["kernel"], -0.1 * 0.5 * 2)
    np.testing.assert_allclose(u["cls_token"], -0.1 * 0.5)
    for path in (u["encoder"]["bn"]["scale"], u["encoder"]["bn"]["bias"], u["predictor"]["bias"]):
        np.testing.assert_array_equal(path, np.zeros((1, 2)))
    u = updates_of(decay | {"decay_exclude": ("^encoder/", "cls")}, ZEROS)
    assert not u["encoder"]["conv"]["kernel"].any() and not u["cls_token"].any()
    np.testing.assert_allclose(u["predictor"]["bias"], -0.1 * 0.5)
    one = updates_of(decay | {"decay_exclude": "bias"}, ZEROS)  # a lone string is one pattern
    np.testing.assert_allclose(one["encoder"]["bn"]["scale"], -0.1 * 0.5)


def test_weight_decay_schedule():
    u = updates_of(SGD | {"weight_decay": 0.04, "weight_decay_final": 0.4}, ZEROS, steps=10)
    want = 0.4 - 0.36 * (1 + np.cos(np.pi * np.arange(10) / 10)) / 2
    np.testing.assert_allclose(u["cls_token"][:, 0, 0, 0], -0.1 * want, rtol=1e-5)


def test_clipping():
    u = updates_of(SGD | {"clip_norm": 2.0})
    length = np.sqrt(sum(np.size(x) for x in jax.tree.leaves(TREE)))  # of a gradient of ones
    np.testing.assert_allclose(u["cls_token"], -0.1 * 2.0 / length, rtol=1e-5)
    assert np.sqrt(sum((x**2).sum() for x in jax.tree.leaves(u))) == pytest.approx(0.2, rel=1e-5)
    u = updates_of(SGD | {"clip_per_parameter": 1.8})  # kernels have length 2, the others √2
    np.testing.assert_allclose(u["encoder"]["conv"]["kernel"], -0.1 * 0.9, rtol=1e-5)
    np.testing.assert_allclose(u["encoder"]["bn"]["scale"], -0.1, rtol=1e-6)
    u = updates_of(SGD | {"clip_per_parameter": 1.8, "clip_norm": 1.0}, ZEROS)
    assert not any(x.any() for x in jax.tree.leaves(u))


def test_groups_override_schedule_and_rate():
    config = SGD | {
        "schedule": "cosine",
        "scaling": "linear",
        "groups": {"predictor": {"schedule": "constant", "learning_rate": 0.2}},
    }
    u = updates_of(config, labels=LABELS, steps=10)
    np.testing.assert_allclose(u["predictor"]["bias"], -0.2, rtol=1e-6)
    want = 0.05 * (1 + np.cos(np.pi * np.arange(10) / 10))
    np.testing.assert_allclose(u["cls_token"][:, 0, 0, 0], -want, rtol=1e-5)
    u = updates_of(SGD, labels=LABELS)  # a label without an entry takes the main rule
    np.testing.assert_allclose(u["predictor"]["bias"], -0.1, rtol=1e-6)


def test_a_group_may_have_another_rule():
    config = SGD | {"groups": {"predictor": {"name": "adamw", "learning_rate": 0.01}}}
    u = updates_of(config, labels=LABELS)
    np.testing.assert_allclose(u["predictor"]["kernel"], -0.01, rtol=1e-5)  # Adam's first step
    np.testing.assert_allclose(u["cls_token"], -0.1, rtol=1e-6)


def test_frozen_never_moves_nor_counts_in_the_norm():
    labels = jax.tree.map(lambda x: "frozen" if x == "predictor" else x, LABELS)
    config = SGD | {"weight_decay": 0.1, "clip_norm": 1.0, "decay_exclude": (".",)}
    u = updates_of(config, labels=labels)
    assert not u["predictor"]["kernel"].any() and not u["predictor"]["bias"].any()
    moved = [u["encoder"]["conv"]["kernel"], *u["encoder"]["bn"].values(), u["cls_token"]]
    assert np.sqrt(sum((x**2).sum() for x in moved)) == pytest.approx(0.1, rel=1e-5)
    named = updates_of(config | {"groups": {"predictor": {"name": "frozen"}}}, labels=LABELS)
    jax.tree.map(np.testing.assert_array_equal, u, named)


def test_a_freeze_leaves_buffers_alone_while_the_schedule_goes_on():
    rates = {"schedule": "step", "milestones": (2,), "factor": 0.5}  # halved from step 4 on
    config = SGD | rates | {
        "name": "adamw", "weight_decay": 0.1, "groups": {"predictor": {"freeze_epochs": 1.5}},
    }  # fmt: skip
    u = updates_of(config, labels=LABELS, steps=6)
    kernel, free = u["predictor"]["kernel"][:, 0, 0], u["encoder"]["conv"]["kernel"][:, 0, 0]
    np.testing.assert_array_equal(kernel[:3], np.zeros(3))
    # At constant gradients Adam's direction is 1 from its own first step on; decay adds 0.1 · 2.
    np.testing.assert_allclose(kernel[3:], [-0.12, -0.06, -0.06], rtol=1e-5)
    np.testing.assert_allclose(free, [-0.12] * 4 + [-0.06] * 2, rtol=1e-5)
    # Bias correction begins with the thaw: a changed gradient shows that no moment was kept.
    optimizer = optimizers.make(config, TREE, LABELS, **RUN)
    state = optimizer.init(TREE)
    for scale in (5.0, 5.0, 5.0, -1.0):
        grads = jax.tree.map(lambda x, s=scale: s * x, ONES)
        updates, state = optimizer.update(grads, state, TREE)
    np.testing.assert_allclose(updates["predictor"]["bias"], 0.1, rtol=1e-5)


FULL = {
    "name": "lars",
    "learning_rate": 0.5,
    "weight_decay": 1e-2,
    "warmup_fraction": 0.2,
    "clip_norm": 3.0,
    "weight_decay_final": 0.1,
    "groups": {"predictor": {"name": "adamw", "freeze_epochs": 1.0}},
}


def test_donated_in_shard_map_equals_one_device():
    optimizer = optimizers.make(FULL, TREE, LABELS, **RUN)
    create = jax.jit(lambda: (TREE, optimizer.init(TREE)))

    def step(carry, x):
        params, state = carry
        grads = jax.tree.map(lambda p: jnp.sum(jnp.sin(p)) + p * jnp.mean(x), params)
        grads = jax.lax.pmean(grads, layout.AXIS)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    ends = []
    for count in (1, 4):
        mesh = layout.mesh(jax.devices()[:count])
        mapped = jax.shard_map(
            step, mesh=mesh, in_specs=(P(), P(layout.AXIS)), out_specs=P(), check_vma=False
        )
        donated = jax.jit(mapped, donate_argnums=0)
        carry = jax.device_put(create(), layout.replicated(mesh))
        for i in range(4):
            carry = donated(carry, jnp.arange(4.0) + i)
        ends.append(jax.device_get(carry))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), *ends)
    assert np.abs(ends[0][0]["cls_token"] - TREE["cls_token"]).max() > 1e-4


def test_state_is_plain_arrays_that_orbax_keeps(tmp_path):
    import orbax.checkpoint as ocp

    optimizer = optimizers.make(FULL, TREE, LABELS, **RUN)
    state = optimizer.init(TREE)
    for _ in range(3):
        _, state = optimizer.update(ONES, state, TREE)
    kinds = {leaf.dtype for leaf in jax.tree.leaves(state)}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        blank = jax.tree.map(jnp.zeros_like, state)
        restored = checkpointer.restore(tmp_path / "state", blank)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


def test_made_from_shapes_while_tracing():
    shapes = jax.eval_shape(lambda: TREE)
    optimizer = optimizers.make(FULL, shapes, LABELS, **RUN)
    state = jax.jit(lambda p: optimizers.make(FULL, p, LABELS, **RUN).init(p))(TREE)
    assert jax.tree.structure(state) == jax.tree.structure(jax.eval_shape(optimizer.init, shapes))


def test_describe():
    config = FULL | {"scaling": "linear", "decay_exclude": (r"/bn/", "cls_tokn")}
    lines = optimizers.describe(config, TREE, LABELS, **RUN | {"batch": 512})
    assert lines == [
        "optimizer[default] lars on 4 of 6 parameters: learning rate 1 cosine, "
        "warm-up 2 of 10 steps",
        "  no weight decay on 2 by '/bn/': encoder/bn/bias, encoder/bn/scale",
        "  no weight decay on 0 by 'cls_tokn': none",
        "  weight decay 0.01 on 2: cls_token, encoder/conv/kernel",
        "  no trust ratio on 2 by '(^|/)(bias|scale)$': encoder/bn/bias, encoder/bn/scale",
        "  trust ratio on 2: cls_token, encoder/conv/kernel",
        "optimizer[predictor] adamw on 2 of 6 parameters: learning rate 1 cosine, "
        "warm-up 2 of 10 steps",
        "  no weight decay on 0 by '/bn/': none",
        "  no weight decay on 0 by 'cls_tokn': none",
        "  weight decay 0.01 on 2: predictor/bias, predictor/kernel",
    ]
    many = {f"p{i}": jnp.ones(1) for i in range(9)}
    assert optimizers.describe({"name": "frozen"}, many, **RUN) == [
        "optimizer[default] frozen on 9 of 9 parameters: p0, p1, p2 … 6 more"
    ]


def test_defaults_are_a_config_that_makes_an_optimizer():
    config = optimizers.defaults().lock()
    assert set(config) == set(optimizers.FIELDS)
    config.weight_decay_final = 0.4  # a placeholder takes a number although it is None
    config.update({"name": "sgd", "learning_rate": 0.1, "schedule": "constant"})
    u = updates_of(config)
    np.testing.assert_allclose(u["cls_token"], -0.1, rtol=1e-6)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"name": "lasr"}, "optimizer.name is 'lasr'. Did you mean lars"),
        ({"learnin_rate": 0.1}, "no field learnin_rate. Did you mean learning_rate"),
        ({"schedule": "cosin"}, "optimizer.schedule is 'cosin'. Did you mean cosine"),
        ({"weight_decay": -1.0}, "must not be negative"),
        ({"momentum": 1.0}, "from 0 to below 1"),
        ({"betas": (0.9, 1.0)}, "from 0 to below 1"),
        ({"decay_exclude": ("(bias",)}, "no regular expression"),
        ({"groups": {"predictr": {}}}, "no such parameters. Did you mean predictor"),
        ({"groups": {"predictor": {"nme": "sgd"}}}, "groups.predictor has no field nme"),
        ({"groups": {"predictor": {"schedule": "x"}}}, "groups.predictor.schedule is 'x'"),
        ({"groups": {"predictor": {"clip_norm": 1.0}}}, "groups share it"),
    ],
)
def test_user_errors(config, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        optimizers.make(config, TREE, LABELS, **RUN)


def test_parameters_are_float32():
    with pytest.raises(ValueError, match="encoder/w is bfloat16"):
        optimizers.make({}, {"encoder": {"w": jnp.ones(2, jnp.bfloat16)}}, **RUN)
