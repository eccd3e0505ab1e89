"""Dense probes: linear segmentation and depth on frozen feature maps.

One linear layer reads a map [h, w, d], its output is upsampled bilinearly to the pixels, and the
loss counts every pixel: the `linear` protocol of DINOv2 (Oquab et al. 2023, section 7.4). (The
layer and the upsampling commute, so features could as well be upsampled first.)

Segmentation follows the official code (facebookresearch/dinov2, eval/segmentation): a
normalisation of every channel, then logits (BNHead), cross-entropy, AdamW, the rate warmed up and
then falling linearly to 0. Differences: channels are normalised by their mean and deviation over
the training images, not by a BatchNorm that learns along; the rate and the weight decay are chosen
on a hold-out; no augmentation.

Depth is simpler than the official protocol, whose layer spreads its answer over 256 bins of depth
(as AdaBins, Bhat et al. 2021) and also reads the class token: here the layer regresses log depth
by least squares with a ridge. That has an exact optimum, found in one pass: layer and upsampling
are linear, so the normal equations are sums over images.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from ml_collections import ConfigDict

from ssl_jax import augment, host, models, parallel
from ssl_jax.data import loader, scenes
from ssl_jax.data.protocol import Source
from ssl_jax.errors import UserError
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.vit import ViT, patchify

RIDGES = tuple(10.0**power for power in range(-5, 2))
WARMUP = 0.04  # share of the steps (official: 1,500 of 40,000)
THRESHOLDS = (1.25, 1.25**2, 1.25**3)
HOLDOUT = 0.2

# encode(variables, {'image', 'mask', 'depth', 'index'} rows of this process) -> Batch of all
Encode = Callable[[Any, Any], "Batch"]


class Batch(NamedTuple):
    """Maps and labels of some images.

    Attributes:
      features: float [b, h, w, d].
      mask: int [b, S, S], classes; −1 does not count.
      depth: float32 [b, S, S], metres; −1 all over an image that pads the batch.
    """

    features: Any
    mask: Any
    depth: Any


class Set(NamedTuple):
    """Images with their maps, in memory or encoded whenever they are read.

    Attributes:
      examples: number of images n.
      read: (int [m] places in 0 … n − 1, batch) -> Batch after Batch of `batch` images each, on
        the host of every process; the last is padded.
      kept: 'float32' or 'float16': how the maps are kept in memory; 'no': they are not.
    """

    examples: int
    read: Callable[[np.ndarray, int], Iterator[Batch]]
    kept: str


class Statistics(NamedTuple):
    """What one look at the training images tells.

    Attributes:
      mean, scale: float32 [d], of the features; standardised is (x − mean) · scale.
      counts: int [classes], pixels of every class.
      log_depth: mean of log depth.
      nearest, farthest: depth, metres.
    """

    mean: np.ndarray
    scale: np.ndarray
    counts: np.ndarray
    log_depth: float
    nearest: float
    farthest: float


class Head(NamedTuple):
    """A linear layer on standardised features, or a stack of them: leading axis g.

    Attributes:
      weight: float32 [d, k].
      bias: float32 [k].
    """

    weight: Any
    bias: Any


# ---- metrics


def confusion(truth: jax.Array, predicted: jax.Array, classes: int) -> jax.Array:
    """Counts of (true, predicted) classes over the last axis.

    Args:
      truth: int [..., p]; where it is outside 0 … classes − 1, nothing is counted.
      predicted: int [..., p].
      classes: number of classes K.

    Returns:
      int32 [..., K, K], row: true class.
    """
    true, guess = (jax.nn.one_hot(x, classes, dtype=jnp.float32) for x in (truth, predicted))
    # [..., p, K] · [..., p, K] -> [..., K, K]: exact in float32 up to 2²⁴ pixels.
    counts = jnp.einsum("...pi,...pj->...ij", true, guess, precision=lax.Precision.HIGHEST)
    return jnp.round(counts).astype(jnp.int32)


def segmentation_scores(counts: np.ndarray) -> dict[str, Any]:
    """Intersection over union and pixel accuracy of a confusion matrix.

    IoU_c = n_cc / (Σ_j n_cj + Σ_i n_ic − n_cc); mIoU is its mean over the classes that occur, in
    truth or in prediction (Long et al. 2015, over the pixels of all images together).

    Args:
      counts: int [K, K], row: true class.

    Returns:
      {'miou', 'pixel_accuracy': in [0, 1]; 'iou': float [K], NaN for a class that does not occur}.

    Raises:
      ValueError: nothing was counted.
    """
    counts = np.asarray(counts, np.float64)
    if counts.sum() == 0:
        raise ValueError("segmentation_scores: no pixel was counted")
    hits = np.diag(counts)
    union = counts.sum(0) + counts.sum(1) - hits
    iou = np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)
    return {
        "miou": float(np.nanmean(iou)),
        "pixel_accuracy": float(hits.sum() / counts.sum()),
        "iou": iou,
    }


def depth_sums(truth: jax.Array, predicted: jax.Array) -> jax.Array:
    """What `depth_scores` divides, summed over the last axis.

    Args:
      truth: float32 [..., p], metres; where it is not > 0, nothing is counted.
      predicted: float32 [..., p], metres, > 0.

    Returns:
      float32 [..., 6]: pixels, (p − t)², |p − t| / t, and how many have max(p/t, t/p) below each
      of 1.25, 1.25², 1.25³.
    """
    known = truth > 0
    t = jnp.where(known, truth, 1.0)
    error = predicted - t
    ratio = jnp.maximum(predicted / t, t / predicted)
    terms = [jnp.ones_like(t), error**2, jnp.abs(error) / t, *(ratio < x for x in THRESHOLDS)]
    return jnp.stack([jnp.sum(jnp.where(known, x, 0.0), -1) for x in terms], -1)


def depth_scores(sums: np.ndarray) -> dict[str, float]:
    """The measures of Eigen et al. 2014 (section 4.1), over the pixels of all images together.

    RMSE = √(Σ (p − t)² / n), abs rel = Σ |p − t| / t / n, δ_i = share of the pixels with
    max(p/t, t/p) < 1.25^i. (Some codes average the RMSE of every image instead.)

    Args:
      sums: float [6], from `depth_sums`, summed over images.

    Returns:
      {'rmse': metres, 'abs_rel', 'delta1', 'delta2', 'delta3': in [0, 1]}.

    Raises:
      ValueError: nothing was counted.
    """
    n, square, relative, *below = np.asarray(sums, np.float64).tolist()
    if n == 0:
        raise ValueError("depth_scores: no pixel was counted")
    found = {"rmse": math.sqrt(square / n), "abs_rel": relative / n}
    return found | {f"delta{i + 1}": x / n for i, x in enumerate(below)}


# ---- feature maps


def stages(model: nn.Module) -> int:
    """How many maps an encoder has: the stages of a ResNet, the blocks of a ViT.

    Raises:
      UserError: an encoder of another kind.
    """
    if isinstance(model, ResNet):
        return len(model.blocks)
    if isinstance(model, ViT):
        return model.depth
    raise UserError(f"dense reads the maps of a ResNet or a ViT, not of {type(model).__name__}")


def feature_map(model: nn.Module, variables: Any, x: jax.Array, stage: int) -> jax.Array:
    """The output of one stage, before pooling.

    Args:
      model: a ResNet, whose map after a stage is taken; or a ViT, whose patch tokens after a block
        are taken, normalised by the final norm, without the class token.
      variables: its variables.
      x: float [b, S, S, C].
      stage: 1 … `stages(model)`.

    Returns:
      float32 [b, h, w, d].
    """
    if isinstance(model, ResNet):
        found = model.apply(variables, x, False, method="stages")[stage - 1]
    else:
        tokens = model.apply(variables, x, model.depth - stage + 1, method="intermediate")[0]
        h, w = x.shape[1] // model.patch, x.shape[2] // model.patch
        found = tokens[:, int(model.token) :].reshape(len(x), h, w, -1)  # [b, h·w, D]
    return found.astype(jnp.float32)


def compile_encoder(config: ConfigDict, mesh, stage: int | None, size: int) -> Encode:
    """Compiles an encoder up to one stage, over all devices.

    Images are used whole: the centre crop of `config.evaluate` would part them from their labels.

    Args:
      config: of the run; `config.model` and `config.evaluate` are used.
      mesh: from `parallel.mesh()`.
      stage: see `feature_map`; None: the last.
      size: side S of the images, pixels.

    Raises:
      UserError: no such stage, or a side that is not whole patches.
    """
    model = models.make(config.model)
    last = stages(model)
    stage = last if stage is None else stage
    if not 1 <= stage <= last:
        raise UserError(f"--config.stage is {stage}; {config.model.name} has 1 to {last}")
    if isinstance(model, ViT) and size % model.patch:
        raise UserError(
            f"dense: images of {size} pixels are not whole patches of {model.patch}; set "
            f"--config.data.size to a multiple of {model.patch}"
        )
    view = config.evaluate

    def encode(variables, rows):
        x = augment.evaluate(rows["image"], size, view.mean, view.std)
        return Batch(feature_map(model, variables, x, stage), rows["mask"], rows["depth"])

    return parallel.compile_rows(encode, mesh)


def compile_pixels(side: int, mesh, size: int) -> Encode:
    """The same for raw pixels: the feature of a cell is the patch of the image that it covers.

    Args:
      side: cells of a row, h = w.
      mesh: from `parallel.mesh()`.
      size: side S of the images, pixels. A patch has p = ⌈S / h⌉ pixels a side; where h·p ≠ S the
        image is resized to h·p first.
    """
    p = -(-size // side)

    def encode(_, rows):
        x = augment.evaluate(rows["image"], side * p)
        cells = patchify(x, p)  # [b, h·w, p·p·C]
        return Batch(cells.reshape(len(x), side, side, -1), rows["mask"], rows["depth"])

    return parallel.compile_rows(encode, mesh)


def labelled(split: str, size: int, channels: int) -> Callable[[Any], dict[str, np.ndarray]]:
    """`read` of scenes with their masks and depth, see `scenes.draw`."""

    def read(rows):
        drawn = scenes.draw(split, rows, size, channels)
        index = np.asarray(rows).astype(np.int32)
        return {k: drawn[k] for k in ("image", "mask", "depth")} | {"index": index}

    return read


def open_set(
    encode: Encode,
    variables: Any,
    source: Source,
    rows: np.ndarray,
    batch: int,
    cluster: host.Cluster,
    cache_bytes: int,
) -> Set:
    """Encodes images once and keeps maps and labels, where memory is given for it.

    Args:
      encode: compiled.
      variables: of the encoder.
      source: its `read` gives 'image', 'index', 'mask' and 'depth'.
      rows: int [n], of the images.
      batch: images encoded at a time over all devices; rounded up to a multiple of them.
      cluster: the processes of the job.
      cache_bytes: bound of what is kept on every process. Maps are kept in float32 if that fits,
        else in float16 if that fits, else images are read and encoded whenever they are wanted,
        a batch at a time.

    Returns:
      Set.
    """

    def compute(places, batch):
        wanted = rows[places]
        picked = source._replace(examples=len(wanted), read=lambda i: source.read(wanted[i]))
        shares = {"process": cluster.process, "processes": cluster.processes}
        with loader.in_order(picked, batch=whole(batch), **shares) as batches:
            for read in batches:
                yield jax.tree.map(np.asarray, encode(variables, read))

    n = len(rows)
    stream = compute(np.arange(n), batch)
    first = next(stream)
    numbers, pixels = (math.prod(x.shape[1:]) for x in (first.features, first.mask))
    fits = (
        k
        for k in (np.float32, np.float16)
        if n * (numbers * k().nbytes + 5 * pixels) <= cache_bytes
    )
    kept = next(fits, None)
    if kept is None:
        return Set(n, compute, "no")
    kinds = Batch(kept, np.int8, np.float32)
    store = Batch(*(np.empty((n, *x.shape[1:]), k) for x, k in zip(first, kinds, strict=True)))
    begin = 0
    for found in itertools.chain([first], stream):
        count = min(len(found.mask), n - begin)  # without padding
        for into, values in zip(store, found, strict=True):
            into[begin : begin + count] = values[:count]
        begin += count

    def recall(places, batch):
        batch = whole(batch)
        for begin in range(0, len(places), batch):
            here = places[begin : begin + batch]
            missing = batch - len(here)
            features, mask, depth = (x[np.pad(here, (0, missing))] for x in store)
            mask[len(here) :], depth[len(here) :] = -1, -1
            yield Batch(features.astype(np.float32), mask.astype(np.int32), depth)

    return Set(n, recall, np.dtype(kept).name)


def whole(batch: int) -> int:
    """Rounded up to a multiple of the devices."""
    return -(-batch // jax.device_count()) * jax.device_count()


def local(batch: Batch, cluster: host.Cluster) -> Batch:
    """The rows of this process, of a batch that every process holds whole."""
    return jax.tree.map(
        lambda x: x.reshape(cluster.processes, -1, *x.shape[1:])[cluster.process], batch
    )


# ---- probes


def statistics(data: Set, batch: int, classes: int) -> Statistics:
    """One pass over the training images.

    Args:
      data: of them.
      batch: images at a time.
      classes: number of classes.

    Raises:
      UserError: features that are not finite.
    """
    total = square = log_depth = 0.0
    cells = pixels = 0
    counts = np.zeros(classes, np.int64)
    nearest, farthest = math.inf, 0.0
    for features, mask, depth in data.read(np.arange(data.examples), batch):
        real = depth[:, 0, 0] > 0
        x = features[real].reshape(-1, features.shape[-1]).astype(np.float64)
        if not np.isfinite(x).all():
            raise UserError("dense: the features are not all finite; the encoder diverged")
        total, square, cells = total + x.sum(0), square + np.square(x).sum(0), cells + len(x)
        counts += np.bincount(mask[mask >= 0].ravel(), minlength=classes)
        known = depth[real]
        log_depth, pixels = log_depth + np.log(known).sum(dtype=np.float64), pixels + known.size
        nearest, farthest = min(nearest, known.min()), max(farthest, known.max())
    mean = total / cells
    deviation = np.sqrt(np.maximum(square / cells - mean**2, 0))
    # A channel that is constant to float32's precision is silenced, as in linear.standardisation.
    alive = deviation > 1e-6 * np.abs(mean) + 1e-30
    scale = np.where(alive, 1 / np.where(alive, deviation, 1), 0)
    return Statistics(
        mean.astype(np.float32),
        scale.astype(np.float32),
        counts,
        float(log_depth / pixels),
        float(nearest),
        float(farthest),
    )


def holdout(examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places to learn from and, a fifth, to choose hyperparameters on; both ascending.

    Raises:
      UserError: fewer than two images.
    """
    if examples < 2:
        raise UserError("dense: choosing hyperparameters needs at least two training images")
    order = np.random.Generator(np.random.Philox([seed, 2])).permutation(examples)
    held = max(1, int(HOLDOUT * examples))
    return np.sort(order[held:]), np.sort(order[:held])


def bilinear(size: int, cells: int) -> jax.Array:
    """The matrix of bilinear upsampling along one side, float32 [size, cells]; rows sum to 1.

    Cells are centred on their area and the edge is repeated: PyTorch's align_corners=False.
    """
    return jax.image.resize(jnp.eye(cells), (size, cells), "linear", antialias=False)


def upsample(maps: jax.Array, size: int) -> jax.Array:
    """[..., h, w, k] -> [..., size, size, k], bilinear."""
    h, w = maps.shape[-3:-1]
    rows = jnp.einsum("yh,...hwk->...ywk", bilinear(size, h), maps)
    return jnp.einsum("xw,...ywk->...yxk", bilinear(size, w), rows)


def outputs(heads: Head, features: jax.Array, mean, scale, size: int) -> jax.Array:
    """What a stack of heads says at every pixel.

    Args:
      heads: weight [g, d, k], bias [g, k].
      features: float32 [b, h, w, d].
      mean, scale: float32 [d].
      size: side S of the images, pixels.

    Returns:
      float32 [g, b, S, S, k].
    """
    x = (features - mean) * scale
    # [b, h, w, d] · [g, d, k] -> [g, b, h, w, k]
    small = jnp.einsum("bhwd,gdk->gbhwk", x, heads.weight) + heads.bias[:, None, None, None]
    return upsample(small, size)


class _Training(NamedTuple):
    """State of `segmentation_heads`; the leading axis of the heads is g, one a setting."""

    heads: Head
    adam: Any
    step: jax.Array
    rate: jax.Array  # [g]
    decay: jax.Array  # [g]
    mean: jax.Array
    scale: jax.Array


def segmentation_heads(
    data: Set,
    places: np.ndarray,
    facts: Statistics,
    settings: list[tuple[float, float]],
    epochs: float,
    batch: int,
    seed: int,
    mesh,
    cluster: host.Cluster,
) -> Head:
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
      mesh: from `parallel.mesh()`.
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
        share = known / parallel.pmean(jnp.sum(known, dtype=jnp.float32), axis)

        def loss_of(heads):
            size = rows.mask.shape[-1]
            logits = outputs(heads, rows.features, state.mean, state.scale, size)
            cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
                logits, jnp.maximum(rows.mask, 0)[None]
            )  # [g, b, S, S]
            losses = jnp.sum(cross_entropy * share, (1, 2, 3))
            return jnp.sum(losses), losses  # each head's gradient is that of its own loss

        grads, losses = jax.grad(loss_of, has_aux=True)(state.heads)
        grads, losses = parallel.pmean((grads, losses), axis)
        updates, moments = adam.update(grads, state.adam)
        now = jnp.minimum((state.step + 1) / warm, (steps - state.step) / max(steps - warm, 1))
        rate = state.rate * jnp.minimum(now, 1)
        weight = updates.weight + state.decay[:, None, None] * state.heads.weight
        heads = Head(
            state.heads.weight - rate[:, None, None] * weight,
            state.heads.bias - rate[:, None] * updates.bias,
        )
        return state._replace(heads=heads, adam=moments, step=state.step + 1), losses

    rates, decays = (np.array(x, np.float32) for x in zip(*settings, strict=True))
    share = (facts.counts + 0.5) / (facts.counts + 0.5).sum()  # the best constant to begin with
    bias = np.tile(np.log(share).astype(np.float32), (g, 1))
    heads = Head(np.zeros((g, d, classes), np.float32), bias)
    state = _Training(heads, adam.init(heads), np.int32(0), rates, decays, facts.mean, facts.scale)
    state = jax.device_put(state, parallel.replicated(mesh))
    compiled = parallel.compile_step(step, mesh)

    def shuffled():
        for epoch in itertools.count():
            yield from data.read(places[loader.order(seed, epoch, len(places))], batch)

    for rows in itertools.islice(shuffled(), steps):
        micro = jax.tree.map(lambda x: x[None], local(rows, cluster))
        state, losses = compiled(state, parallel.put_batch(micro, mesh))
        # Many steps in flight can block each other for ever in the collectives of CPU devices.
        jax.block_until_ready(losses)
    return state.heads


def confusions(
    data: Set,
    places: np.ndarray,
    facts: Statistics,
    heads: Head,
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

    def judge(whole, rows):
        heads, mean, scale = whole
        b, size = rows.mask.shape[:2]
        guess = jnp.argmax(outputs(heads, rows.features, mean, scale, size), -1)
        guess = guess.reshape(-1, b, size * size)  # [g, b, S, S]
        truth = jnp.broadcast_to(rows.mask.reshape(b, size * size), guess.shape)
        return jnp.swapaxes(confusion(truth, guess, classes), 0, 1)  # [b, g, K, K]

    compiled = parallel.compile_rows(judge, mesh)
    total = 0
    for rows in data.read(places, batch):
        found = compiled((heads, facts.mean, facts.scale), local(rows, cluster))
        total = total + np.asarray(found, np.int64).sum(0)
    return total


def segment(
    data: Set,
    facts: Statistics,
    learning_rates: tuple[float, ...],
    weight_decays: tuple[float, ...],
    epochs: float,
    step_batch: int,
    batch: int,
    seed: int,
    mesh,
    cluster: host.Cluster,
) -> tuple[Head, dict[str, Any]]:
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
    inner, held = holdout(data.examples, seed)
    common = (epochs, step_batch, seed, mesh, cluster)
    heads = segmentation_heads(data, inner, facts, settings, *common)
    matrices = confusions(data, held, facts, heads, batch, mesh, cluster)
    curve = [
        {"learning_rate": rate, "weight_decay": decay, "miou": segmentation_scores(m)["miou"]}
        for (rate, decay), m in zip(settings, matrices, strict=True)
    ]
    best = max(range(len(curve)), key=lambda i: curve[i]["miou"])
    final = segmentation_heads(
        data, np.arange(data.examples), facts, settings[best : best + 1], *common
    )
    rate, decay = settings[best]
    return final, {"learning_rate": rate, "weight_decay": decay, "curve": curve}


class Normal(NamedTuple):
    """Sums over pixels for least squares of log depth z on x, features with a 1 appended.

    Attributes:
      xx: float64 [d + 1, d + 1], Σ x xᵀ.
      xz: float64 [d + 1], Σ x z.
      zz, pixels: Σ z², number of pixels.
    """

    xx: Any
    xz: Any
    zz: Any
    pixels: Any


def normal_sums(rows: Batch, mean: jax.Array, scale: jax.Array) -> Normal:
    """`Normal` of a batch. x at a pixel is the upsampled map, U F with U = U_y ⊗ U_x.

    So Σ x xᵀ = Fᵀ (U_yᵀU_y ⊗ U_xᵀU_x) F and Σ x z = Fᵀ Uᵀ z: nothing of the images' size times d
    is ever made.

    Args:
      rows: images; those with depth −1 do not count.
      mean, scale: float32 [d].

    Returns:
      Normal, float32.
    """
    exact = lax.Precision.HIGHEST
    size, (h, w) = rows.depth.shape[-1], rows.features.shape[1:3]
    real = rows.depth[:, 0, 0] > 0
    x = (rows.features - mean) * scale
    x = jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], -1) * real[:, None, None, None]
    z = jnp.log(jnp.where(real[:, None, None], rows.depth, 1.0))
    down, across = bilinear(size, h), bilinear(size, w)
    # [h, h] · [b, h, w, d] · [w, w] -> [b, h, w, d]
    spread = jnp.einsum("hi,bijd,wj->bhwd", down.T @ down, x, across.T @ across, precision=exact)
    small = jnp.einsum("yh,byx,xw->bhw", down, z, across, precision=exact)
    return Normal(
        jnp.einsum("bhwd,bhwe->de", x, spread, precision=exact),
        jnp.einsum("bhwd,bhw->d", x, small, precision=exact),
        jnp.sum(z**2),
        jnp.sum(real, dtype=jnp.float32) * size**2,
    )


def ridge(sums: Normal, strength: float) -> Head:
    """The least squares fit: minimises Σ (w·x + b − z)² / n + strength · ‖w‖².

    Args:
      sums: of the pixels to learn from.
      strength: ≥ 0; the bias is spared.

    Returns:
      Head with weight float64 [d, 1] and bias [1].
    """
    penalty = np.full(len(sums.xz), strength)
    penalty[-1] = 0
    fitted, *_ = np.linalg.lstsq(sums.xx / sums.pixels + np.diag(penalty), sums.xz / sums.pixels)
    return Head(fitted[:-1, None], fitted[-1:])


def squared_error(sums: Normal, head: Head) -> float:
    """Mean of (w·x + b − z)² over the pixels that `sums` are of."""
    v = np.append(head.weight[:, 0], head.bias)
    return float((v @ sums.xx @ v - 2 * v @ sums.xz + sums.zz) / sums.pixels)


def regress(
    data: Set,
    facts: Statistics,
    ridges: tuple[float, ...],
    batch: int,
    seed: int,
    mesh,
    cluster: host.Cluster,
) -> tuple[Head, dict[str, Any]]:
    """A head for log depth: the ridge chosen on a hold-out, then fitted to all.

    Args:
      data, facts: images to learn from, and `statistics` of them.
      ridges: strengths to try, ≥ 0; the least squared error of log depth on a held-out fifth wins.
      batch: images at a time.
      seed: of the hold-out.
      mesh, cluster: devices and processes.

    Returns:
      (Head with weight float32 [1, d, 1] and bias [1, 1], {'ridge': chosen; 'curve': a list of
      {'ridge', 'log_rmse'} on the hold-out}).

    Raises:
      UserError: nothing to try, or too few images.
    """
    if not ridges or min(ridges) < 0:
        raise UserError(f"dense: ridges must hold numbers of at least 0, got {ridges}")

    def add_up(state, micro, axis):
        sums = normal_sums(jax.tree.map(lambda x: x[0], micro), *state)
        return state, jax.tree.map(lambda x: parallel.pmean(x, axis) * parallel.size(axis), sums)

    compiled = parallel.compile_step(add_up, mesh)
    state = jax.device_put((facts.mean, facts.scale), parallel.replicated(mesh))
    parts = []
    for places in holdout(data.examples, seed):
        total = Normal(0.0, 0.0, 0.0, 0.0)
        for rows in data.read(places, batch):
            micro = jax.tree.map(lambda x: x[None], local(rows, cluster))
            state, sums = compiled(state, parallel.put_batch(micro, mesh))
            total = jax.tree.map(lambda a, b: a + np.asarray(b, np.float64), total, sums)
        parts.append(total)
    inner, held = parts
    curve = [
        {"ridge": r, "log_rmse": math.sqrt(max(squared_error(held, ridge(inner, r)), 0.0))}
        for r in ridges
    ]
    best = min(curve, key=lambda row: row["log_rmse"])["ridge"]
    fitted = ridge(jax.tree.map(lambda a, b: a + b, inner, held), best)
    head = jax.tree.map(lambda x: np.asarray(x, np.float32)[None], fitted)
    return head, {"ridge": best, "curve": curve}


def depth_of(out: jax.Array, nearest: float, farthest: float) -> jax.Array:
    """Log depth [..., 1] to metres [...], within the range of the training depths."""
    return jnp.clip(jnp.exp(out[..., 0]), nearest, farthest)


def depth_errors(
    data: Set, facts: Statistics, head: Head, batch: int, mesh, cluster: host.Cluster
) -> np.ndarray:
    """`depth_sums` of a head over all images of a set, float64 [6].

    Args:
      data: images to judge on.
      facts: of the images that the head learned from.
      head: weight [1, d, 1], bias [1, 1].
      batch: images at a time.
      mesh, cluster: devices and processes.
    """

    def judge(whole, rows):
        head, mean, scale = whole
        b, size = rows.depth.shape[:2]
        out = outputs(head, rows.features, mean, scale, size)[0]
        guess = depth_of(out, facts.nearest, facts.farthest)
        return depth_sums(rows.depth.reshape(b, -1), guess.reshape(b, -1))  # [b, 6]

    compiled = parallel.compile_rows(judge, mesh)
    total = np.zeros(6)
    for rows in data.read(np.arange(data.examples), batch):
        found = compiled((head, facts.mean, facts.scale), local(rows, cluster))
        total += np.asarray(found, np.float64).sum(0)
    return total


def constants(data: Set, facts: Statistics, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """What knowing nothing of an image is worth: the commonest class, the geometric mean depth.

    Args:
      data: images to judge on.
      facts: of the training images, whose commonest class and mean log depth are said everywhere.
      batch: images at a time.

    Returns:
      (confusion int64 [K, K], `depth_sums` float64 [6]).
    """
    classes = len(facts.counts)
    matrix, sums = np.zeros((classes, classes), np.int64), np.zeros(6)
    for _, mask, depth in data.read(np.arange(data.examples), batch):
        counts = np.bincount(mask[mask >= 0].ravel(), minlength=classes)
        matrix[:, int(np.argmax(facts.counts))] += counts
        flat = depth.reshape(len(depth), -1)
        guess = np.full_like(flat, math.exp(facts.log_depth))
        sums += np.asarray(depth_sums(flat, guess), np.float64).sum(0)
    return matrix, sums
