"""Dense probes: measures by hand and by scikit-learn, heads against its optimum, maps in memory."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import augment, models
from ssl_jax.contract.batch import image
from ssl_jax.contract.source import Source
from ssl_jax.data.sources import scenes
from ssl_jax.devices import layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.evaluate.dense import depth as dense_depth
from ssl_jax.evaluate.dense import maps as dense_maps
from ssl_jax.evaluate.dense import probe, segmentation
from ssl_jax.evaluate.dense import scores as dense_scores
from ssl_jax.methods.parts import image_encoder
from ssl_jax.processes import host

ALONE = host.Cluster(1, 0, 1)


def of(model):
    view = augment.Fixed(8)
    return image_encoder.image_encoder(model, image_encoder.online("encoder"), view)


def held(features, mask, depth):
    """A set of arrays that lie in memory."""
    whole = dense_maps.Batch(*map(np.asarray, (features, mask, depth)))
    source = Source(
        "arrays", len(whole.mask), 0, image(1, 1), None, list, padding=dense_maps.PADDING
    )

    def read(rows):
        rows = np.asarray(rows)
        labels = {"mask": whole.mask[rows], "depth": whole.depth[rows]}
        return {"image": whole.features[rows], "index": rows, **labels}

    encode = mapping.compile_rows(
        lambda _, rows: dense_maps.Batch(rows["image"], rows["mask"], rows["depth"]),
        layout.mesh(),
    )
    rows = np.arange(len(whole.mask))
    return dense_maps.open_set(encode, {}, source._replace(read=read), rows, 8, ALONE, 2**30)


# ---- metrics


def test_segmentation_scores_by_hand():
    #                          predicted: 0  1  2  3
    counts = np.array([[3, 1, 0, 0], [0, 2, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    found = dense_scores.segmentation_scores(counts)
    # IoU: 3 / (4 + 4 − 3), 2 / (2 + 4 − 2), 0 / 2, and class 3 does not occur.
    np.testing.assert_allclose(found["iou"], [3 / 5, 2 / 4, 0, np.nan])
    assert found["miou"] == pytest.approx((3 / 5 + 2 / 4 + 0) / 3)
    assert found["pixel_accuracy"] == pytest.approx(5 / 8)
    with pytest.raises(ValueError, match="no pixel"):
        dense_scores.segmentation_scores(np.zeros((2, 2), int))


def test_segmentation_scores_equal_scikit_learn():
    from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score

    random = np.random.default_rng(0)
    truth, guess = random.integers(0, 6, (2, 3, 500))  # 6 of 8 classes occur
    guess = np.where(random.random(guess.shape) < 0.5, truth, guess)
    matrices = np.asarray(dense_scores.confusion(truth, guess, 8))
    for matrix, t, g in zip(matrices, truth, guess, strict=True):
        np.testing.assert_array_equal(matrix, confusion_matrix(t, g, labels=range(8)))
    found = dense_scores.segmentation_scores(matrices.sum(0))
    t, g = truth.ravel(), guess.ravel()
    assert found["miou"] == pytest.approx(jaccard_score(t, g, average="macro"))
    np.testing.assert_allclose(found["iou"][:6], jaccard_score(t, g, average=None))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(t, g))


def test_pixels_without_a_class_do_not_count():
    found = dense_scores.confusion(np.array([0, -1, 1, 255]), np.array([0, 0, 0, 1]), 2)
    np.testing.assert_array_equal(found, [[1, 0], [1, 0]])


def test_depth_scores_by_hand():
    truth = np.float32([[1, 2, 4, -1], [10, 1, 0, -1]])
    guess = np.float32([[1, 3, 2, 7], [10.5, 1.25, 5, 7]])
    sums = np.asarray(dense_scores.depth_sums(truth, guess))
    found = dense_scores.depth_scores(sums.sum(0))
    # Of five pixels the errors are 0, 1, 2, 0.5, 0.25; the ratios 1, 1.5, 2, 1.05, 1.25.
    assert found["rmse"] == pytest.approx(math.sqrt((1 + 4 + 0.25 + 0.0625) / 5))
    assert found["abs_rel"] == pytest.approx((1 / 2 + 2 / 4 + 0.5 / 10 + 0.25) / 5)
    # δ counts ratios strictly below; 1.5 lies below 1.25² = 1.5625, 2 above 1.25³ = 1.953125.
    assert [found[f"delta{i}"] for i in (1, 2, 3)] == pytest.approx([2 / 5, 4 / 5, 4 / 5])
    swapped = dense_scores.depth_scores(
        np.asarray(dense_scores.depth_sums(guess[:1, :3], truth[:1, :3])).sum(0)
    )
    assert swapped["delta2"] == pytest.approx(2 / 3), "a ratio counts in both directions"
    with pytest.raises(ValueError, match="no pixel"):
        dense_scores.depth_scores(np.zeros(6))


# ---- upsampling and maps


def test_upsampling_is_bilinear_between_centres():
    np.testing.assert_allclose(probe.bilinear(4, 2) @ np.array([0.0, 1.0]), [0, 0.25, 0.75, 1])
    import cv2

    maps = np.random.default_rng(0).normal(size=(2, 3, 3, 5)).astype(np.float32)
    found = np.asarray(probe.upsample(maps, 8))
    for each, up in zip(maps, found, strict=True):
        np.testing.assert_allclose(up, cv2.resize(each, (8, 8)), atol=1e-5)


def test_maps_of_a_resnet_are_what_its_features_average():
    model = models.make({"name": "resnet", "blocks": (1, 1), "width": 4, "stem": "small"})
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = model.init(jax.random.key(1), x)
    last = dense_maps.feature_map(model, variables, x, 2)
    assert dense_maps.stages(model) == 2 and last.shape == (2, 4, 4, 8)
    assert dense_maps.feature_map(model, variables, x, 1).shape == (2, 8, 8, 4)
    np.testing.assert_allclose(last.mean((1, 2)), model.apply(variables, x), atol=1e-6)


def test_maps_of_a_vit_are_its_patches_in_their_places():
    fields = {"name": "vit", "size": 12, "patch": 4, "width": 8, "depth": 3, "heads": 2}
    model = models.make(fields)
    x = jax.random.normal(jax.random.key(0), (2, 12, 16, 3))
    variables = model.init(jax.random.key(1), x)
    last = dense_maps.feature_map(model, variables, x, 3)
    assert dense_maps.stages(model) == 3 and last.shape == (2, 3, 4, 8)
    tokens = model.apply(variables, x, method=lambda m, x: m.normalise(m.encode(m.embed(x))))
    for row in range(3):
        for column in range(4):
            np.testing.assert_allclose(
                last[:, row, column], tokens[:, 1 + 4 * row + column], atol=1e-5
            )
    first = dense_maps.feature_map(model, variables, x, 1)
    shallow = models.make(fields | {"depth": 1})
    np.testing.assert_allclose(first, dense_maps.feature_map(shallow, variables, x, 1), atol=1e-5)
    with pytest.raises(UserError, match="ResNet or a ViT"):
        dense_maps.stages(jax.tree_util.Partial(print))


def test_pixels_of_a_cell_are_its_patch():
    image = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    rows = {
        "image": image,
        "mask": np.zeros((4, 8, 8), np.int32),
        "depth": np.ones((4, 8, 8), np.float32),
    }
    found = dense_maps.compile_pixels(4, layout.mesh(), 8)({}, rows).features
    assert found.shape == (4, 4, 4, 12)
    patch = image[:, 2:4, 6:8].reshape(4, -1) / 255  # row 1, column 3
    np.testing.assert_allclose(found[:, 1, 3], patch, atol=1e-6)
    assert dense_maps.compile_pixels(3, layout.mesh(), 8)({}, rows).features.shape == (
        4,
        3,
        3,
        27,
    )


@pytest.mark.parametrize(
    "fields, stage, size, message",
    [
        ({"name": "resnet", "blocks": (1, 1)}, 3, 16, "stage is 3; ResNet has 1 to 2"),
        ({"name": "resnet", "blocks": (1, 1)}, 0, 16, "stage is 0"),
        ({"name": "vit", "patch": 4, "size": 12}, None, 18, "multiple of 4"),
    ],
)
def test_stages_and_sizes_that_cannot_be(fields, stage, size, message):
    with pytest.raises(UserError, match=message):
        dense_maps.compile_encoder(of(models.make(fields)), layout.mesh(), stage, size)


def test_maps_kept_in_memory_are_those_encoded_again():
    model = models.make({"name": "resnet", "blocks": (1,), "width": 4, "stem": "small"})
    encode = dense_maps.compile_encoder(of(model), layout.mesh(), None, 8)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    read = dense_maps.labelled("train", 8, 1)
    source = Source("scenes", 50, 0, image(8, 1), read, list, padding=dense_maps.PADDING)
    rows = np.arange(3, 49, 5)  # 10 images of 4·4·4 numbers and 8·8 labels of 5 bytes
    bounds = {"float32": 10 * (256 + 320), "float16": 10 * (128 + 320), "no": 10 * (128 + 320) - 1}
    places = np.array([7, 0, 3, 3, 9, 1])
    found = {}
    for kept, bound in bounds.items():
        data = dense_maps.open_set(encode, variables, source, rows, 4, ALONE, bound)
        assert data.kept == kept and data.examples == 10
        batches = list(data.read(places, 4))
        assert [len(b.mask) for b in batches] == [4, 4]
        assert (batches[1].mask[2:] == -1).all() and (batches[1].depth[2:] == -1).all()
        found[kept] = dense_maps.Batch(*(np.concatenate(x)[:6] for x in zip(*batches, strict=True)))
    labels = scenes.dense_labels("train", rows[places], 8)
    for kept, tolerance in (("float32", 1e-6), ("float16", 2e-3)):
        np.testing.assert_allclose(
            found[kept].features, found["no"].features, rtol=tolerance, atol=tolerance
        )
    for batch in found.values():
        np.testing.assert_array_equal(batch.mask, labels["mask"])
        np.testing.assert_array_equal(batch.depth, labels["depth"])


def test_statistics_standardise():
    random = np.random.default_rng(0)
    features = random.normal(3, 2, (10, 2, 2, 3)).astype(np.float32)
    features[..., 2] = 5  # constant: silenced
    mask = random.integers(-1, 3, (10, 4, 4))
    depth = random.uniform(1, 9, (10, 4, 4)).astype(np.float32)
    found = probe.statistics(held(features, mask, depth), 8, 3)
    x = ((features - found.mean) * found.scale).reshape(-1, 3)
    np.testing.assert_allclose(x.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(x.std(0), [1, 1, 0], atol=1e-5)
    assert found.counts.tolist() == [(mask == c).sum() for c in range(3)]
    assert found.log_depth == pytest.approx(np.log(depth).mean(), rel=1e-5)
    assert (found.nearest, found.farthest) == (depth.min(), depth.max())
    features[3, 0, 0, 0] = np.nan
    with pytest.raises(UserError, match="not all finite"):
        probe.statistics(held(features, mask, depth), 8, 3)


def test_the_holdout_is_a_fifth_and_nothing_is_in_both():
    inner, away = probe.holdout(50, 0)
    assert len(away) == 10 and sorted([*inner, *away]) == list(range(50))
    assert not np.array_equal(away, probe.holdout(50, 1)[1])
    with pytest.raises(UserError, match="two training images"):
        probe.holdout(1, 0)


# ---- heads


@pytest.fixture(scope="module")
def problem():
    """Maps of 3 × 3 cells, labels of 6 × 6 pixels that depend on them, some without a class."""
    random = np.random.default_rng(1)
    features = random.normal(size=(22, 3, 3, 4)).astype(np.float32)
    up = np.asarray(probe.upsample(features, 6))
    scores = up @ random.normal(size=(4, 3)) * 3 + random.gumbel(size=(22, 6, 6, 3))
    mask = np.where(random.random((22, 6, 6)) < 0.1, -1, scores.argmax(-1))
    noise = random.normal(size=up.shape[:3])
    depth = np.exp(up @ [0.5, -0.3, 0.2, 0.0] + 0.7 + 0.1 * noise).astype(np.float32)
    data = held(features, mask, depth)
    return data, probe.statistics(data, 8, 3), up, mask, depth


def cross_entropy(head, facts, data, mask):
    rows = next(data.read(np.arange(data.examples), data.examples))
    logits = probe.outputs(head, rows.features, facts.mean, facts.scale, 6)[:, : len(mask)]
    log_p = np.asarray(jax.nn.log_softmax(logits))
    picked = np.take_along_axis(log_p, np.maximum(mask, 0)[None, ..., None], -1)[..., 0]
    return -picked[:, mask >= 0].mean(1)


def test_the_segmentation_head_ends_at_scikit_learns_optimum(problem):
    from sklearn.linear_model import LogisticRegression

    data, facts, up, mask, _ = problem
    settings = [(0.2, 0.0), (1e-4, 0.0)]
    train = (data, np.arange(22), facts)
    mesh = layout.mesh()
    heads = segmentation.segmentation_heads(*train, settings, 60, 8, 0, mesh, ALONE)
    assert heads.weight.shape == (2, 4, 3)
    best = LogisticRegression(C=1e6, max_iter=1000).fit(up[mask >= 0], mask[mask >= 0])
    log_p = best.predict_log_proba(up[mask >= 0])
    optimum = -log_p[np.arange(len(log_p)), mask[mask >= 0]].mean()
    found = cross_entropy(heads, facts, data, mask)
    assert optimum <= found[0] * 1.0001 and found[0] < 1.005 * optimum
    assert found[1] > 1.02 * optimum, "at a tiny rate it stays at the start"
    # Settings do not touch each other: alone, the second ends where it ended beside the first.
    alone = segmentation.segmentation_heads(*train, settings[1:], 60, 8, 0, mesh, ALONE)
    np.testing.assert_allclose(alone.weight[0], heads.weight[1], rtol=1e-4, atol=1e-7)
    # Its confusion matrix is that of its largest logits.
    matrix = segmentation.confusions(data, np.arange(22), facts, heads, 8, mesh, ALONE)[0]
    assert matrix.sum() == (mask >= 0).sum()
    accuracy = np.trace(matrix) / matrix.sum()
    assert accuracy == pytest.approx(best.score(up[mask >= 0], mask[mask >= 0]), abs=0.02)


def test_weight_decay_shrinks_the_head(problem):
    data, facts, *_ = problem
    settings = [(1e-2, 0.0), (1e-2, 10.0)]
    heads = segmentation.segmentation_heads(
        data, np.arange(22), facts, settings, 30, 8, 0, layout.mesh(), ALONE
    )
    free, decayed = np.linalg.norm(heads.weight, axis=(1, 2))
    assert decayed < 0.5 * free


def test_the_best_setting_of_the_holdout_is_trained_on_all(problem):
    data, facts, *_ = problem
    mesh = layout.mesh()
    head, chosen = segmentation.segment(data, facts, (1e-5, 3e-2), (0.0,), 20, 8, 8, 0, mesh, ALONE)
    assert chosen["learning_rate"] == 3e-2 and len(chosen["curve"]) == 2
    assert chosen["curve"][1]["miou"] > chosen["curve"][0]["miou"]
    again = segmentation.segmentation_heads(
        data, np.arange(22), facts, [(3e-2, 0.0)], 20, 8, 0, mesh, ALONE
    )
    np.testing.assert_array_equal(head.weight, again.weight)
    for rates, decays in (((), (0.0,)), ((0.0,), (0.0,)), ((0.1,), (-1.0,))):
        with pytest.raises(UserError, match="learning_rates"):
            segmentation.segment(data, facts, rates, decays, 1, 8, 8, 0, mesh, ALONE)


def test_the_depth_head_is_scikit_learns_ridge(problem):
    from sklearn.linear_model import Ridge

    data, facts, up, _, depth = problem
    mesh = layout.mesh()
    x, z = ((up - facts.mean) * facts.scale).reshape(-1, 4), np.log(depth).ravel()
    head, chosen = dense_depth.regress(data, facts, (0.3,), 8, 0, mesh, ALONE)
    best = Ridge(alpha=0.3 * len(z)).fit(x, z)
    np.testing.assert_allclose(head.weight[0, :, 0], best.coef_, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(head.bias[0, 0], best.intercept_, rtol=1e-4)
    # The error on the hold-out is that of a fit to the others.
    inner, away = probe.holdout(22, 0)
    pixels = np.arange(len(z)).reshape(22, -1)
    inner, away = pixels[inner].ravel(), pixels[away].ravel()
    partial = Ridge(alpha=0.3 * len(inner)).fit(x[inner], z[inner])
    error = np.sqrt(np.mean((partial.predict(x[away]) - z[away]) ** 2))
    assert chosen["curve"][0]["log_rmse"] == pytest.approx(error, rel=1e-4)
    # The least error wins; here the noise is small, so a small ridge.
    head, chosen = dense_depth.regress(data, facts, (10.0, 1e-5, 1.0), 8, 0, mesh, ALONE)
    assert chosen["ridge"] == 1e-5
    sums = dense_depth.depth_errors(data, facts, head, 8, mesh, ALONE)
    found = dense_scores.depth_scores(sums)
    free = Ridge(alpha=1e-5 * len(z)).fit(x, z)
    guess = np.clip(np.exp(free.predict(x)), depth.min(), depth.max())
    assert sums[0] == depth.size
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((guess - depth.ravel()) ** 2)), rel=1e-3)
    for bad in ((), (-1.0,)):
        with pytest.raises(UserError, match="ridges"):
            dense_depth.regress(data, facts, bad, 8, 0, mesh, ALONE)


def test_constants_are_the_commonest_class_and_the_geometric_mean(problem):
    data, facts, _, mask, depth = problem
    matrix, sums = probe.constants(data, facts, 8)
    commonest = np.bincount(mask[mask >= 0]).argmax()
    assert matrix[:, commonest].tolist() == np.bincount(mask[mask >= 0]).tolist()
    assert matrix.sum() == (mask >= 0).sum()
    mean = np.exp(np.log(depth).mean())
    found = dense_scores.depth_scores(sums)
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((depth - mean) ** 2)), rel=1e-4)
