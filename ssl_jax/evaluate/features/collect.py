"""Running an encoder over a split once, and keeping what comes out."""

import collections
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np


def extract(outputs: Iterable[Mapping[str, Any]], ahead: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of every example, in the order in which they come.

    The host does not wait for a batch before it dispatches the next: outputs start copying to
    the host at once, and at most `ahead` of them live on the device. Padding is cut on the host,
    so that every batch has one compiled shape.

    Args:
      outputs: what a compiled encoder makes of batch after batch, readable by this process (local
        or replicated); mappings with
        'features' [b, …], of any floating dtype;
        'label' int [b], -1 for none;
        'valid' bool [b], optional: False on rows that pad the last batch. Without it, all rows
        count.
      ahead: outputs in flight.

    Returns:
      features float32 [n, d] and labels int32 [n] on the host.

    Raises:
      ValueError: `outputs` is empty, or holds padding alone.
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

    for batch in outputs:
        batch["features"].copy_to_host_async()
        flight.append((batch["features"], batch["label"], batch.get("valid")))
        if len(flight) > ahead:
            land()
    while flight:
        land()
    if not sum(map(len, features)):
        raise ValueError("extract: no examples came out of `outputs`")
    return np.concatenate(features), np.concatenate(labels)
