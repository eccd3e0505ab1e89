"""Linear probe by SGD: the protocols of the official codes, a whole grid of them in one pass.

A linear layer, N(0, 0.01²) with bias 0 at the start, learns from frozen features by SGD with
momentum or LARS over epochs. Every pair of learning rate and weight decay of a grid is a classifier
of its own; all of them see the same batches and are trained at once (`vmap` over the grid, one
compiled scan an epoch). The best on a hold-out of train is trained once more, on all of train, and
that one is measured on test. A grid of one needs no hold-out.

The rows may be split over devices and processes (`apart.Apart`): then the rows of a batch, and
nothing else, are brought to all of them in every step.

Sources: the learning rates side by side: DINOv2 (eval/linear.py). The protocols: main_lincls.py of
MoCo and SimSiam, main_linprobe.py of MAE, eval_linear.py of DINO. Where they report the best epoch
on the validation set, we report the last.
"""

import functools
import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssl_jax.data import loader
from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.errors import UserError, near_misses
from ssl_jax.evaluate.features import apart
from ssl_jax.evaluate.probes import accuracy, linear
from ssl_jax.optim import rules, schedules
from ssl_jax.processes import talk

OPTIMIZERS = ("sgd", "lars", "larc")

# A recipe and its defaults: `config.sgd`.
FIELDS: dict[str, Any] = {
    "optimizer": "sgd",  # sgd | lars (MAE) | larc (SimSiam); rules.descent has the formulas
    "momentum": 0.9,
    "learning_rates": (0.1,),  # before scaling
    "scaling": "linear",  # none | linear: · batch / 256
    "weight_decays": (0.0,),  # of the weight; the bias is spared
    "batch": 256,  # rows of a step; the rest of an epoch's order is left out (others each epoch)
    "epochs": 100,
    "batch_norm": False,  # BatchNorm without scale and shift before the layer (MAE)
    "schedule": "cosine",  # optim/schedules.py: cosine | cosine_per_epoch | step | constant
    "warmup_epochs": 0.0,
    "milestones": (),  # step: epochs after which the learning rate is multiplied by factor
    "factor": 0.1,
}


class State(NamedTuple):
    """What an epoch leaves behind. g candidates.

    Attributes:
      params: weight float32 [g, d, classes], bias float32 [g, classes].
      momentum: state of the optimizer, leaves [g, …].
      mean, variance: float32 [d], the running ones of BatchNorm; of the features alone, so the
        same for all candidates.
    """

    params: linear.Params
    momentum: Any
    mean: jax.Array
    variance: jax.Array


def probe(
    train: Callable[[int], apart.Apart],
    plain: apart.Apart,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    recipe: Mapping[str, Any],
    holdout: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of a linear layer trained by `recipe`, the best of its grid.

    The rows may be split over processes; all of them call it. (`apart.alone` for arrays.)

    Args:
      train: epoch -> features to learn from: `plain` itself where features are cached, those of
        freshly augmented images otherwise.
      plain: features of the same n images without augmentation, with labels in [0, classes); rows
        with label -1 are left out. The hold-out is judged on them.
      test: float [m, d] features, the same on every process.
      test_labels: int [m]; rows with label -1 are not counted.
      classes: number of classes.
      recipe: FIELDS; missing ones take their default.
      holdout: share of every class that is held out to choose on, in (0, 1).
      seed: of the hold-out, the order of the rows and the initial weights.

    Returns:
      {'top1', 'top5', 'mean_per_class': fractions in [0, 1], 'top5' None of five classes or
      fewer; 'learning_rate' (before scaling),
      'weight_decay': the chosen ones; 'curve': a list of {'learning_rate', 'weight_decay', 'top1',
      'cross_entropy'} on the hold-out (nats, None where training diverged), in the order of the
      grid; empty for a grid of one; 'classifier': see `linear.folded`}. The same on every process.

    Raises:
      UserError: a recipe that cannot be, fewer rows than a batch, training that diverged with
        every learning rate, or as `linear.probe`.
    """
    recipe = complete(recipe)
    linear.check(plain, test, classes)
    y = plain.labels
    grid = list(itertools.product(recipe["learning_rates"], recipe["weight_decays"]))
    curve, best = [], grid[0]
    if len(grid) > 1:
        held = linear.stratified_holdout(y, holdout, seed)
        rows = np.flatnonzero((y >= 0) & ~held)
        state = fit(train, rows, classes, recipe, grid, seed)
        values = measure(state, recipe, plain, held)
        curve = [
            {"learning_rate": lr, "weight_decay": wd, "top1": top1, "cross_entropy": loss}
            for (lr, wd), (top1, loss) in zip(grid, values, strict=True)
        ]
        finite = [g for g in range(len(grid)) if values[g][1] is not None]
        if not finite:
            raise UserError(_diverged(recipe["learning_rates"]))
        best = grid[max(finite, key=lambda g: (values[g][0], -values[g][1]))]
    state = fit(train, np.flatnonzero(y >= 0), classes, recipe, [best], seed)
    scores = np.asarray(scores_of(state, 0, recipe, test))
    if not np.isfinite(scores).all():
        raise UserError(_diverged(best[:1]))
    return {
        "top1": accuracy.top(scores, test_labels, 1),
        "top5": accuracy.top5(scores, test_labels),
        "mean_per_class": linear.mean_per_class(scores, test_labels),
        "learning_rate": best[0],
        "weight_decay": best[1],
        "curve": curve,
        "classifier": classifier_of(state, recipe),
    }


def classifier_of(state: State, recipe: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """`linear.folded` of the first candidate."""
    params = jax.tree.map(lambda p: np.asarray(p[0]), state.params)
    mean, scale = np.zeros(len(params.weight)), np.ones(len(params.weight))
    if recipe["batch_norm"]:
        mean, scale = state.mean, 1 / np.sqrt(np.asarray(state.variance, np.float64) + 1e-6)
    return linear.folded(params, mean, scale)


def fit(
    train: Callable[[int], apart.Apart],
    rows: np.ndarray,
    classes: int,
    recipe: Mapping[str, Any],
    grid: list[tuple[float, float]],
    seed: int,
) -> State:
    """Trains one classifier for every (learning rate, weight decay) of `grid`, all at once.

    Every device of `layout.repeating` takes the same steps on the same batches, so the numbers
    are those of one device.

    Args:
      train: as for `probe`.
      rows: int [r], the rows to learn from. Epoch e takes them in the order of Philox([seed, e]).
      classes: number of classes.
      recipe: all FIELDS.
      grid: (learning rate before scaling, weight decay).
      seed: as for `probe`.

    Returns:
      the state after the last epoch, g = len(grid), on the host.

    Raises:
      UserError: fewer rows than a batch.
    """
    batch = recipe["batch"]
    per_epoch = len(rows) // batch
    if not per_epoch:
        raise UserError(
            f"linear: {len(rows)} training rows (without the hold-out) are fewer than a batch of "
            f"{batch}; lower --config.sgd.batch, the learning rate follows it"
        )
    shape = {**recipe, "learning_rate": 1.0, "scaling": "none"}
    schedule = schedules.make(shape, batch, per_epoch, per_epoch * recipe["epochs"])
    scale = schedules.peak_learning_rate({**recipe, "learning_rate": 1.0}, batch)
    peaks, decays = (np.asarray(column, np.float32) for column in zip(*grid, strict=True))
    rates = scale * jnp.asarray(peaks)  # [g]
    fields = (recipe["optimizer"], recipe["momentum"], recipe["batch_norm"])

    state, x, before = None, None, None
    for epoch in range(recipe["epochs"]):
        now = train(epoch)
        mesh = layout.repeating(now.mesh)
        if now.own is not before:  # cached features go to the devices once
            x = None  # room for the new ones
            x, before = apart.place(now, mesh), now.own
        if state is None:
            start = begin(now.own.shape[1], classes, len(grid), fields, seed)
            state = layout.put_whole(jax.tree.map(np.asarray, start), mesh)
            y = layout.put_whole(now.labels, mesh)
        order = rows[loader.order(seed, epoch, len(rows))[: per_epoch * batch]]
        steps = epoch * per_epoch + jnp.arange(per_epoch)
        learning_rates = np.asarray(schedule(steps)[:, None] * rates)  # [steps, g]
        order = order.reshape(per_epoch, batch).astype(np.int32)
        state = _epoch(state, x, y, order, learning_rates, decays, fields, mesh)
    return jax.tree.map(np.asarray, state)


def begin(d: int, classes: int, g: int, fields: tuple[str, float, bool], seed: int) -> State:
    """The state before the first step: every candidate starts from the same weights.

    Args:
      d: width of the features.
      classes: number of classes.
      g: candidates.
      fields: optimizer, momentum, batch_norm of the recipe.
      seed: of the weights.
    """
    weight = 0.01 * jax.random.normal(jax.random.key(seed), (d, classes), jnp.float32)
    params = linear.Params(
        jnp.broadcast_to(weight, (g, d, classes)), jnp.zeros((g, classes), jnp.float32)
    )
    momentum = jax.vmap(lambda p: _rule(fields, 0.0, 0.0).init(p))(params)
    return State(params, momentum, jnp.zeros(d), jnp.ones(d))


@functools.partial(jax.jit, static_argnames=("fields", "mesh"), donate_argnums=0)
def _epoch(state, x, y, order, learning_rates, decays, fields, mesh):
    """Steps over the rows `order` [steps, b], with learning_rates [steps, g] and decays [g].

    x is split over the devices of the mesh; everything else is whole on each of them.
    """

    def loss_of(params, rows, labels):
        cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
            linear.logits(params, rows), labels
        )
        return jnp.mean(cross_entropy)

    def candidate(params, momentum, learning_rate, decay, rows, labels):
        grad = jax.grad(loss_of)(params, rows, labels)
        updates, momentum = _rule(fields, learning_rate, decay).update(grad, momentum, params)
        return optax.apply_updates(params, updates), momentum

    def steps(x, whole):
        state, y, order, learning_rates, decays = whole

        def step(state, now):
            picked, learning_rate = now
            rows, labels = collectives.take(x, picked, layout.AXIS), y[picked]  # [b, d], [b]
            mean, variance = state.mean, state.variance
            if fields[2]:
                rows, mean, variance = normalise_batch(rows, mean, variance)
            params, momentum = jax.vmap(candidate, in_axes=(0, 0, 0, 0, None, None))(
                state.params, state.momentum, learning_rate, decays, rows, labels
            )
            return State(params, momentum, mean, variance), None

        return lax.scan(step, state, (order, learning_rates))[0]

    return mapping.map_split(steps, mesh)(x, (state, y, order, learning_rates, decays))


def normalise_batch(
    x: jax.Array, mean: jax.Array, variance: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """torch.nn.BatchNorm1d(affine=False, eps=1e-6) in training, momentum 0.1.

    Args:
      x: float32 [b, d].
      mean, variance: float32 [d], the running ones.

    Returns:
      (x − batch mean) / √(batch variance + 1e-6) and the new running mean and variance. As in
      PyTorch, the running variance takes the unbiased variance of the batch.
    """
    b = len(x)
    now = jnp.mean(x, 0)
    spread = jnp.mean(jnp.square(x - now), 0)
    unbiased = spread * b / max(b - 1, 1)
    return (
        (x - now) * lax.rsqrt(spread + 1e-6),
        0.9 * mean + 0.1 * now,
        0.9 * variance + 0.1 * unbiased,
    )


def scores_of(state: State, g: int, recipe: Mapping[str, Any], x: np.ndarray) -> jax.Array:
    """Logits of candidate g, float32 [m, classes], of features [m, d]."""
    x = jnp.array(x, jnp.float32)  # a copy, to be overwritten
    if recipe["batch_norm"]:
        x = _normalised(x, state.mean, state.variance)
    return linear.logits(jax.tree.map(lambda p: p[g], state.params), x)


@functools.partial(jax.jit, donate_argnums=0)
def _normalised(x, mean, variance):
    return (x - mean) * lax.rsqrt(variance + 1e-6)


def measure(
    state: State, recipe: Mapping[str, Any], plain: apart.Apart, held: np.ndarray
) -> list[tuple[float, float | None]]:
    """What every candidate is worth on the rows held out, each process scoring its own.

    Args:
      state: on the host.
      recipe: all FIELDS.
      plain: the features of all rows.
      held: bool [n], True somewhere.

    Returns:
      (top-1, mean cross-entropy in nats) of each; (0, None) where it diverged.
    """
    past = plain.first + len(plain.own)
    mine, y = held[plain.first : past], plain.labels[plain.first : past]
    x, y = jnp.array(plain.own[mine], jnp.float32), y[mine]  # of this process
    if recipe["batch_norm"]:
        x = _normalised(x, state.mean, state.variance)
    found = []
    for g in range(len(state.params.bias)):
        params = jax.tree.map(lambda p, g=g: p[g], state.params)
        found.append([float(total) for total in linear.sums(params, x, y, np.ones(len(y), bool))])
    totals = talk.from_each(np.asarray(found, np.float64), plain.mesh).sum(0)  # [g, 3]
    count = int(held.sum())
    return [
        (0.0, None) if broken else (right / count, cross_entropy / count)
        for right, cross_entropy, broken in totals.tolist()
    ]


def complete(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with every field, checked.

    Raises:
      UserError: an unknown field, or a value that cannot be.
    """
    given = dict(recipe.items())
    for field in given:
        if field not in FIELDS:
            raise UserError(f"config.sgd has no field {field}.{near_misses(field, FIELDS)}")
    fields = {**FIELDS, **given}
    if fields["optimizer"] not in OPTIMIZERS:
        raise UserError(
            f"--config.sgd.optimizer is {fields['optimizer']!r}."
            f"{near_misses(fields['optimizer'], OPTIMIZERS)}"
        )
    for field in ("learning_rates", "weight_decays"):
        values = fields[field]
        values = tuple(values) if isinstance(values, tuple | list) else (values,)
        least = "above 0" if field == "learning_rates" else "0 or more"
        if not values or not all(v > 0 or (v == 0 and field == "weight_decays") for v in values):
            raise UserError(f"--config.sgd.{field} is {values}; it takes numbers, {least}")
        fields[field] = values
    for field in ("batch", "epochs"):
        if fields[field] < 1:
            raise UserError(f"--config.sgd.{field} is {fields[field]}; it must be at least 1")
    if not 0 <= fields["momentum"] < 1:
        raise UserError(
            f"--config.sgd.momentum is {fields['momentum']}; it must be from 0 to below 1"
        )
    if fields["batch_norm"] and fields["batch"] < 2:
        raise UserError("--config.sgd.batch is 1; BatchNorm needs at least 2 rows")
    schedules.check({**schedules.FIELDS, **_schedule_fields(fields)}, "config.sgd")
    if fields.get("warmup_epochs", 0) >= fields["epochs"]:
        raise UserError(
            f"--config.sgd.warmup_epochs={fields['warmup_epochs']:g} is as long as the training or "
            f"longer, --config.sgd.epochs={fields['epochs']}"
        )
    return fields


def remarks(fields: Mapping[str, Any]) -> list[str]:
    """What is odd about a complete recipe and may be meant, a line each."""
    late = [m for m in fields.get("milestones", ()) if m >= fields["epochs"]]
    if fields.get("schedule") != "step" or not late:
        return []
    return [
        f"the learning rate never drops at epoch {', '.join(f'{m:g}' for m in late)} "
        f"(--config.sgd.milestones): there are {fields['epochs']}"
    ]


def _schedule_fields(fields):
    return {k: v for k, v in fields.items() if k in schedules.FIELDS}


def _rule(fields, learning_rate, decay):
    """One step of the optimizer, for one candidate.

    The LARS of MAE (util/lars.py) adapts weights alone; apex's LARC (SimSiam) the bias as well.
    """
    name, momentum, _ = fields
    spared = ("^bias$",)
    return rules.descent(
        {
            "name": name,
            "momentum": momentum,
            "nesterov": False,
            "eps": 1e-8,
            "trust_coefficient": 1e-3,
            "decay_exclude": spared,
            "trust_exclude": () if name == "larc" else spared,
        },
        learning_rate,
        decay,
    )


def _diverged(learning_rates):
    rates = ", ".join(f"{lr:g}" for lr in learning_rates)
    return (
        f"linear: training diverged with learning rate {rates}; add lower ones to "
        "--config.sgd.learning_rates, or set --config.sgd.batch_norm=True"
    )
