import threading

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.contract.source import Source
from ssl_jax.evaluate.features import collect, encoder, representation
from ssl_jax.evaluate.features.representation import Part
from ssl_jax.processes import host


def outputs(n=10, b=4, marked=True):
    """Images 0, 1, 2 … of 2×2×1; the last batch is padded with 255."""
    for start in range(0, n, b):
        index = np.arange(start, start + b)
        valid = index < n
        image = np.where(valid, index, 255).astype(np.uint8)
        batch = {
            "features": encode(np.broadcast_to(image[:, None, None, None], (b, 2, 2, 1))),
            "label": np.where(valid, index % 3, -1),
        }
        yield batch | ({"valid": valid} if marked else {})


@jax.jit
def encode(image):
    x = image.astype(jnp.bfloat16)
    return jnp.stack([x.mean((1, 2, 3)), x.sum((1, 2, 3))], axis=1)


@pytest.mark.parametrize("ahead", [0, 1, 8])
def test_order_and_padding(ahead):
    x, y = collect.extract(outputs(), ahead)
    assert x.dtype == np.float32 and y.dtype == np.int32
    np.testing.assert_array_equal(x, [[i, 4 * i] for i in range(10)])
    np.testing.assert_array_equal(y, [i % 3 for i in range(10)])


def test_a_short_last_batch_takes_no_program_of_its_own():
    """Ten rows in batches of four: the last is padded, and nothing is traced anew."""
    fields = {"image": jax.ShapeDtypeStruct((2, 2, 1), np.uint8)}

    def read(rows):
        image = np.broadcast_to(rows.astype(np.uint8)[:, None, None, None], (len(rows), 2, 2, 1))
        return {"image": image, "index": rows.astype(np.int32), "label": rows.astype(np.int32) % 3}

    @jax.jit
    @chex.assert_max_traces(1)
    def encoded(variables, rows):
        features = encode(rows["image"])
        return {"features": features, "label": rows["label"], "valid": rows["index"] >= 0}

    chex.clear_trace_counter()
    alone = host.Cluster(1, 0, 1)
    source = Source("ten", 10, fields=fields, read=read, classes=3, bad=lambda: {})
    x, y = encoder.extract(encoded, None, source, np.arange(10), 4, alone)
    np.testing.assert_array_equal(x[:, 0], np.arange(10))
    np.testing.assert_array_equal(y, np.arange(10) % 3)


def test_without_marks_every_row_counts():
    x, y = collect.extract(outputs(n=8, marked=False))
    assert x.shape == (8, 2) and y.shape == (8,)


def test_outputs_in_flight_are_bounded():
    """The next output is only asked for when at most `ahead` are waiting."""
    waiting = 0
    most = 0

    class Output:
        def __init__(self, n):
            nonlocal waiting, most
            waiting += 1
            most = max(most, waiting)
            self.n = n

        def copy_to_host_async(self):
            pass

        def __array__(self, dtype=None, copy=None):
            nonlocal waiting
            waiting -= 1
            return np.zeros((self.n, 3), dtype)

    labels = np.zeros(4, np.int32)
    made = ({"features": Output(4), "label": labels} for _ in range(10))
    x, _ = collect.extract(made, ahead=2)
    assert x.shape == (40, 3)
    assert most == 3  # two in flight and the newest


def test_nothing_comes_out():
    with pytest.raises(ValueError, match="no examples"):
        collect.extract([])


def test_pixels_are_read_by_the_loader_in_order():
    """Rows out of order and batches that do not divide; the readers are not this thread."""
    readers = set()

    def read(rows):
        readers.add(threading.current_thread().name)
        rows = np.asarray(rows)
        images = np.broadcast_to(rows[:, None, None, None], (len(rows), 2, 2, 1)).astype(np.uint8)
        return {
            "image": images,
            "index": rows.astype(np.int32),
            "label": (rows % 4).astype(np.int32),
        }

    fields = {"image": jax.ShapeDtypeStruct((2, 2, 1), np.uint8)}
    part = Part(Source("x", 200, 4, fields, read, lambda: []), np.array([9, 150, 3, 77, 20]))
    found, labels = representation.pixels(part, batch=2)
    expected = np.repeat(part.rows[:, None] / 255, 4, axis=1)
    np.testing.assert_allclose(found, expected.astype(np.float32), rtol=1e-6)
    np.testing.assert_array_equal(labels, part.rows % 4)
    assert readers and all(name.startswith("ssl_jax_loader") for name in readers)
