"""Noise that costs nothing to read: for benchmarks and tests."""

import numpy as np

from ssl_jax.contract import batch
from ssl_jax.contract.source import Source
from ssl_jax.errors import UserError

POOL_BYTES = 1 << 26


def open_synthetic(split: str, data) -> Source:
    """`data.examples` pictures of noise to train, a quarter of that to test.

    Picture i is pool[i mod P] + 37·(i div P) mod 256, with P pictures of Philox([0 or 1]) noise;
    its label is i mod `data.classes`. There is nothing to learn in it.
    """
    if data.examples < 1 or data.classes < 0:
        raise UserError(
            f"data.examples={data.examples} must be at least 1 and data.classes={data.classes} at "
            f"least 0."
        )
    n = data.examples if split == "train" else max(1, data.examples // 4)
    shape = (data.size, data.size, data.channels)
    room = POOL_BYTES // (data.size * data.size * data.channels)
    count = max(1, min(n, 1024, room))
    random = np.random.Generator(np.random.Philox([0 if split == "train" else 1]))
    pool = random.integers(0, 256, (count, *shape), np.uint8)

    def read(rows):
        rows = np.asarray(rows)
        images = pool.take(rows % count, axis=0)
        images += (rows // count * 37 % 256).astype(np.uint8)[:, None, None, None]
        labels = rows % data.classes if data.classes else np.full(len(rows), -1)
        return {
            "image": images,
            "index": rows.astype(np.int32),
            "label": labels.astype(np.int32),
        }

    names = tuple(str(c) for c in range(data.classes))
    fields = batch.image(data.size, data.channels)
    return Source(f"synthetic {split}", n, data.classes, fields, read, lambda: [], names)
