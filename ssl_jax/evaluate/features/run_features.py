"""Features of a run's images, as probes learn from them: gathered, or each process its own."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from ssl_jax.contract.encoder import Encoder
from ssl_jax.data import loader
from ssl_jax.devices import layout
from ssl_jax.errors import UserError
from ssl_jax.evaluate.features import apart, encoder, representation
from ssl_jax.evaluate.probing import Opened
from ssl_jax.processes import host


class Features(NamedTuple):
    """Features of labelled images.

    Attributes:
      train, train_labels: float32 [n, d], int32 [n].
      test, test_labels: float32 [m, d], int32 [m].
      images_per_second: of the encoder, both sets.
    """

    train: np.ndarray
    train_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    images_per_second: float


class FeaturesApart(NamedTuple):
    """As `Features`, but no process has all rows to learn from.

    Attributes:
      train: n rows.
      test, test_labels: float32 [m, d], int32 [m], on every process.
      images_per_second: of the encoder, both sets, all processes.
    """

    train: apart.Apart
    test: np.ndarray
    test_labels: np.ndarray
    images_per_second: float


def labels_of(part: representation.Part) -> np.ndarray:
    """Labels int32 [n] of the rows of a part. Their images are read and decoded for it."""
    source = part.source._replace(
        examples=len(part.rows), read=lambda i: part.source.read(part.rows[i])
    )
    with loader.in_order(source, batch=min(1_000, len(part.rows))) as batches:
        return np.concatenate([batch["label"] for batch in batches])[: len(part.rows)]


def features(o: Opened, batch: int, which: str = "learned") -> Features:
    """Features of the images to learn from and of those to be judged on.

    Args:
      o: a run with labels.
      batch: images at a time over all devices.
      which: of probing.FEATURES. 'pixels': no encoder, `representation.pixels`; else see `network`.
    """
    began = time.perf_counter()
    if which == "pixels":
        both = [representation.pixels(part) for part in (o.learn, o.judge)]
    else:
        variables, read = network(o, which)
        encode = encoder.compile_encode(read.features, o.mesh)
        both = [
            encoder.extract(encode, variables, *part, batch, o.cluster)
            for part in (o.learn, o.judge)
        ]
    seconds = time.perf_counter() - began
    (train, train_labels), (test, test_labels) = both
    representation.check_classes(train_labels, test_labels)
    return Features(train, train_labels, test, test_labels, (len(train) + len(test)) / seconds)


def features_apart(
    o: Opened,
    batch: int,
    which: str = "learned",
    read: Callable[[Any, Any], jax.Array] | None = None,
) -> FeaturesApart:
    """As `features`, for sets beyond the memory of one host.

    Every process computes the features of its own rows, by itself; those to be judged on are
    gathered.

    Args:
      o, batch, which: as for `features`.
      read: (variables, batch) -> [b, d], instead of the encoder's own features; `which` is then
        'learned'.
    """
    began = time.perf_counter()
    if which == "pixels":
        compute = representation.pixels
    else:
        variables, own = network(o, which)
        here = layout.mesh(jax.local_devices())
        encode = encoder.compile_encode(read or own.features, here)
        compute = computing(encode, layout.put_here(variables), batch)
    train, test = (part_apart(compute, part, o.mesh) for part in (o.learn, o.judge))
    representation.check_classes(train.labels, test.labels)
    n = len(train.labels) + len(test.labels)
    speed = n / (time.perf_counter() - began)
    return FeaturesApart(train, apart.gather(test), test.labels, speed)


def computing(
    encode: Callable[[Any, Any], dict[str, jax.Array]], whole: Any, batch: int
) -> Callable[[representation.Part], tuple[np.ndarray, np.ndarray]]:
    """part -> features and labels, computed by this process alone.

    Args:
      encode: from `encoder.compile_encode`, for the devices of this process.
      whole: what it takes besides rows, there.
      batch: images at a time over the devices of all processes.
    """
    batch = -(-batch // jax.process_count())
    return lambda part: encoder.extract(encode, whole, *part, batch, host.Cluster(1, 0, 1))


def part_apart(
    compute: Callable[[representation.Part], tuple[np.ndarray, np.ndarray]],
    part: representation.Part,
    mesh: Any,
) -> apart.Apart:
    """`apart.extract` of the rows of a part.

    Args:
      compute: part -> features float32 [r, d], labels int32 [r]; see `computing`.
      part: the rows.
      mesh: all devices.
    """
    # CPU devices of a process share its memory: dealt to one of them, a probe of one process is the
    # very program that the run ends with, and finds its numbers to the bit.
    dealt = layout.repeating(mesh)
    return apart.extract(lambda rows: compute(part._replace(rows=rows)), part.rows, dealt)


def network(o: Opened, which: str) -> tuple[Any, Encoder]:
    """What makes the features of a run.

    Args:
      o: the run.
      which: 'learned': the encoder; 'untrained': the encoder as the run began; 'projector': the
        embeddings that the loss compares, the projector behind the encoder.

    Returns:
      (variables, encoder).

    Raises:
      UserError: 'projector' of a method without one.
    """
    saved = o.restored.saved
    if which == "untrained":
        return encoder.untrained(saved, o.mesh, o.encoder), o.restored.encoder
    if which == "projector":
        method, _ = encoder.creation(saved)
        if "projector" not in method.encoders:
            raise UserError(
                f"{saved.config.method.name} has no projector; use --config.features=learned"
            )
        found = encoder.restore(
            o.run,
            o.mesh,
            "projector",
            step=str(o.restored.step),
            dtype=saved.config.model.get("dtype"),
        )
        return found.variables, found.encoder
    return o.restored.variables, o.restored.encoder
