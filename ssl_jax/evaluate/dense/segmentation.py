"""Linear segmentation on frozen maps, after facebookresearch/dinov2, eval/segmentation.

A normalisation of every channel, then logits (BNHead), cross-entropy, AdamW, the rate warmed up and
then falling linearly to 0. Differences: channels are normalised by their mean and deviation over
the training images, not by a BatchNorm that learns along; the rate and the weight decay are chosen
on a hold-out; no augmentation.
"""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssl_jax.data import loader
from ssl_jax.devices import collectives, layout, mapping
from ssl_jax.errors import UserError
from ssl_jax.evaluate.dense import maps, probe, scores
from ssl_jax.processes import host

WARMUP = 0.04  # share of the steps (official: 1,500 of 40,000)


class _Training(NamedTuple):
    """State of `segmentation_heads`; the leading axis of the heads is g, one a setting."""

    heads: probe.Head
    adam: Any
    step: jax.Array
    rate: jax.Array  # [g]
    decay: jax.Array  # [g]
    mean: jax.Array
    scale: jax.Array


def segmentation_heads(
    data: maps.Set,
    places: np.ndarray,
    facts: probe.Statistics,
    settings: list[tuple[float, float]],
    epochs: float,
    batch: int,
    seed: int,
    mesh,
    cluster: host.Cluster,
) -> probe.Head:
    """Trains one head for each setting, all in the same pass.

    Cross-entropy, mean over pixels, by AdamW (β 0.9, 0.999; decay of the weight alone); the rate
    rises over 4 % of the steps and falls linearly to 0.

    Args:
      data: images to learn from.
      places: int [m], which of them.
      facts: `statistics` of them.
      settings: (learning rate, weight decay), g of them.
      epochs: passes over the images.
      batch: images of a step, over all devices; rounded up to a multiple of them.
      seed: of the order of the images. Heads start at weight 0 and the shares of the classes.
      mesh: from `layout.mesh()`.
      cluster: the processes of the job.

    Returns:
      Head with weight float32 [g, d, K] and bias [g, K], on every device.
    """
    classes, g, d = len(facts.counts), len(settings), len(facts.mean)
    batch = min(batch, len(places))
    per_epoch = -(-len(places) // batch)
    steps = max(1, round(epochs * per_epoch))
    warm = max(1, round(WARMUP * steps))
    adam = optax.scale_by_adam()

    def step(state, micro, axis):
        rows = jax.tree.map(lambda x: x[0], micro)  # [1, b, …] -> [b, …]
        known = rows.mask >= 0
        # The mean over the pixels of all devices, which may differ in how many of them count.
        share = known / collectives.pmean(jnp.sum(known, dtype=jnp.float32), axis)

        def loss_of(heads):
            size = rows.mask.shape[-1]
            logits = probe.outputs(heads, rows.features, state.mean, state.scale, size)
            cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, jnp.maximum(rows.mask, 0)[None]
            )  # [g, b, S, S]
            losses = jnp.sum(cross_entropy * share, (1, 2, 3))
            return jnp.sum(losses), losses  # each head's gradient is that of its own loss

        grads, losses = jax.grad(loss_of, has_aux=True)(state.heads)
        grads, losses = collectives.pmean((grads, losses), axis)
        updates, moments = adam.update(grads, state.adam)
        now = jnp.minimum((state.step + 1) / warm, (steps - state.step) / max(steps - warm, 1))
        rate = state.rate * jnp.minimum(now, 1)
        weight = updates.weight + state.decay[:, None, None] * state.heads.weight
        heads = probe.Head(
            state.heads.weight - rate[:, None, None] * weight,
            state.heads.bias - rate[:, None] * updates.bias,
        )
        return state._replace(heads=heads, adam=moments, step=state.step + 1), losses

    rates, decays = (np.array(x, np.float32) for x in zip(*settings, strict=True))
    share = (facts.counts + 0.5) / (facts.counts + 0.5).sum()  # the best constant to begin with
    bias = np.tile(np.log(share).astype(np.float32), (g, 1))
    heads = probe.Head(np.zeros((g, d, classes), np.float32), bias)
    state = _Training(heads, adam.init(heads), np.int32(0), rates, decays, facts.mean, facts.scale)
    state = jax.device_put(state, layout.replicated(mesh))
    compiled = mapping.compile_step(step, mesh)

    def shuffled():
        for epoch in itertools.count():
            yield from data.read(places[loader.order(seed, epoch, len(places))], batch)

    for rows in itertools.islice(shuffled(), steps):
        micro = jax.tree.map(lambda x: x[None], maps.local(rows, cluster))
        state, losses = compiled(state, layout.put_batch(micro, mesh))
        # Many steps in flight can block each other for ever in the collectives of CPU devices.
        jax.block_until_ready(losses)
    return state.heads


def confusions(
    data: maps.Set,
    places: np.ndarray,
    facts: probe.Statistics,
    heads: probe.Head,
    batch: int,
    mesh,
    cluster: host.Cluster,
) -> np.ndarray:
    """Confusion matrices of a stack of heads.

    Args:
      data: images, `places` of which are judged.
      facts: of the images that the heads learned from.
      heads: weight [g, d, K], bias [g, K].
      batch: images at a time.
      mesh, cluster: devices and processes.

    Returns:
      int64 [g, K, K], row: true class.
    """
    classes = heads.bias.shape[-1]

    def judge(shared, rows):
        heads, mean, scale = shared
        b, size = rows.mask.shape[:2]
        guess = jnp.argmax(probe.outputs(heads, rows.features, mean, scale, size), -1)
        guess = guess.reshape(-1, b, size * size)  # [g, b, S, S]
        truth = jnp.broadcast_to(rows.mask.reshape(b, size * size), guess.shape)
        return jnp.swapaxes(scores.confusion(truth, guess, classes), 0, 1)  # [b, g, K, K]

    compiled = mapping.compile_rows(judge, mesh)
    total = 0
    for rows in data.read(places, batch):
        found = compiled((heads, facts.mean, facts.scale), maps.local(rows, cluster))
        total = total + np.asarray(found, np.int64).sum(0)
    return total


def segment(
    data: maps.Set,
    facts: probe.Statistics,
    learning_rates: tuple[float, ...],
    weight_decays: tuple[float, ...],
    epochs: float,
    step_batch: int,
    batch: int,
    seed: int,
    mesh,
    cluster: host.Cluster,
) -> tuple[probe.Head, dict[str, Any]]:
    """A head for segmentation: settings compared on a hold-out, then trained on all.

    Args:
      data, facts: images to learn from, and `statistics` of them.
      learning_rates, weight_decays: every pair is tried; the best mIoU on a held-out fifth wins.
      epochs, step_batch, seed: as for `segmentation_heads`.
      batch: images at a time where nothing is learned.
      mesh, cluster: devices and processes.

    Returns:
      (Head with a leading axis of 1, {'learning_rate', 'weight_decay': chosen; 'curve': a list of
      {'learning_rate', 'weight_decay', 'miou'} on the hold-out}).

    Raises:
      UserError: nothing to try, or too few images.
    """
    settings = list(itertools.product(learning_rates, weight_decays))
    if not settings or min(learning_rates) <= 0 or min(weight_decays) < 0:
        raise UserError(
            "dense: learning_rates must hold positive numbers and weight_decays numbers of at "
            f"least 0, got {learning_rates} and {weight_decays}"
        )
    inner, held = probe.holdout(data.examples, seed)
    common = (epochs, step_batch, seed, mesh, cluster)
    heads = segmentation_heads(data, inner, facts, settings, *common)
    matrices = confusions(data, held, facts, heads, batch, mesh, cluster)
    curve = [
        {
            "learning_rate": rate,
            "weight_decay": decay,
            "miou": scores.segmentation_scores(m)["miou"],
        }
        for (rate, decay), m in zip(settings, matrices, strict=True)
    ]
    best = max(range(len(curve)), key=lambda i: curve[i]["miou"])
    final = segmentation_heads(
        data, np.arange(data.examples), facts, settings[best : best + 1], *common
    )
    rate, decay = settings[best]
    return final, {"learning_rate": rate, "weight_decay": decay, "curve": curve}
