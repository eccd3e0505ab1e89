"""Linear probe: multinomial logistic regression on cached features, by L-BFGS in JAX.

The objective is scikit-learn's LogisticRegression (penalty l2, intercept unpenalised), whose only
hyperparameter C is chosen on a hold-out of the training split. The test split is read once, at
the end. L-BFGS is `optax.lbfgs` with the zoom line search of Nocedal and Wright, Numerical
Optimization (2006), chapters 3 and 7, run to convergence inside one compiled while_loop: C is
traced and the hold-out is a weight of 0, so a whole grid and the final fit compile once.

The rows may be split over devices and processes (`apart.Apart`): every sum over rows, and with it
the gradient, is then summed over the devices, which the compiler sees to; no features travel.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import apart
from ssl_jax.evaluate.probes import accuracy

GRID = tuple(10.0**power for power in range(-4, 3))
RANGE = (1e-8, 1e6)  # beyond, the grid is not extended


class Params(NamedTuple):
    """The classifier: logits = x @ weight + bias.

    Attributes:
      weight: float32 [d, classes].
      bias: float32 [classes].
    """

    weight: jax.Array
    bias: jax.Array


class Fit(NamedTuple):
    """What `fit` ends with.

    Attributes:
      params: the classifier.
      value: float32 [], the objective there.
      gap: float32 [], bound on (value − optimum) / value, see `fit`.
      steps: int32 [], L-BFGS iterations taken.
    """

    params: Params
    value: jax.Array
    gap: jax.Array
    steps: jax.Array


def probe(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    grid: tuple[float, ...] = GRID,
    holdout: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """Accuracy of logistic regression on standardised features, its C chosen on a hold-out.

    Features are standardised with the mean and deviation of `train`. C is the member of `grid`
    with the best top-1 on a stratified hold-out of `train` (of equals, the lower cross-entropy);
    while the best is at an edge, the grid grows there by a factor of 10, within [1e-8, 1e6]. The
    classifier is then fitted on all of `train` and measured on `test`.

    Args:
      train: float [n, d] features, held in memory of one device; `probe_apart` splits them.
      train_labels: int [n] in [0, classes); rows with label -1 are left out.
      test: float [m, d] features.
      test_labels: int [m]; rows with label -1 are not counted.
      classes: number of classes.
      grid: values of C to try, > 0.
      holdout: share of every class that is held out to choose C, in (0, 1).
      seed: of the hold-out.

    Returns:
      {'top1', 'top5', 'mean_per_class': fractions in [0, 1], 'top5' None of five classes or
      fewer; 'C': the chosen one; 'curve': a list
      of {'C', 'top1', 'cross_entropy'} on the hold-out (nats), ascending in C; 'gap': bound on the
      relative distance of the final fit to its optimum; 'steps': its L-BFGS iterations;
      'classifier': what was fitted, see `folded`}.

    Raises:
      UserError: empty grid or C not positive, no labelled rows, no class of two rows to hold one
        out, label outside the classes, features that are not finite.
    """
    train = apart.alone(train, train_labels)
    return probe_apart(train, test, test_labels, classes, grid, holdout, seed)


def probe_apart(
    train: apart.Apart,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    grid: tuple[float, ...] = GRID,
    holdout: float = 0.2,
    seed: int = 0,
) -> dict[str, Any]:
    """`probe` on rows that no process has whole; all processes call it.

    Args:
      train: n rows with labels in [0, classes); those with label -1 are left out.
      test, test_labels: as for `probe`, the same on every process.
      classes, grid, holdout, seed: as for `probe`.

    Returns and raises, on every process, what `probe` does.
    """
    if not grid or min(grid) <= 0:
        raise UserError(f"linear: the grid of C must hold positive numbers, got {grid}")
    check(train, test, classes)
    y = train.labels
    held = stratified_holdout(y, holdout, seed)
    placed = _placed(train)
    inner = _weights(train, (y >= 0) & ~held)
    out = apart.split(held, train, train.mesh)

    tried: dict[float, tuple[float, float, Params]] = {}
    # The best constant classifier, where a small C ends: only the weight is left to be found.
    prior = np.bincount(y[(y >= 0) & ~held], minlength=classes) + 0.5
    params = _start(train, np.log(prior / prior.sum()))
    todo = sorted(grid)
    while todo:
        for c in todo:
            if tried:  # warm start from the solution of the nearest C so far
                near = min(tried, key=lambda other: abs(np.log(other / c)))
                params = tried[near][2]
            params = fit(placed.x, placed.y, inner, c, params, tolerance=1e-3).params
            right, cross_entropy, _ = sums(params, placed.x, placed.y, out)
            count = int(held.sum())
            tried[c] = (int(right) / count, float(cross_entropy) / count, params)
        best = max(tried, key=lambda c: (tried[c][0], -tried[c][1]))
        todo = []
        if best == min(tried) and best > RANGE[0] * 2:
            todo = [best / 10]
        elif best == max(tried) and best < RANGE[1] / 2:
            todo = [best * 10]

    return {
        **_finished(train, placed, test, test_labels, best, tried[best][2]),
        "curve": [
            {"C": float(c), "top1": tried[c][0], "cross_entropy": tried[c][1]}
            for c in sorted(tried)
        ],
    }


def probe_at(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    test_labels: np.ndarray,
    classes: int,
    c: float,
) -> dict[str, Any]:
    """Accuracy of logistic regression on standardised features at a given C.

    For training sets too small to hold anything out of.

    Args:
      train, train_labels, test, test_labels, classes: as for `probe`.
      c: inverse strength of the penalty, > 0.

    Returns:
      as `probe`, without a curve.

    Raises:
      UserError: C not positive, no labelled rows, label outside the classes, features that are
        not finite.
    """
    if not c > 0:
        raise UserError(f"linear: C must be positive, got {c}")
    train = apart.alone(train, train_labels)
    check(train, test, classes)
    start = _start(train, np.zeros(classes))
    return _finished(train, _placed(train), test, test_labels, c, start)


def mean_per_class(scores: np.ndarray, labels: np.ndarray) -> float:
    """Mean over the classes of the share of a class's rows whose highest score is their label.

    What transfer tables report where classes differ in size (Caltech-101, Pets, Flowers, Aircraft;
    Kornblith et al. 2019, table 1).

    Args:
      scores: float [m, classes].
      labels: int [m]; rows with label -1 and classes without a row are not counted.

    Returns:
      fraction in [0, 1].
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    names = np.unique(labels[labels >= 0])
    rates = [accuracy.top(scores[labels == c], labels[labels == c], 1) for c in names]
    return float(np.mean(rates))


def objective(params: Params, x: jax.Array, y: jax.Array, weights: jax.Array, c: jax.Array):
    """(Σ_i w_i CE_i + ‖weight‖² / (2C)) / Σ_i w_i: scikit-learn's objective divided by n·C.

    Args:
      params: the classifier.
      x: float32 [n, d].
      y: int32 [n]; the value where weights = 0 does not matter.
      weights: float32 [n].
      c: float32 [], inverse strength of the penalty, which spares the bias.

    Returns:
      float32 [], nats.
    """
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
        logits(params, x), jnp.maximum(y, 0)
    )
    n = jnp.sum(weights)
    return (jnp.sum(weights * cross_entropy) + jnp.sum(params.weight**2) / (2 * c)) / n


@functools.partial(jax.jit, static_argnames="max_steps")
def fit(
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array,
    c: jax.Array | float,
    start: Params,
    tolerance: float = 1e-7,
    max_steps: int = 500,
) -> Fit:
    """Minimises `objective` from `start`.

    Ends when the bound on the relative distance to the optimum is below `tolerance`, or when
    three iterations in a row gain less than 1e-6 of the value (float32 has no more to give), or
    after `max_steps`. The bound: the objective is 1/(nC)-strongly convex in the weight, so its
    part of the excess is at most nC/2 · ‖∂weight‖²; the unpenalised bias, whose curvature is that
    of the cross-entropy alone, is covered by the heuristic ‖∂bias‖² / min(value, 0.1).

    Args:
      x, y, weights, c: as for `objective`. Traced: one compilation serves every c and hold-out.
      start: where to begin; a neighbouring solution saves most iterations.
      tolerance: relative excess over the optimum that is good enough. At a small C the weight
        moves the objective little and predictions much, so a last fit wants far less than 1e-4.
      max_steps: L-BFGS iterations at most.

    Returns:
      Fit.
    """
    n = jnp.sum(weights)

    def value_of(params):
        return objective(params, x, y, weights, c)

    # First try step 1, where a quasi-Newton direction is scaled right: half the evaluations of
    # starting from the last step length, scale_by_zoom_linesearch's own default.
    search = optax.scale_by_zoom_linesearch(max_linesearch_steps=20, initial_guess_strategy="one")
    optimizer = optax.lbfgs(memory_size=10, linesearch=search)
    value_and_grad = optax.value_and_grad_from_state(value_of)

    def unfinished(carry):
        _, _, _, gap, stalled, step = carry
        return (gap > tolerance) & (stalled < 3) & (step < max_steps)

    def iterate(carry):
        params, state, _, _, stalled, step = carry
        value, grad = value_and_grad(params, state=state)
        updates, state = optimizer.update(
            grad, state, params, value=value, grad=grad, value_fn=value_of
        )
        params = optax.apply_updates(params, updates)
        # The line search has already evaluated the new point and left both in its state.
        grad, new = optax.tree.get(state, "grad"), optax.tree.get(state, "value")
        excess = n * c / 2 * jnp.sum(grad.weight**2) + jnp.sum(grad.bias**2) / jnp.minimum(new, 0.1)
        stalled = jnp.where(new < value * (1 - 1e-6), 0, stalled + 1)
        return params, state, new, excess / new, stalled, step + 1

    carry = (start, optimizer.init(start), jnp.inf, jnp.inf, 0, 0)
    params, _, value, gap, _, steps = lax.while_loop(unfinished, iterate, carry)
    return Fit(params, value, gap, steps)


def standardisation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and reciprocal deviation of every column; apply as (x − mean) · scale.

    Args:
      x: float [n, d].

    Returns:
      float32 [d] twice. The scale of a column that is constant (to float32's precision, 1e-6 of
      its mean) is 0: such a column is silenced instead of having its rounding noise blown up.
    """
    return _standardisation(apart.alone(x, np.zeros(len(x))))


def _standardisation(a: apart.Apart) -> tuple[np.ndarray, np.ndarray]:
    """`standardisation` over the rows with a label, of all processes."""
    known = a.labels >= 0
    mean = apart.means(a, known, lambda block: block)
    deviation = np.sqrt(apart.means(a, known, lambda block: np.square(block - mean)))
    alive = deviation > 1e-6 * np.abs(mean) + 1e-30
    scale = np.where(alive, 1 / np.where(alive, deviation, 1), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def check_choice(grid: Sequence[float], holdout: float) -> None:
    """Checks what the strength of the penalty is chosen from, and on how much.

    Raises:
      UserError: a strength that is not above 0, none at all, or a share outside (0, 1).
    """
    if not grid or not all(isinstance(c, int | float) and 0 < c < np.inf for c in grid):
        raise UserError(f"--config.grid is {tuple(grid)}; it takes numbers above 0")
    if not 0 < holdout < 1:
        raise UserError(f"--config.holdout is {holdout}; it must be above 0, below 1")


def stratified_holdout(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Marks `share` of the rows of every class, rounded, but at least one and never all.

    Args:
      labels: int [n]; rows with label -1 and classes of a single row are never held out.
      share: in (0, 1).
      seed: the choice is a pure function of (labels, share, seed).

    Returns:
      bool [n], True where held out.

    Raises:
      UserError: share outside (0, 1), or nothing to hold out.
    """
    if not 0 < share < 1:
        raise UserError(f"linear: the hold-out share must lie in (0, 1), got {share}")
    held = np.zeros(len(labels), bool)
    generator = np.random.Generator(np.random.Philox(seed))
    for name in np.unique(labels[labels >= 0]):
        rows = generator.permutation(np.flatnonzero(labels == name))
        count = max(1, round(share * len(rows))) if len(rows) > 1 else 0
        held[rows[: min(count, len(rows) - 1)]] = True
    if not held.any():
        raise UserError(
            "linear: a hold-out to choose on needs a class with at least two labelled training "
            "images"
        )
    return held


@jax.jit
def logits(params: Params, x: jax.Array) -> jax.Array:
    """x @ weight + bias: float32 [n, d] -> [n, classes]."""
    # [n, d] × [d, classes] -> [n, classes], full float32 on accelerators too: L-BFGS compares
    # values that differ in the sixth digit.
    return jnp.matmul(x, params.weight, precision=lax.Precision.HIGHEST) + params.bias


@jax.jit
def sums(
    params: Params, x: jax.Array, y: jax.Array, counted: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a classifier is worth on some rows, which may be split over devices.

    Args:
      params: the classifier.
      x: float32 [n, d].
      y: int32 [n]; at least 0 where counted.
      counted: bool [n].

    Returns:
      Over the rows counted: how many are right (int32 [], `accuracy.top` with k = 1), the sum of
      the cross-entropy (float32 [], nats), how many have a score that is not finite (int32 []).
    """
    scores, y = logits(params, x), jnp.maximum(y, 0)  # [n, classes]
    truth = jnp.take_along_axis(scores, y[:, None], axis=1)  # [n, 1]
    # As accuracy.top ranks: of equal scores the lower class first; NaN is wrong.
    before = (scores > truth) | ((scores == truth) & (jnp.arange(scores.shape[1]) < y[:, None]))
    right = ~before.any(1) & ~jnp.isnan(truth[:, 0])
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(scores, y)
    return (
        jnp.sum(right & counted, dtype=jnp.int32),
        jnp.sum(jnp.where(counted, cross_entropy, 0)),
        jnp.sum(~jnp.isfinite(scores).all(1) & counted, dtype=jnp.int32),
    )


class Placed(NamedTuple):
    """Standardised rows on their devices.

    Attributes:
      x: float32 [N, d]; rows without a label are zeros.
      y: int32 [N]; -1 behind the n rows.
      mean, scale: float32 [d].
    """

    x: jax.Array
    y: jax.Array
    mean: np.ndarray
    scale: np.ndarray


def _placed(a):
    mean, scale = _standardisation(a)
    y = apart.split(a.labels, a, a.mesh, fill=-1)
    return Placed(_standardised(apart.place(a, a.mesh), y, mean, scale), y, mean, scale)


@functools.partial(jax.jit, donate_argnums=0)
def _standardised(x, y, mean, scale):
    return jnp.where((y >= 0)[:, None], (x - mean) * scale, 0)


def _weights(a, rows):
    """bool [n] as the weights of `fit`."""
    return apart.split(rows.astype(np.float32), a, a.mesh)


def _start(a, bias):
    weight = np.zeros((a.own.shape[1], len(bias)), np.float32)
    return layout.put_whole(Params(weight, bias.astype(np.float32)), a.mesh)


def _finished(a, placed, test, test_labels, c, start):
    """The last fit, on every row with a label, measured on test."""
    final = fit(placed.x, placed.y, _weights(a, a.labels >= 0), c, start, tolerance=1e-7)
    x = jnp.array(test, jnp.float32)  # [m, d], a copy to be overwritten, on one device
    x = _standardised(x, np.zeros(len(x), np.int32), placed.mean, placed.scale)
    scores = np.asarray(logits(jax.tree.map(np.asarray, final.params), x))
    return {
        "top1": accuracy.top(scores, test_labels, 1),
        "top5": accuracy.top5(scores, test_labels),
        "mean_per_class": mean_per_class(scores, test_labels),
        "C": float(c),
        "gap": float(final.gap),
        "steps": int(final.steps),
        "classifier": folded(final.params, placed.mean, placed.scale),
    }


def folded(params: Params, mean: np.ndarray, scale: np.ndarray) -> dict[str, np.ndarray]:
    """A classifier of features as they are, from one of standardised ones.

        ((x − mean) · scale) @ W + b  =  x @ (scale · W) + (b − (mean · scale) @ W)

    Args:
      params: weight [d, classes] and bias [classes].
      mean, scale: [d].

    Returns:
      {'weight': float32 [d, classes], 'bias': float32 [classes]}: logits are x @ weight + bias.
    """
    weight, bias = (np.asarray(p, np.float64) for p in (params.weight, params.bias))
    mean, scale = (np.asarray(x, np.float64) for x in (mean, scale))
    return {
        "weight": (scale[:, None] * weight).astype(np.float32),
        "bias": (bias - (mean * scale) @ weight).astype(np.float32),
    }


def check(train: apart.Apart, test: np.ndarray, classes: int) -> None:
    """Checks the arguments of `probe_apart`; every process comes to the same.

    Raises:
      ValueError: shapes that do not fit.
      UserError: no labelled row, label outside the classes, features that are not finite.
    """
    own, labels = train.own, train.labels
    if np.ndim(own) != 2 or np.ndim(test) != 2 or own.shape[1] != test.shape[1]:
        raise ValueError(f"linear: train {np.shape(own)}, test {np.shape(test)}: must be [·, d]")
    if not (labels >= 0).any():
        raise UserError("linear: no training row has a label; the probe needs a labelled split")
    if labels.max() >= classes:
        raise UserError(
            f"linear: label {labels.max()} is outside the {classes} classes of the data"
        )
    for name, fine in (("train", apart.all_finite(train)), ("test", apart.finite(test))):
        if not fine:
            raise UserError(f"linear: the {name} features are not all finite; the encoder diverged")
