"""Bombs: little files that promise much, or unpack to much."""

import io
import random
import struct
import zlib
from collections.abc import Callable

from kit.pictures.damages import LIMIT, resized, valid


def png(w: int, h: int, depth: int, colour: int, data: bytes, *chunks, interlaced=0) -> bytes:
    """A PNG: [(name, content)] between header and data; `data` is compressed already."""

    def chunk(name, content):
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    ihdr = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, interlaced)
    parts = [(b"IHDR", ihdr), *chunks, (b"IDAT", data), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*p) for p in parts)


def zeros(count: int) -> bytes:
    """`count` zero bytes as a zlib stream, a thousandth of them, at no cost.

    After a full flush the same block compresses to the same bytes, so they are repeated. Adler-32
    of n zeros is (n mod 65,521) · 2^16 + 1.
    """
    packer, block = zlib.compressobj(9, wbits=-15), 1 << 20
    first = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    again = packer.compress(bytes(block)) + packer.flush(zlib.Z_FULL_FLUSH)
    last = packer.compress(bytes(count % block)) + packer.flush()
    body = (first + again * (count // block - 1) if count >= block else b"") + last
    return b"\x78\xda" + body + struct.pack(">I", count % 65_521 << 16 | 1)


def tiff(*tags: tuple[int, int, int, int], rest: bytes = b"") -> bytes:
    """A little-endian TIFF of (tag, type, count, value or offset); `rest` follows the tags."""
    directory = b"".join(struct.pack("<HHII", *t) for t in sorted(tags))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + directory + bytes(4) + rest


def many_tags() -> bytes:
    """5,000 tags that all claim the same 60 kB: 300 MB of a file of 120 kB."""
    return tiff(*((1_000 + i, 1, 60_000, 10) for i in range(5_000)), rest=bytes(60_000))


def tile(side: int) -> bytes:
    """A TIFF of 16 x 16 pixels whose one tile, compressed, is `side` x `side`."""
    data = zeros(side * side)
    at = 8 + 2 + 12 * 10 + 4
    return tiff(
        (256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
        (277, 3, 1, 1), (322, 4, 1, side), (323, 4, 1, side), (324, 4, 1, at),
        (325, 4, 1, len(data)), rest=data,
    )  # fmt: skip


def strip(w: int, h: int, rows: int) -> bytes:
    """A TIFF of w x h grey pixels in one compressed strip of `rows` rows."""
    data = zeros(min(w * h, 1 << 28))
    at = 8 + 2 + 12 * 9 + 4
    return tiff(
        (256, 4, 1, w), (257, 4, 1, h), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
        (273, 4, 1, at), (277, 3, 1, 1), (278, 4, 1, rows), (279, 4, 1, len(data)), rest=data,
    )  # fmt: skip


def scans(side: int, count: int) -> bytes:
    """A progressive JPEG of side x side pixels whose last scan is repeated `count` times."""
    data = resized(valid("jpg progressive"), ".jpg", side, side)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def frames(count: int) -> bytes:
    """A GIF of many frames."""
    data = valid("gif plain")
    frame = data.index(b"\x2c\0\0\0\0")
    return data[:frame] + data[frame:-1] * count + data[-1:]


def solid_webp(side: int) -> bytes:
    """One colour, lossless: a pixel takes 0 bits, so any size fits in 40 bytes."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16), (9, 8, 7)).save(file, "WEBP", lossless=True)
    return resized(file.getvalue(), ".webp", side, side)


def run_length_bmp(w: int, h: int) -> bytes:
    """A BMP of w x h pixels in 8-bit run lengths that end at once."""
    info = struct.pack("<IiiHHIIiiII", 40, w, h, 1, 8, 1, 4, 0, 0, 256, 0)
    at = 14 + len(info) + 1024
    return b"BM" + struct.pack("<IHHI", at + 2, 0, 0, at) + info + bytes(1024) + b"\0\1"


def jpeg_tags() -> bytes:
    """A JPEG with 20 segments of EXIF whose tags all claim the same 60 kB."""
    inner = many_tags()
    parts = [inner[i : i + 65_000] for i in range(0, len(inner), 65_000)]
    segments = [b"\xff\xe1" + struct.pack(">H", len(p) + 8) + b"Exif\0\0" + p for p in parts]
    data = valid("jpg baseline")
    return data[:2] + b"".join(segments) + data[2:]


def _palette(*more):
    return ((b"PLTE", bytes(range(256)) * 3), *more)


Bomb = tuple[str, str, Callable[[], bytes]]  # name, extension, what makes it
BOMBS: tuple[Bomb, ...] = (
    ("PNG of 100,000 x 100,000", ".png", lambda: png(100_000, 100_000, 8, 2, zeros(1 << 24))),
    ("PNG of 2^31 x 2^31", ".png", lambda: png(2**31 - 1, 2**31 - 1, 8, 6, zeros(1 << 20))),
    ("grey PNG at the limit", ".png",
     lambda: png(LIMIT, LIMIT, 8, 0, zeros(LIMIT * (LIMIT + 1)))),
    ("RGBA PNG at the limit", ".png",
     lambda: png(LIMIT, LIMIT, 8, 6, zeros(LIMIT * (4 * LIMIT + 1)))),
    ("16-bit RGBA PNG at the limit", ".png",
     lambda: png(LIMIT, LIMIT, 16, 6, zeros(LIMIT * (8 * LIMIT + 1)))),
    ("16-bit grey PNG at the limit", ".png",
     lambda: png(LIMIT, LIMIT, 16, 0, zeros(LIMIT * (2 * LIMIT + 1)))),
    ("clear palette PNG at the limit", ".png",
     lambda: png(LIMIT, LIMIT, 8, 3, zeros(LIMIT * (LIMIT + 1)), *_palette((b"tRNS", bytes(9))))),
    ("interlaced PNG at the limit", ".png",
     lambda: png(LIMIT, LIMIT, 8, 2, zeros(3 * LIMIT * LIMIT + 4 * LIMIT), interlaced=1)),
    ("PNG of 1 x 89,000,000", ".png", lambda: png(1, 89_000_000, 8, 2, zeros(4 * 89_000_000))),
    ("PNG of 89,000,000 x 1", ".png", lambda: png(89_000_000, 1, 8, 2, zeros(3 * 89_000_000 + 1))),
    ("PNG with 1 GiB of text", ".png",
     lambda: png(16, 16, 8, 0, zeros(16 * 17), *[(b"zTXt", b"a\0\0" + zeros(1 << 20))] * 1024)),
    ("PNG with a colour profile of 1 GiB", ".png",
     lambda: png(16, 16, 8, 0, zeros(16 * 17), (b"iCCP", b"a\0\0" + zeros(1 << 30)))),
    ("PNG with 1 GiB of pixels too many", ".png", lambda: png(16, 16, 8, 0, zeros(1 << 30))),
    ("PNG with EXIF tags that overlap", ".png",
     lambda: png(16, 16, 8, 0, zeros(16 * 17), (b"eXIf", many_tags()))),
    ("JPEG of 65,535 x 65,535", ".jpg",
     lambda: resized(valid("jpg baseline"), ".jpg", 65_535, 65_535)),
    ("JPEG that ends long before its limit", ".jpg",
     lambda: resized(valid("jpg baseline"), ".jpg", LIMIT, LIMIT)),
    ("progressive JPEG that ends long before its limit", ".jpg",
     lambda: resized(valid("jpg progressive"), ".jpg", LIMIT, LIMIT)),
    ("CMYK JPEG that ends long before its limit", ".jpg",
     lambda: resized(valid("jpg CMYK"), ".jpg", LIMIT, LIMIT)),
    ("JPEG of 10,000 scans at the limit", ".jpg", lambda: scans(LIMIT, 10_000)),
    ("JPEG of 10,000 scans", ".jpg", lambda: scans(1_000, 10_000)),
    ("JPEG with EXIF tags that overlap", ".jpg", jpeg_tags),
    ("GIF of 65,535 x 65,535", ".gif",
     lambda: resized(valid("gif plain"), ".gif", 65_535, 65_535)),
    ("GIF at the limit", ".gif", lambda: resized(valid("gif plain"), ".gif", LIMIT, LIMIT)),
    ("GIF of 5,000 frames", ".gif", lambda: frames(5_000)),
    ("TIFF of 2^31 x 2^31", ".tif", lambda: strip(2**31 - 1, 2**31 - 1, 1)),
    ("TIFF at the limit", ".tif", lambda: strip(LIMIT, LIMIT, LIMIT)),
    ("TIFF with a strip of 2^31 rows", ".tif", lambda: strip(16, 16, 2**31 - 1)),
    ("TIFF with a tile of 16,000 x 16,000", ".tif", lambda: tile(16_000)),
    ("TIFF with a tile of 46,000 x 46,000", ".tif", lambda: tile(46_000)),
    ("TIFF with tags that overlap", ".tif", many_tags),
    ("WebP of 16,383 x 16,383", ".webp", lambda: solid_webp(16_383)),
    ("WebP at the limit", ".webp", lambda: solid_webp(LIMIT)),
    ("animated WebP of 2^24 x 2^24", ".webp",
     lambda: resized(valid("webp animated"), ".webp", 2**24, 2**24)),
    ("animated WebP at the limit", ".webp",
     lambda: resized(valid("webp animated"), ".webp", LIMIT, LIMIT)),
    ("BMP of 2^31 x 2^31", ".bmp", lambda: run_length_bmp(2**31 - 1, 2**31 - 1)),
    ("BMP of run lengths at the limit", ".bmp", lambda: run_length_bmp(LIMIT, LIMIT)),
    ("PPM of 100,000 x 100,000", ".ppm", lambda: b"P6\n100000 100000\n255\n" + bytes(3_000)),
    ("PPM in digits at the limit", ".ppm", lambda: b"P3\n9459 9459\n255\n" + b"1 " * 30_000),
    ("no picture: nothing", ".jpg", lambda: b""),
    ("no picture: noise", ".png", lambda: random.Random(0).randbytes(10_000)),
    ("no picture: a web page", ".gif", lambda: b"<html><body>404 not found</body></html>"),
    ("no picture: PostScript", ".tif", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n"),
)  # fmt: skip
