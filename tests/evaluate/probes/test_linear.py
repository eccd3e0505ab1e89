import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.evaluate.probes import linear


def blobs(n=400, d=12, classes=4, spread=1.2, seed=0):
    """Gaussian classes that overlap, on columns of very different scales."""
    r = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(classes, d))
    y = r.integers(0, classes, n)
    x = centres[y] + spread * r.normal(size=(n, d))
    return (x * np.logspace(-2, 2, d) + 5).astype(np.float32), y


def standardised(x):
    mean, scale = linear.standardisation(x)
    return (x - mean) * scale


def zeros(d, classes):
    return linear.Params(jnp.zeros((d, classes)), jnp.zeros(classes))


def test_objective_by_hand():
    # Two rows, logits (1, 0) and (0, 0): CE = log(1 + e^-1) and log 2; the second weighs half.
    params = linear.Params(jnp.array([[1.0, 0.0]]), jnp.zeros(2))
    value = linear.objective(
        params, jnp.array([[1.0], [0.0]]), jnp.array([0, 1]), jnp.array([1.0, 0.5]), 2.0
    )
    expected = (np.log1p(np.exp(-1)) + 0.5 * np.log(2) + 1 / 4) / 1.5
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_bias_is_not_penalised():
    # Features that say nothing: whatever C, the bias is the logarithm of the class shares.
    y = np.repeat([0, 1, 2, 3], [200, 100, 60, 40])
    fit = linear.fit(jnp.zeros((400, 12)), y, jnp.ones(400), 1e-3, zeros(12, 4))
    bias = fit.params.bias - fit.params.bias[0]
    np.testing.assert_allclose(bias, np.log([1, 0.5, 0.3, 0.2]), atol=0.01)


@pytest.mark.parametrize("c", [1e-4, 1e-2, 1.0, 100.0])
def test_reaches_the_optimum_of_scikit_learn(c):
    from sklearn.linear_model import LogisticRegression

    x, y = blobs()
    x_new, y_new = blobs(seed=1)
    mean, scale = linear.standardisation(x)
    x, x_new = (x - mean) * scale, (x_new - mean) * scale
    reference = LogisticRegression(C=c, tol=1e-9, max_iter=10_000).fit(x.astype(np.float64), y)
    one = jnp.ones(len(x))
    theirs = linear.Params(
        jnp.asarray(reference.coef_.T, jnp.float32), jnp.asarray(reference.intercept_, jnp.float32)
    )
    fit = linear.fit(x, y, one, c, zeros(12, 4))
    best = float(linear.objective(theirs, x, y, one, c))
    assert float(fit.value) <= best * (1 + 1e-4)
    assert float(fit.value) >= best * (1 - 1e-5)
    assert int(fit.steps) < 500
    ours = np.argmax(x_new @ fit.params.weight + fit.params.bias, axis=1)
    # 0.2 points of 400 rows: not one prediction may differ in its outcome.
    assert abs(np.mean(ours == y_new) - reference.score(x_new, y_new)) <= 0.002


def test_gap_bounds_the_distance_to_the_optimum():
    x, y = blobs()
    x, one = standardised(x), jnp.ones(400)
    best = float(linear.fit(x, y, one, 1.0, zeros(12, 4), tolerance=1e-7).value)
    for tolerance in (1e-1, 1e-2, 1e-3):
        rough = linear.fit(x, y, one, 1.0, zeros(12, 4), tolerance=tolerance)
        assert float(rough.gap) <= tolerance
        assert float(rough.value) / best - 1 <= float(rough.gap) + 1e-6


def test_rows_of_weight_zero_do_not_matter():
    x, y = blobs()
    x = standardised(x)
    out = np.arange(400) % 3 == 0
    weights = (~out).astype(np.float32)
    plain = linear.fit(x, y, weights, 0.1, zeros(12, 4))
    junk = linear.fit(
        np.where(out[:, None], 1e3, x), np.where(out, -1, y), weights, 0.1, zeros(12, 4)
    )
    np.testing.assert_allclose(junk.value, plain.value, rtol=1e-6)
    np.testing.assert_allclose(junk.params.weight, plain.params.weight, atol=1e-3)


def test_warm_start_saves_steps():
    x, y = blobs()
    x, one = standardised(x), jnp.ones(400)
    cold = linear.fit(x, y, one, 0.3, zeros(12, 4))
    near = linear.fit(x, y, one, 0.1, zeros(12, 4))
    warm = linear.fit(x, y, one, 0.3, near.params)
    assert int(warm.steps) < int(cold.steps)
    np.testing.assert_allclose(warm.value, cold.value, rtol=1e-4)


def test_probe_chooses_on_the_holdout_and_measures_on_test():
    x, y = blobs()
    x_new, y_new = blobs(seed=1)
    result = linear.probe(x, y, x_new, y_new, 4)
    assert set(result) == {
        *("top1", "top5", "mean_per_class", "C", "curve", "gap", "steps", "classifier")
    }
    tried = [row["C"] for row in result["curve"]]
    assert tried == sorted(tried) and set(linear.GRID) <= set(tried)
    best = max(result["curve"], key=lambda row: (row["top1"], -row["cross_entropy"]))
    assert result["C"] == best["C"]
    assert 0.7 < result["top1"] < 1 and result["top5"] is None
    assert result["gap"] < 1e-4
    fitted = result["classifier"]  # of features as they are
    scores = x_new @ fitted["weight"] + fitted["bias"]
    assert np.mean(scores.argmax(1) == y_new) == result["top1"]

    # The test split has no say in the choice: labels turned upside down give the same C.
    other = linear.probe(x, y, x_new, (y_new + 1) % 4, 4)
    assert other["C"] == result["C"] and other["curve"] == result["curve"]
    assert other["top1"] < 0.2

    # Scaling and shifting columns changes nothing: features are standardised.
    moved = linear.probe(3 * x - 7, y, 3 * x_new - 7, y_new, 4, grid=(result["C"],))
    assert abs(moved["top1"] - result["top1"]) < 0.01


def test_probe_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    x, y = blobs()
    x_new, y_new = blobs(seed=1)
    result = linear.probe(x, y, x_new, y_new, 4)
    mean, scale = linear.standardisation(x)
    reference = LogisticRegression(C=result["C"], tol=1e-9, max_iter=10_000)
    reference.fit((x - mean) * scale, y)
    assert abs(result["top1"] - reference.score((x_new - mean) * scale, y_new)) <= 0.002


def test_probe_at_a_given_c_is_scikit_learns_fit():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    x, y = blobs()
    x_new, y_new = blobs(seed=1)
    y[:10] = -1  # not learned from
    x_new, y_new = x_new[(y_new != 3) | (x_new[:, 0] > 5)], y_new[(y_new != 3) | (x_new[:, 0] > 5)]
    result = linear.probe_at(x, y, x_new, y_new, 4, 0.3)
    mean, scale = linear.standardisation(x[10:])
    reference = LogisticRegression(C=0.3, tol=1e-9, max_iter=10_000)
    reference.fit((x[10:] - mean) * scale, y[10:])
    guess = reference.predict((x_new - mean) * scale)
    assert abs(result["top1"] - np.mean(guess == y_new)) <= 0.003  # one row
    assert abs(result["mean_per_class"] - balanced_accuracy_score(y_new, guess)) <= 0.005
    assert abs(result["mean_per_class"] - result["top1"]) > 1e-4  # the classes differ in size
    assert result["C"] == 0.3 and result["gap"] < 1e-4
    with pytest.raises(UserError, match="C must be positive"):
        linear.probe_at(x, y, x_new, y_new, 4, 0.0)


def test_mean_per_class_by_hand():
    scores = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]], float)
    labels = np.array([0, 0, 0, 1, -1])  # class 0: two of three; class 1: none; class 2: no row
    assert linear.mean_per_class(scores, labels) == pytest.approx((2 / 3 + 0) / 2)


@pytest.mark.parametrize("grid, grown", [((1e-7, 1e-6), max), ((1e5, 1e6), min)])
def test_grid_grows_while_the_best_is_at_its_edge(grid, grown):
    x, y = blobs()
    curve = linear.probe(x, y, x, y, 4, grid=grid)["curve"]
    tried = [row["C"] for row in curve]
    assert len(tried) > 2 and set(grid) <= set(tried)
    factor = 10 if grown is max else 0.1
    assert grown(tried) == pytest.approx(grown(grid) * factor ** (len(tried) - 2))
    best = max(curve, key=lambda row: (row["top1"], -row["cross_entropy"]))["C"]
    assert best != grown(tried)  # or the grid would have grown on


def test_rows_without_a_label_and_constant_columns_do_not_matter():
    x, y = blobs()
    x_new, y_new = blobs(seed=1)
    y[:50] = -1
    x[:, 3] = x_new[:, 3] = 0.1
    plain = linear.probe(x, y, x_new, y_new, 4, grid=(0.01, 0.1, 1.0))
    x[:50] = 1e3
    x_new[:, 3] = 7
    junk = linear.probe(x, y, x_new, y_new, 4, grid=(0.01, 0.1, 1.0))
    del plain["classifier"], junk["classifier"]  # the constant column has another weight
    assert junk == plain


def test_standardisation():
    x, _ = blobs()
    x = np.hstack([x, np.full((400, 1), 0.1, np.float32)])
    z = standardised(x)
    np.testing.assert_allclose(z.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(0)[:-1], 1, atol=1e-5)
    np.testing.assert_array_equal(z[:, -1], 0)


def test_stratified_holdout():
    labels = np.repeat([0, 1, 2, 3, -1], [50, 10, 2, 1, 20])
    held = linear.stratified_holdout(labels, 0.2, 0)
    counts = [int(held[labels == name].sum()) for name in (0, 1, 2, 3, -1)]
    assert counts == [10, 2, 1, 0, 0]
    np.testing.assert_array_equal(held, linear.stratified_holdout(labels, 0.2, 0))
    assert (held != linear.stratified_holdout(labels, 0.2, 1)).any()


def test_user_errors():
    x, y = blobs(20)
    broken = np.full_like(x, np.inf)
    with pytest.raises(UserError, match="no training row has a label"):
        linear.probe(x, np.full(20, -1), x, y, 4)
    with pytest.raises(UserError, match="outside the 2 classes"):
        linear.probe(x, y, x, y, 2)
    with pytest.raises(UserError, match="at least two labelled"):
        linear.probe(x[:4], np.arange(4), x, y, 4)
    with pytest.raises(UserError, match="positive numbers"):
        linear.probe(x, y, x, y, 4, grid=(0.0, 1.0))
    with pytest.raises(UserError, match="hold-out share"):
        linear.probe(x, y, x, y, 4, holdout=1.0)
    with pytest.raises(UserError, match="test features are not all finite"):
        linear.probe(x, y, broken, y, 4)
