"""Helpers shared by the tests of data/: a config, and pictures as bytes."""

import io

import ml_collections
import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def config():
    """Makes config.data with the given fields changed."""

    def make(**changes):
        fields = {
            "source": "digits", "dir": None, "size": 16, "channels": 3, "fit": "crop",
            "labels": False,
            "range": None, "max_bad": 0.01, "cache_bytes": 1 << 30, "threads": 0, "ahead": 2,
            "train_split": "train", "test_split": "test", "examples": 1000, "classes": 10,
        }  # fmt: skip
        return ml_collections.ConfigDict(fields | changes)

    return make


@pytest.fixture(scope="session")
def encode():
    """(array or Pillow image, format, **options of Pillow's save) -> bytes."""

    def encode(picture, format, **options):
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        out = io.BytesIO()
        picture.save(out, format, **options)
        return out.getvalue()

    return encode


@pytest.fixture(scope="session")
def smooth():
    """A picture that JPEG keeps within a few levels: uint8 [h, w, 3] of slopes."""

    def smooth(h, w):
        y, x = np.mgrid[:h, :w]
        return np.stack([x * 200 / w, y * 200 / h, (x / w + y / h) * 100 + 20], -1).astype(np.uint8)

    return smooth


@pytest.fixture(scope="session")
def broken(encode, smooth):
    """Five files that hold no readable picture: name -> bytes."""
    jpeg = encode(smooth(120, 90), "JPEG", quality=95)
    png = encode(smooth(20, 30), "PNG")
    # Width and height of a PNG stand at bytes 16 to 24, their checksum at 29 to 33.
    import zlib

    header = png[12:16] + (60_000).to_bytes(4) * 2 + png[24:29]
    return {
        "truncated.jpg": jpeg[: len(jpeg) // 2],
        "empty.png": b"",
        "text.png": b"<html>404 not found</html>",
        "header.jpg": b"\x00\x00\x00\x00" + jpeg[4:],
        "bomb.png": png[:12] + header + zlib.crc32(header).to_bytes(4) + png[33:],
    }
