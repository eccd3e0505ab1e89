"""Running an encoder over a split once, and keeping what comes out."""

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np


def extract(
    apply: Callable[[Any], jax.Array],
    batches: Iterable[Mapping[str, Any]],
    ahead: int = 8,
) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of every example, in the order in which they come.

    The host does not wait for a batch before it dispatches the next: outputs start copying to
    the host at once, and at most `ahead` of them live on the device. Padding is cut on the host,
    so that every batch has one compiled shape.

    Args:
      apply: compiled encoder, image uint8 [b, H, W, C] -> features [b, d] (any float). Its output
        must be readable by this process (local or replicated).
      batches: mappings with
        'image' [b, …], whatever `apply` takes;
        'label' int [b], -1 for none;
        'valid' bool [b], optional: False on rows that pad the last batch. Without it, all rows
        count.
      ahead: outputs in flight.

    Returns:
      features float32 [n, d] and labels int32 [n] on the host.

    Raises:
      ValueError: `batches` is empty, or holds padding alone.
    """
    flight: collections.deque = collections.deque()
    features: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def land():
        out, label, valid = flight.popleft()
        # A copy: on CPU the view would keep the device buffer, padding and all, alive.
        out, label = np.array(out, np.float32), np.array(label, np.int32)
        keep = slice(None) if valid is None else np.asarray(valid, bool)
        features.append(out[keep])
        labels.append(label[keep])

    for batch in batches:
        out = apply(batch["image"])
        out.copy_to_host_async()
        flight.append((out, batch["label"], batch.get("valid")))
        if len(flight) > ahead:
            land()
    while flight:
        land()
    if not sum(map(len, features)):
        raise ValueError("extract: no examples came out of `batches`")
    return np.concatenate(features), np.concatenate(labels)
