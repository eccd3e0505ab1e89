"""The SGD probe against plain loops of the official codes, and against logistic regression."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import augment
from ssl_jax.data import loader, sources
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import apart
from ssl_jax.evaluate.probes import linear, linear_sgd
from ssl_jax.runs import config as configs

N, D, CLASSES, BATCH = 70, 5, 3, 16


def blobs(n=N, d=D, classes=CLASSES, spread=1.0, seed=0):
    r = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    y = r.integers(0, classes, n).astype(np.int32)
    return (centres[y] + spread * r.normal(size=(n, d))).astype(np.float32), y


def fit(x, y, grid, **recipe):
    recipe = linear_sgd.complete({"batch": BATCH, **recipe})
    rows = apart.alone(x, y)
    return linear_sgd.fit(lambda epoch: rows, np.arange(len(y)), CLASSES, recipe, grid, seed=3)


def loop(x, y, lr_of, *, kind="sgd", weight_decay=0.0, momentum=0.9, epochs=4, batch_norm=False):
    """What the official scripts do, in float64, one classifier, one row of loops.

    lr_of: (epoch, fraction of it) -> learning rate.
    """
    start = linear_sgd.begin(D, CLASSES, 1, ("sgd", 0.9, False), 3)
    weight = np.asarray(start.params.weight[0], np.float64)  # [d, c]
    bias = np.zeros(CLASSES)
    buffers = [np.zeros_like(weight), np.zeros_like(bias)]
    running, spread = np.zeros(D), np.ones(D)
    steps = len(y) // BATCH
    for epoch in range(epochs):
        order = np.random.Generator(np.random.Philox([3, epoch])).permutation(len(y))
        for step in range(steps):
            rows = order[step * BATCH : (step + 1) * BATCH]
            now = x[rows].astype(np.float64)
            if batch_norm:
                mean, var = now.mean(0), now.var(0)
                running = 0.9 * running + 0.1 * mean
                spread = 0.9 * spread + 0.1 * now.var(0, ddof=1)
                now = (now - mean) / np.sqrt(var + 1e-6)
            logits = now @ weight + bias
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            p[np.arange(BATCH), y[rows]] -= 1
            grads = [now.T @ p / BATCH, p.mean(0)]
            lr = lr_of(epoch, step / steps)
            for i, (value, grad) in enumerate(zip((weight, bias), grads, strict=True)):
                decay = weight_decay if i == 0 else 0.0
                norm, length = np.linalg.norm(value), np.linalg.norm(grad + decay * value)
                if kind == "lars" and i == 0 and norm > 0 and length > 0:  # mae/util/lars.py
                    grad = (grad + decay * value) * 1e-3 * norm / length
                elif kind == "larc" and norm > 0 and np.linalg.norm(grad) > 0:  # apex LARC.py
                    below = np.linalg.norm(grad) + decay * norm + 1e-8
                    grad = (grad + decay * value) * 1e-3 * norm / below
                elif kind != "larc":
                    grad = grad + decay * value
                buffers[i] = momentum * buffers[i] + grad
                value -= lr * buffers[i]
    return weight, bias, running, spread


def cosine(epoch, epochs=4):
    return 0.5 * (1 + math.cos(math.pi * epoch / epochs))


CASES = {
    "moco": (
        {"optimizer": "sgd", "schedule": "step", "milestones": (1, 3), "scaling": "none"},
        {},
        lambda peak: lambda e, f: peak * 0.1 ** ((e >= 1) + (e >= 3)),
    ),
    "simsiam": (
        {"optimizer": "larc", "schedule": "cosine_per_epoch"},
        {"kind": "larc"},
        lambda peak: lambda e, f: peak * BATCH / 256 * cosine(e),
    ),
    # lr_sched.py: a ramp over the warm-up epochs, then a cosine of the fractional epoch.
    "mae": (
        {"optimizer": "lars", "batch_norm": True, "warmup_epochs": 1.0},
        {"kind": "lars", "batch_norm": True},
        lambda peak: (
            lambda e, f: peak * BATCH / 256 * (e + f if e + f < 1 else cosine(e + f - 1, 3))
        ),
    ),
    "dino": (
        {"schedule": "cosine_per_epoch"},
        {},
        lambda peak: lambda e, f: peak * BATCH / 256 * cosine(e),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_candidate_of_a_grid_is_the_official_loop(name):
    recipe, how, lr_of = CASES[name]
    x, y = blobs()
    # LARS takes steps of a thousandth of the weight's length.
    peak, most = (30.0, 0.02) if name in ("moco", "dino") else (1000.0, 5.0)
    grid = [(0.5, 0.0), (peak, 0.0), (peak, most)]
    state = fit(x, y, grid, epochs=4, **recipe)
    assert state.params.weight.shape == (3, D, CLASSES)
    for g, (lr, decay) in enumerate(grid):
        weight, bias, mean, variance = loop(x, y, lr_of(lr), weight_decay=decay, **how)
        got = state.params
        # Large rates blow up rounding; 1e-3 of a weight is far below what a mistake makes.
        np.testing.assert_allclose(got.weight[g], weight, rtol=1e-3, atol=1e-3 * abs(weight).max())
        np.testing.assert_allclose(got.bias[g], bias, rtol=1e-3, atol=1e-3 * abs(bias).max())
        if how.get("batch_norm"):
            np.testing.assert_allclose(state.mean, mean, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(state.variance, variance, rtol=1e-4)
    assert np.abs(state.params.weight[1] - state.params.weight[2]).max() > 1e-3


def test_batch_norm_is_judged_with_its_running_statistics():
    x, y = blobs()
    recipe = linear_sgd.complete({"batch": BATCH, "epochs": 2, "batch_norm": True})
    rows = apart.alone(x, y)
    state = linear_sgd.fit(lambda e: rows, np.arange(N), CLASSES, recipe, [(0.1, 0.0)], 3)
    z = (x - np.asarray(state.mean)) / np.sqrt(np.asarray(state.variance) + 1e-6)
    want = z @ np.asarray(state.params.weight[0]) + np.asarray(state.params.bias[0])
    np.testing.assert_allclose(linear_sgd.scores_of(state, 0, recipe, x), want, atol=1e-5)


SGD = {"batch": 64, "epochs": 20, "learning_rates": (0.01, 0.1, 1.0), "batch_norm": True}


def probe(x, y, x_new, y_new, classes=4, seed=0, train=None, **recipe):
    def rows(epoch):
        return apart.alone(train(epoch) if train else x, y)

    recipe = {**SGD, **recipe}
    return linear_sgd.probe(rows, apart.alone(x, y), x_new, y_new, classes, recipe, seed=seed)


def test_chooses_on_the_holdout_and_agrees_with_logistic_regression():
    x, y = blobs(2000, 12, 4, 1.2)
    x_new, y_new = blobs(4000, 12, 4, 1.2, seed=1)
    result = probe(x, y, x_new, y_new, weight_decays=(0.0, 1e-2))
    curve = result["curve"]
    assert [(r["learning_rate"], r["weight_decay"]) for r in curve] == [
        (lr, wd) for lr in SGD["learning_rates"] for wd in (0.0, 1e-2)
    ]
    best = max(curve, key=lambda row: (row["top1"], -row["cross_entropy"]))
    assert result["learning_rate"] == best["learning_rate"]
    assert result["weight_decay"] == best["weight_decay"]
    exact = linear.probe(x, y, x_new, y_new, 4)
    assert abs(result["top1"] - exact["top1"]) <= 0.005
    assert 0.7 < result["top1"] < 1 and result["top5"] is None

    # The test split has no say in the choice.
    other = probe(x, y, x_new, (y_new + 1) % 4, weight_decays=(0.0, 1e-2))
    assert other["curve"] == curve and other["top1"] < 0.2


def test_a_grid_of_one_needs_no_holdout_and_rows_without_a_label_are_left_out():
    x, y = blobs(200, 12, 4)
    y[:40] = -1
    plain = probe(x, y, x[40:], y[40:], learning_rates=(0.1,))
    assert plain["curve"] == [] and plain["learning_rate"] == 0.1
    x = x.copy()
    x[:40] = 1e3
    junk = probe(x, y, x[40:], y[40:], learning_rates=(0.1,))
    for one, other in zip(
        junk.pop("classifier").values(), plain.pop("classifier").values(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert junk == plain


def test_a_rate_that_diverges_is_not_chosen_and_one_line_says_when_all_do():
    x, y = blobs(200, 12, 4)
    result = probe(x, y, x, y, learning_rates=(0.1, 1e38), batch_norm=False)
    assert result["learning_rate"] == 0.1 and result["curve"][1]["cross_entropy"] is None
    for rates in ((1e38,), (1e38, 3e38)):
        with pytest.raises(UserError, match="diverged with learning rate 1e"):
            probe(x, y, x, y, learning_rates=rates, batch_norm=False)


def test_features_of_an_epoch_are_asked_for_once_an_epoch():
    x, y = blobs(200, 12, 4)
    asked = []

    def train(epoch):
        asked.append(epoch)
        return x + 1e-3 * epoch  # as augmented features, other ones each time

    other = probe(x, y, x, y, train=train, epochs=3, learning_rates=(0.1,))
    assert asked == [0, 1, 2]
    assert set(other) >= {"top1", "top5", "mean_per_class"}
    asked.clear()
    probe(x, y, x, y, train=train, epochs=3)  # for the choice and for the last fit
    assert asked == [0, 1, 2, 0, 1, 2]


def test_the_order_is_the_loaders():
    x, y = blobs()
    last = fit(x, y, [(1.0, 0.0)], epochs=1)
    order = loader.order(3, 0, N)
    cut = np.sort(order[: N // BATCH * BATCH])
    kept = jnp.isin(jnp.arange(N), cut)
    # Rows at the end of the order are left out of the epoch: nonsense there changes nothing.
    junk = fit(np.where(kept[:, None], x, 1e3), y, [(1.0, 0.0)], epochs=1)
    np.testing.assert_array_equal(last.params.weight, junk.params.weight)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ({"batch": 1000}, "lower --config.sgd.batch"),
        ({"optimizer": "lasr"}, "Did you mean lars"),
        ({"learning_rates": ()}, "above 0"),
        ({"learning_rates": (0.1, 0.0)}, "above 0"),
        ({"weight_decays": (-1.0,)}, "0 or more"),
        ({"momentum": 1.0}, "below 1"),
        ({"epochs": 0}, "at least 1"),
        ({"schedule": "cosin"}, "config.sgd.schedule"),
        ({"schedule": "step"}, "without milestones"),
        ({"lr": 1.0}, "no field lr"),
        ({"batch": 1}, "BatchNorm needs"),
    ],
)
def test_user_errors(recipe, message):
    x, y = blobs(100, 12, 4)
    with pytest.raises(UserError, match=message) as error:
        probe(x, y, x, y, **recipe)
    assert "\n" not in str(error.value)


@pytest.mark.long
def test_both_solvers_agree_on_the_digits():
    """On the pixels of 14 × 14: within half a point, as both are near one optimum."""
    data = configs.defaults().data

    def pixels(split, n):
        source = sources.open_source(data, split)
        rows = source.read(np.arange(n))
        small = augment.evaluate(rows["image"], 14)
        return np.asarray(small).reshape(n, -1), rows["label"]

    (x, y), (x_new, y_new) = pixels("train", 4000), pixels("test", 1000)
    exact = linear.probe(x, y, x_new, y_new, 10)
    recipe = {"learning_rates": (0.03, 0.3), "weight_decays": (1e-4, 1e-3), "epochs": 30}
    found = probe(x, y, x_new, y_new, 10, **recipe)
    assert abs(found["top1"] - exact["top1"]) <= 0.005
    assert 0.88 < exact["top1"] < 0.95


def test_a_rate_that_never_drops_is_said():
    moco = {"schedule": "step", "milestones": (60.0, 80.0)}
    (line,) = linear_sgd.remarks(linear_sgd.complete({**moco, "epochs": 70}))
    assert line.startswith("the learning rate never drops at epoch 80 (--config.sgd.milestones)")
    assert linear_sgd.remarks(linear_sgd.complete({**moco, "epochs": 100})) == []
    assert linear_sgd.remarks(linear_sgd.complete({"epochs": 2})) == []
