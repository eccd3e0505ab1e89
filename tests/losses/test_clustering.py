"""Sinkhorn–Knopp, swapped prediction, pseudo-labels, k-means, SeLa: the authors' numbers."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ssl_jax.devices import collectives, layout
from ssl_jax.errors import UserError
from ssl_jax.losses import clustering

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def golden(name):
    return np.load(GOLDEN / f"{name}.npz")


def on_devices(f, count, *arguments):
    """f(*rows of a device) mapped over devices, its results joined."""
    mesh = layout.mesh(jax.devices()[:count])
    return jax.jit(
        jax.shard_map(f, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"), check_vma=False)
    )(*arguments)


@pytest.mark.parametrize(
    "key, epsilon, iterations",
    [
        ("q", 0.05, 3),
        ("q_eps0.05_it1", 0.05, 1),
        ("q_eps0.05_it10", 0.05, 10),
        ("q_eps0.1_it3", 0.1, 3),
        ("q_eps0.03_it3", 0.03, 3),
    ],
)
def test_sinkhorn_is_the_official_one(key, epsilon, iterations):
    data = golden("swav_sinkhorn")
    q = clustering.sinkhorn(jnp.asarray(data["scores"]), epsilon, iterations)
    np.testing.assert_allclose(q, data[key], rtol=1e-4, atol=1e-7)


def test_sinkhorn_of_two_devices_is_that_of_all_rows():
    data = golden("world2_swav_sinkhorn")

    def local(scores):
        q = clustering.sinkhorn(collectives.gather(scores, layout.AXIS), 0.05, 3)
        return jax.lax.dynamic_slice_in_dim(q, collectives.rank(layout.AXIS) * 4, 4)

    q = on_devices(local, 2, data["scores"].reshape(8, 5))
    np.testing.assert_allclose(q.reshape(2, 4, 5), data["q"], rtol=1e-4, atol=1e-7)


def test_sinkhorn_balances_prototypes_where_the_softmax_does_not():
    scores = jax.random.normal(jax.random.key(0), (3, 40, 5)) / 5 + jnp.array([1, 0, 0, 0, 0])
    alone = clustering.sinkhorn(scores, 0.05, 0)
    np.testing.assert_allclose(alone, jax.nn.softmax(scores / 0.05, -1), rtol=1e-5)
    assert float(alone.mean((0, 1)).max()) > 0.9
    q = clustering.sinkhorn(scores, 0.05, 100)
    np.testing.assert_allclose(q.mean(1), 0.2, rtol=1e-3)
    np.testing.assert_allclose(q.sum(-1), 1.0, rtol=1e-5)
    for own, one in zip(q, scores, strict=True):
        np.testing.assert_allclose(own, clustering.sinkhorn(one, 0.05, 100), rtol=1e-5, atol=1e-9)


def test_sinkhorn_neither_overflows_nor_passes_a_gradient():
    scores = jnp.array([[1.0, -1.0], [0.9, -0.9], [0.8, -1.0]])
    q = clustering.sinkhorn(scores, 1e-3, 3)  # exp(1 / ε) is infinite
    assert np.isfinite(q).all()
    np.testing.assert_allclose(q.sum(1), 1.0, rtol=1e-5)
    grad = jax.grad(lambda s: jnp.sum(clustering.sinkhorn(s, 0.05, 3) * scores))(scores)
    np.testing.assert_array_equal(grad, 0)


def test_swapped_cross_entropy_by_hand():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(4, 5, 3)).astype(np.float32)
    q = rng.dirichlet(np.ones(3), (4, 2)).astype(np.float32)
    logits = scores.astype(np.float64) / 0.3
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    terms = [
        np.mean([-(q[:, a] * log_p[:, v]).sum(1).mean() for v in range(5) if v != a])
        for a in range(2)
    ]
    loss = clustering.swapped_cross_entropy(jnp.asarray(scores), jnp.asarray(q), 0.3)
    np.testing.assert_allclose(loss, np.mean(terms), rtol=1e-5)
    # Assignments are constants.
    grad = jax.grad(lambda q: clustering.swapped_cross_entropy(jnp.asarray(scores), q, 0.3))(q)
    np.testing.assert_array_equal(grad, 0)


def test_pseudo_labels_take_one_mean_over_the_labelled_rows_of_all_devices():
    rng = np.random.default_rng(1)
    scores = jnp.asarray(rng.normal(size=(8, 3, 5)), jnp.float32)
    labels = jnp.array([2, -100, -100, -100, 4, 0, 1, -100])  # 1, 0, 2 and 1 on four devices

    def plain(scores):
        log_p = jax.nn.log_softmax(scores / 0.1)
        return -jnp.mean(jnp.stack([log_p[i, :, labels[i]] for i in (0, 4, 5, 6)]))

    def ours(scores, labels, axis=None):
        return clustering.pseudo_label_cross_entropy(scores, labels, 0.1, axis)

    want, want_grad = jax.value_and_grad(plain)(scores)
    (loss, metrics), grad = jax.value_and_grad(ours, has_aux=True)(scores, labels)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(grad, want_grad, rtol=1e-4, atol=1e-7)
    best = np.asarray(scores).argmax(-1) == np.asarray(labels)[:, None]
    np.testing.assert_allclose(metrics["accuracy"], best[[0, 4, 5, 6]].mean(), rtol=1e-6)
    assert float(metrics["labelled"]) == 0.5

    def step(scores, labels):
        def mean_loss(scores):  # as in train/step.py
            loss, metrics = ours(scores, labels, layout.AXIS)
            return collectives.pmean(loss, layout.AXIS), metrics

        (loss, metrics), grad = jax.value_and_grad(mean_loss, has_aux=True)(scores)
        return loss[None], metrics["accuracy"][None], grad / 4

    losses, accuracy, grads = on_devices(step, 4, scores, labels)
    np.testing.assert_allclose(losses, want, rtol=1e-5)
    np.testing.assert_allclose(accuracy, metrics["accuracy"], rtol=1e-6)
    np.testing.assert_allclose(grads, want_grad, rtol=1e-4, atol=1e-7)


def test_without_any_label_the_loss_and_its_gradient_are_zero():
    labels = jnp.full(4, clustering.UNLABELLED)
    (loss, metrics), grad = jax.value_and_grad(
        lambda s: clustering.pseudo_label_cross_entropy(s, labels, 0.1), has_aux=True
    )(jnp.ones((4, 2, 3)))
    assert float(loss) == 0 and float(metrics["labelled"]) == 0
    np.testing.assert_array_equal(grad, 0)


def test_the_last_of_equal_indices_is_stored():
    bank = jnp.arange(10.0).reshape(5, 2)
    rows = -jnp.arange(8.0).reshape(4, 2)
    got = jax.jit(clustering.store)(bank, jnp.array([3, 0, 3, 0]), rows)
    np.testing.assert_array_equal(got, [[-6, -7], [2, 3], [4, 5], [-4, -5], [8, 9]])


def test_members_are_drawn_without_preference_or_repetition():
    member = jnp.arange(12) % 3 != 0  # 8 of 12
    draw = jax.jit(clustering.draw_members, static_argnums=2)
    drawn = np.stack([draw(jax.random.key(k), member, 3) for k in range(300)])
    assert all(len(set(row)) == 3 for row in drawn)
    counts = np.bincount(drawn.ravel(), minlength=12)
    assert (counts[::3] == 0).all()
    assert counts[np.asarray(member)].min() > 70  # 112 expected


@pytest.mark.parametrize("chunk", [7, 40])
def test_kmeans_is_the_official_one(chunk):
    data = golden("deepclusterv2")
    everyone = jnp.ones(40, bool)
    cluster = jax.jit(lambda x, c, n: clustering.spherical_kmeans(x, everyone, c, n, chunk))
    for head in range(3):
        x = jnp.asarray(data["km_mem"][head % 2])
        for n in (0, 1, 2, 3, 5, 10):
            centroids, labels = cluster(x, x[data[f"km_init_idx{head}"]].T, n)
            want = data[f"km_centroid{head}_it{n}"].T
            np.testing.assert_allclose(centroids, want, rtol=1e-4, atol=1e-6)
            np.testing.assert_array_equal(labels, data[f"km_assign_it{n}"][head])


def test_an_empty_cluster_keeps_its_centroid():
    data = golden("deepclusterv2")
    for head in range(3):
        x = jnp.asarray(data["dup_mem"][head % 2])  # some rows are equal: clusters stay empty
        first = x[data[f"dup_init_idx{head}"]].T
        centroids, labels = clustering.spherical_kmeans(x, jnp.ones(6, bool), first, 10)
        np.testing.assert_allclose(centroids.T, data[f"dup_centroid{head}"], atol=1e-6)
        np.testing.assert_array_equal(labels, data["dup_assign"][head])


def test_rows_outside_the_memory_do_not_count():
    data = golden("deepclusterv2")
    x = jnp.asarray(data["km_mem"][0])
    first = x[data["km_init_idx0"]].T
    kernel = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    places = np.random.default_rng(1).permutation(50)[:40]
    wide = jnp.ones((50, 6)).at[places].set(x)
    member = jnp.zeros(50, bool).at[places].set(True)

    def both(x, member):
        centroids, clusters = clustering.spherical_kmeans(x, member, first, 3, 16)
        labels, log_r = clustering.balanced_labels(x, member, kernel, 0.5, 5.0, 50, chunk=16)
        return centroids, log_r, clusters, labels

    want, got = both(x, jnp.ones(40, bool)), both(wide, member)
    for a, b in zip(want[:2], got[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    for a, b in zip(want[2:], got[2:], strict=True):
        np.testing.assert_array_equal(a, b[places])
        assert set(np.asarray(b)[~np.asarray(member)]) == {clustering.UNLABELLED}


@pytest.mark.parametrize("sharpness, chunk", [(1, 7), (5, 100), (10, 60), (25, 7)])
def test_balanced_labels_are_selas(sharpness, chunk):
    data = golden("sela_v1_sinkhorn")
    log_p = jnp.asarray(np.log(data["P"]), jnp.float32)  # [60, 6], its own softmax's logarithm

    labels, log_r = clustering.balanced_labels(
        log_p, jnp.ones(60, bool), jnp.eye(6), 1.0, float(sharpness), 200, 0.1, chunk
    )
    np.testing.assert_array_equal(labels, data[f"L_lamb{sharpness}"])
    plan = jax.nn.softmax(sharpness * log_p + log_r, axis=1).T / 60
    # The plan tells when it stopped: ten iterations more or less would show.
    np.testing.assert_allclose(plan, data[f"Q_lamb{sharpness}"], rtol=1e-4, atol=1e-8)


def test_selas_iterations_are_bounded():
    data = golden("sela_v1_sinkhorn")
    log_p = jnp.asarray(np.log(data["P"]), jnp.float32)
    assert int(data["niter_lamb25"]) == 71

    def log_r(bound, tolerance):
        return clustering.balanced_labels(
            log_p, jnp.ones(60, bool), jnp.eye(6), 1.0, 25.0, bound, tolerance
        )[1]

    np.testing.assert_allclose(log_r(71, 0.0), log_r(200, 0.1), rtol=1e-6)
    assert float(jnp.abs(log_r(61, 0.1) - log_r(200, 0.1)).max()) > 1e-3


@pytest.mark.parametrize("heads", [1, 2])
def test_every_head_of_sela_has_its_own_labels(heads):
    data = golden("sela_v1_sinkhorn")
    x = jnp.asarray(np.c_[data["x"], np.ones(60, np.float32)])  # the bias as one more dimension
    for head in range(heads):
        layer = f"hc{heads}/top_layer{head}"
        kernel = jnp.asarray(np.vstack([data[f"{layer}.weight"].T, data[f"{layer}.bias"]]))
        labels, _ = clustering.balanced_labels(x, jnp.ones(60, bool), kernel, 1.0, 25.0, 200)
        np.testing.assert_array_equal(labels, data[f"hc{heads}/L"][head])


def test_selas_loss_is_the_mean_over_heads_of_the_cross_entropy():
    data = golden("sela_v1_sinkhorn")
    weights = [data[f"hc2/top_layer{h}.weight"] for h in range(2)]
    biases = [data[f"hc2/top_layer{h}.bias"] for h in range(2)]

    def loss(weights, biases):
        return (
            sum(
                clustering.pseudo_label_cross_entropy(
                    (data["x"] @ w.T + b)[:, None], jnp.asarray(labels), 1.0
                )[0]
                for w, b, labels in zip(weights, biases, data["hc2/L"], strict=True)
            )
            / 2
        )

    value, grads = jax.value_and_grad(loss, (0, 1))(weights, biases)
    np.testing.assert_allclose(value, data["hc2/loss_harness"], rtol=1e-5)
    for name, own in zip(("weight", "bias"), grads, strict=True):
        for h, grad in enumerate(own):
            want = data[f"hc2/grad/top_layer{h}.{name}"]
            np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-7)


def test_impossible_values_are_refused():
    s = jnp.ones((4, 2))
    with pytest.raises(UserError, match=r"epsilon of Sinkhorn is 0; it must be above 0"):
        clustering.sinkhorn(s, 0, 3)
    with pytest.raises(UserError, match="iterations of Sinkhorn are -1"):
        clustering.sinkhorn(s, 0.05, -1)
    with pytest.raises(UserError, match="temperature of the loss is 0"):
        clustering.swapped_cross_entropy(jnp.ones((4, 3, 2)), jnp.ones((4, 2, 2)), 0)
    with pytest.raises(UserError, match="temperature of the loss is -1"):
        clustering.pseudo_label_cross_entropy(jnp.ones((4, 3, 2)), jnp.zeros(4, int), -1)
    with pytest.raises(ValueError, match="do not fit"):
        clustering.swapped_cross_entropy(jnp.ones((4, 1, 2)), jnp.ones((4, 1, 2)), 0.1)
    with pytest.raises(UserError, match="sharpness of SeLa's labels is 0"):
        clustering.balanced_labels(s, jnp.ones(4, bool), jnp.eye(2), 1.0, 0, 9)
    with pytest.raises(UserError, match="iterations of SeLa's labels are 0"):
        clustering.balanced_labels(s, jnp.ones(4, bool), jnp.eye(2), 1.0, 25.0, 0)
