"""Maps of features [h, w, d] for every image, with the labels of its pixels.

Of a stage of a ResNet, a block of a ViT, or of raw pixels; kept in memory where there is room.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax import augment
from ssl_jax.contract.encoder import Encoder
from ssl_jax.contract.source import Source
from ssl_jax.data import loader
from ssl_jax.data.sources import scenes
from ssl_jax.devices import mapping
from ssl_jax.errors import UserError
from ssl_jax.models.resnet import ResNet
from ssl_jax.models.vit import ViT, patchify
from ssl_jax.processes import host

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


def compile_encoder(of: Encoder, mesh, stage: int | None, size: int) -> Encode:
    """Compiles an encoder up to one stage, over all devices.

    Images are used whole: the centre crop of the fixed view would part them from their labels.

    Args:
      of: the encoder of the run.
      mesh: from `layout.mesh()`.
      stage: see `feature_map`; None: the last.
      size: side S of the images, pixels.

    Raises:
      UserError: no such stage, or a side that is not whole patches.
    """
    model, view = of.network, of.view
    last = stages(model)
    stage = last if stage is None else stage
    if not 1 <= stage <= last:
        raise UserError(f"--config.stage is {stage}; {type(model).__name__} has 1 to {last}")
    if isinstance(model, ViT) and size % model.patch:
        raise UserError(
            f"dense: images of {size} pixels are not whole patches of {model.patch}; set "
            f"--config.data.size to a multiple of {model.patch}"
        )

    def encode(variables, rows):
        x = augment.evaluate(rows["image"], size, view.mean, view.std)
        return Batch(feature_map(model, variables, x, stage), rows["mask"], rows["depth"])

    return mapping.compile_rows(encode, mesh)


def compile_pixels(side: int, mesh, size: int) -> Encode:
    """The same for raw pixels: the feature of a cell is the patch of the image that it covers.

    Args:
      side: cells of a row, h = w.
      mesh: from `layout.mesh()`.
      size: side S of the images, pixels. A patch has p = ⌈S / h⌉ pixels a side; where h·p ≠ S the
        image is resized to h·p first.
    """
    p = -(-size // side)

    def encode(_, rows):
        x = augment.evaluate(rows["image"], side * p)
        cells = patchify(x, p)  # [b, h·w, p·p·C]
        return Batch(cells.reshape(len(x), side, side, -1), rows["mask"], rows["depth"])

    return mapping.compile_rows(encode, mesh)


# No class and no depth is known of rows that pad a batch.
PADDING = {"mask": -1, "depth": -1}


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
        shares = {f: getattr(cluster, f) for f in ("process", "processes", "here")}
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
