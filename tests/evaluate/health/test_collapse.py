import numpy as np
import pytest

from ssl_jax.evaluate.health import collapse


def gaussian(n=256, d=16, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def rankme(x):
    """Equations 1 and 2 of RankMe in float64."""
    sigma = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    p = sigma / sigma.sum() + 1e-7
    return np.exp(-np.sum(p * np.log(p)))


def graded(n, d, seed=0):
    """Spectrum k^-2 and a mean far from the origin: condition number about d²."""
    r = np.random.default_rng(seed)
    rotation = np.linalg.qr(r.normal(size=(d, d)))[0]
    return ((r.normal(size=(n, d)) * np.arange(1, d + 1.0) ** -2) @ rotation + 1).astype(np.float32)


def verdict(x):
    m = collapse.measure(x)
    ratio, rank = float(m["feature_std_ratio"]), float(m["effective_rank"])
    return collapse.alarm(ratio, rank, x.shape[1])


def test_std_by_hand():
    # Normalised rows: (1, 0), (0, 1). Per dimension the biased std is 1/2.
    m = collapse.measure(np.array([[3.0, 0.0], [0.0, 0.5]], np.float32))
    np.testing.assert_allclose(m["feature_std"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(m["feature_std_ratio"], np.sqrt(0.5), rtol=1e-6)


def test_rank_by_hand():
    # σ = 3, 1: p = 3/4, 1/4; exp(H) = 4 / 3^(3/4).
    m = collapse.measure(np.array([[3.0, 0.0], [0.0, 1.0], [0.0, 0.0]], np.float32))
    np.testing.assert_allclose(m["singular_values"], [3, 1], rtol=1e-6)
    np.testing.assert_allclose(m["effective_rank"], 4 / 3**0.75, rtol=1e-5)


def test_isotropic_features():
    x = gaussian(n=4096)
    m = collapse.measure(x)
    np.testing.assert_allclose(m["feature_std"], 1 / 4, rtol=0.01)
    np.testing.assert_allclose(m["feature_std_ratio"], 1, rtol=0.01)
    np.testing.assert_allclose(m["effective_rank"], 16, rtol=0.01)
    assert verdict(x) is None


@pytest.mark.parametrize("n, d", [(256, 16), (40, 100), (300, 128)])
@pytest.mark.parametrize("make", [gaussian, graded])
def test_singular_values_equal_float64(make, n, d):
    # `graded` fails where singular values are the square roots of a float32 Gram matrix's
    # eigenvalues; n < d takes the transpose.
    x = make(n, d)
    m = collapse.measure(x)
    sigma = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    assert m["singular_values"].shape == (min(n, d),)
    np.testing.assert_allclose(m["singular_values"], sigma, rtol=1e-4, atol=1e-6 * sigma[0])
    np.testing.assert_allclose(m["effective_rank"], rankme(x), rtol=1e-3)


def test_one_vector_for_all_is_complete_collapse():
    x = np.ones((256, 64), np.float32) + 0.01 * gaussian(256, 64)
    m = collapse.measure(x)
    assert m["feature_std_ratio"] < 0.02
    assert "complete collapse" in verdict(x)
    assert "complete collapse" in verdict(np.ones((256, 64), np.float32))


def test_few_directions_are_dimensional_collapse():
    line = gaussian(256, 1) @ gaussian(1, 64)
    assert collapse.measure(line)["feature_std_ratio"] > 0.5  # the std alone sees nothing
    np.testing.assert_allclose(collapse.measure(line)["effective_rank"], 1, atol=0.01)
    assert "dimensional collapse: the features use about 1.0 of 64" in verdict(line)


def test_healthy_features_raise_no_alarm():
    relu = np.maximum(gaussian(512, 128), 0)
    offset = gaussian(512, 128) + 3
    ten_directions = gaussian(512, 10) @ gaussian(10, 128)
    narrow = gaussian(512, 4)  # an effective rank of 4 is all that four dimensions can have
    for x in (relu, offset, ten_directions, narrow):
        assert verdict(x) is None


def test_zeros_are_complete_collapse_and_finite():
    m = collapse.measure(np.zeros((8, 4), np.float32))
    assert float(m["feature_std"]) == 0
    np.testing.assert_allclose(m["effective_rank"], 1, rtol=1e-4)
    assert "complete" in verdict(np.zeros((8, 4), np.float32))


def test_scale_and_rotation_do_not_matter():
    x = graded(200, 12)
    rotation = np.linalg.qr(gaussian(12, 12, seed=1))[0]
    plain, moved = collapse.measure(x), collapse.measure(1000 * x @ rotation)
    np.testing.assert_allclose(plain["effective_rank"], moved["effective_rank"], rtol=1e-3)


def test_alarm_says_when_values_are_not_finite():
    assert "diverged" in collapse.alarm(float("nan"), 5.0, 16)
    assert "diverged" in collapse.alarm(0.5, float("inf"), 16)


@pytest.mark.parametrize("d, expected", [(8, 2), (16, 4), (128, 4), (512, 5.12), (2048, 20.48)])
def test_rank_threshold(d, expected):
    assert collapse.rank_threshold(d) == pytest.approx(expected)


def test_collapsed_embeddings_raise_an_alarm():
    assert collapse.embedding_alarm(0.9, 4.0) is None
    assert "complete collapse of the embeddings" in collapse.embedding_alarm(0.05, 4.0)
    assert "diverged" in collapse.embedding_alarm(float("nan"), 4.0)
    assert "they vary along 1.12 directions" in collapse.embedding_alarm(0.9, 1.12)
