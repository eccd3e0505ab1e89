"""Damaged pictures, read as a run reads them: nothing may crash, hang or take the memory.

python -m benchmarks.fuzz_pictures --damages 1000 --seed 0

Makes small pictures of every format that the library reads, damages them, and reads each through
`folder:`, the library's own source, in a process of its own whose address space is bounded. Prints
for every kind of damage how many pictures were read all the same and how many were named and
replaced by their neighbour; how many reads crashed the process, did not end, or wanted more memory
than there was (all three must be 0); the greatest resident memory; the slowest read. Exits with 1
if a must is broken. Linux; the output of the command above is in docs/reliability.md.
"""

import argparse
import collections
import functools
import io
import json
import os
import pathlib
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import types
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

LIMIT = 9_459  # side of the largest square that decode.MAX_PIXELS allows
ADDRESS_SPACE = 3 << 30  # bytes that a reading process may map beyond what it holds at its start
PATIENCE = 600.0  # seconds by the clock after which a read counts as hung
EXTREMES = (0, 1, 2, 255, 256, 32_767, 32_768, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)


class Damaged(NamedTuple):
    """One damaged picture: the kind of damage, a more exact name, the extension, the bytes."""

    kind: str
    name: str
    extension: str
    data: bytes


class Outcome(NamedTuple):
    """What became of it: 'read', 'replaced', 'no memory', 'hung' or 'crashed'.

    Attributes:
      result: one of these.
      reason: what the log said, or the signal.
      seconds: of processor time that the read took (by the clock, if it did not end).
      peak: greatest resident bytes of the process during the read.
    """

    result: str
    reason: str
    seconds: float
    peak: int


# ---- pictures in order


@functools.cache
def whole() -> tuple[tuple[str, str, bytes], ...]:
    """Small valid pictures of every format and its variants: (name, extension, bytes)."""
    from PIL import Image

    y, x = np.mgrid[:48, :61]
    rgb = np.stack([x * 4, y * 5, (x * y) % 256], -1).astype(np.uint8)
    colour, deep = Image.fromarray(rgb), Image.fromarray((x * y * 23).astype(np.uint16))
    clear = Image.fromarray(np.concatenate([rgb, (y * 5)[..., None].astype(np.uint8)], -1))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    more = {"save_all": True, "append_images": [colour.rotate(a) for a in (90, 180)]}
    made = (
        ("baseline", ".jpg", colour, "JPEG", {}),
        ("progressive", ".jpg", colour, "JPEG", {"progressive": True}),
        ("grey", ".jpg", colour.convert("L"), "JPEG", {}),
        ("CMYK", ".jpg", colour.convert("CMYK"), "JPEG", {}),
        ("EXIF", ".jpg", colour, "JPEG", {"exif": exif}),
        ("RGB", ".png", colour, "PNG", {"exif": exif}),
        ("palette", ".png", colour.convert("P"), "PNG", {"transparency": 3}),
        ("alpha", ".png", clear, "PNG", {}),
        ("16 bit", ".png", deep, "PNG", {}),
        ("1 bit", ".png", colour.convert("1"), "PNG", {}),
        ("animated", ".png", colour, "PNG", more),
        ("lossy", ".webp", colour, "WEBP", {"exif": exif}),
        ("lossless", ".webp", clear, "WEBP", {"lossless": True}),
        ("animated", ".webp", colour, "WEBP", more),
        ("RGB", ".bmp", colour, "BMP", {}),
        ("palette", ".bmp", colour.convert("P"), "BMP", {}),
        ("plain", ".gif", colour.convert("P"), "GIF", {}),
        ("animated", ".gif", colour.convert("P"), "GIF", more),
        ("raw", ".tif", colour, "TIFF", {}),
        ("LZW", ".tif", clear, "TIFF", {"compression": "tiff_lzw"}),
        ("deflate", ".tif", deep, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("JPEG", ".tif", colour, "TIFF", {"compression": "jpeg"}),
        ("fax", ".tif", colour.convert("1"), "TIFF", {"compression": "group4"}),
        ("colour", ".ppm", colour, "PPM", {}),
        ("16 bit", ".pgm", deep, "PPM", {}),
    )
    out = []
    for name, extension, picture, form, options in made:
        file = io.BytesIO()
        picture.save(file, form, **options)
        out.append((f"{extension[1:]} {name}", extension, file.getvalue()))
    return tuple(out)


# ---- damages: (random, bytes, extension) -> bytes


def truncated(rng: random.Random, data: bytes, extension: str) -> bytes:
    """The first part of a file."""
    return data[: rng.randrange(len(data))]


def flipped(rng: random.Random, data: bytes, extension: str) -> bytes:
    """1 to 64 random bytes, anywhere; half of the PNGs get their checksums right again."""
    out = bytearray(data)
    for _ in range(2 ** rng.randrange(7)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return sealed(rng, bytes(out), extension)


def header(rng: random.Random, data: bytes, extension: str) -> bytes:
    """Some of the first 64 bytes are random."""
    start, length = rng.randrange(60), rng.choice((1, 2, 4, 8, 16))
    noise = rng.randbytes(length)
    return sealed(rng, (data[:start] + noise + data[start + length :])[: len(data)], extension)


def numbers(rng: random.Random, data: bytes, extension: str) -> bytes:
    """One to four numbers of the first 400 bytes are extreme: lengths, counts, offsets, sizes."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        width = rng.choice((2, 4))
        place = rng.randrange(min(len(out), 400) - width)
        order = rng.choice(("big", "little"))
        value = rng.choice(EXTREMES) % (1 << 8 * width)
        out[place : place + width] = value.to_bytes(width, order)
    return sealed(rng, bytes(out), extension)


def spliced(rng: random.Random, data: bytes, extension: str) -> bytes:
    """The head of one file and the tail of another, of any format."""
    _, _, other = rng.choice(whole())
    return data[: rng.randrange(1, len(data))] + other[rng.randrange(len(other)) :]


def dimensions(rng: random.Random, data: bytes, extension: str) -> bytes:
    """Width and height as the header gives them are extreme, all else is in order."""
    extreme = (*EXTREMES, 100_000, LIMIT, rng.randrange(2**32), rng.randrange(4_000))
    w, h = rng.choice(extreme), rng.choice(extreme)
    return resized(data, extension, w, h)


def resized(data: bytes, extension: str, w: int, h: int) -> bytes:
    """The file with another width and height in its header, each cut to the bits it has there."""
    out = bytearray(data)
    if extension == ".png":
        out[16:24] = struct.pack(">II", w, h)
        return sealed(None, bytes(out), extension)
    if extension == ".jpg":
        frame = next(i for i in range(len(out)) if out[i] == 0xFF and out[i + 1] in (0xC0, 0xC2))
        out[frame + 5 : frame + 9] = struct.pack(">HH", h % 65_536, w % 65_536)
    elif extension == ".gif":
        out[6:10] = struct.pack("<HH", w % 65_536, h % 65_536)
        frame = out.index(b"\x2c\0\0\0\0")
        out[frame + 5 : frame + 9] = out[6:10]
    elif extension == ".bmp":
        out[18:26] = struct.pack("<II", w, h)
    elif extension == ".webp":
        if out[12:16] == b"VP8X":
            out[24:27], out[27:30] = (((v - 1) % 2**24).to_bytes(3, "little") for v in (w, h))
        at = out.find(b"VP8L")
        if at > 0:
            bits = int.from_bytes(out[at + 9 : at + 13], "little") >> 28 << 28
            bits |= (w - 1) % 16_384 | (h - 1) % 16_384 << 14
            out[at + 9 : at + 13] = bits.to_bytes(4, "little")
        at = out.find(b"VP8 ")
        if at > 0:
            out[at + 14 : at + 18] = struct.pack("<HH", w % 16_384, h % 16_384)
    elif extension == ".tif":
        (at,) = struct.unpack_from("<I", out, 4)
        for i in range(struct.unpack_from("<H", out, at)[0]):
            tag = at + 2 + 12 * i
            if struct.unpack_from("<H", out, tag)[0] in (256, 257):
                value = w if out[tag] == 0 else h
                out[tag + 2 : tag + 12] = struct.pack("<HII", 4, 1, value)
    else:
        start, _, rest = bytes(out).split(b"\n", 2)
        return b"\n".join([start, f"{w} {h}".encode(), rest])
    return bytes(out)


def sealed(rng: random.Random | None, data: bytes, extension: str) -> bytes:
    """A PNG with the checksums that its chunks should have (with `rng`: half of them)."""
    if extension != ".png" or (rng and rng.random() < 0.5):
        return data
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, at)
        end = at + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


DAMAGES = (truncated, flipped, header, numbers, spliced, dimensions)


# ---- bombs: little files that promise or unpack to much


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
    data = resized(_valid("jpg progressive"), ".jpg", side, side)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def frames(count: int) -> bytes:
    """A GIF of many frames."""
    data = _valid("gif plain")
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
    data = _valid("jpg baseline")
    return data[:2] + b"".join(segments) + data[2:]


def _valid(name: str) -> bytes:
    return next(data for n, _, data in whole() if n == name)


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
     lambda: resized(_valid("jpg baseline"), ".jpg", 65_535, 65_535)),
    ("JPEG that ends long before its limit", ".jpg",
     lambda: resized(_valid("jpg baseline"), ".jpg", LIMIT, LIMIT)),
    ("progressive JPEG that ends long before its limit", ".jpg",
     lambda: resized(_valid("jpg progressive"), ".jpg", LIMIT, LIMIT)),
    ("CMYK JPEG that ends long before its limit", ".jpg",
     lambda: resized(_valid("jpg CMYK"), ".jpg", LIMIT, LIMIT)),
    ("JPEG of 10,000 scans at the limit", ".jpg", lambda: scans(LIMIT, 10_000)),
    ("JPEG of 10,000 scans", ".jpg", lambda: scans(1_000, 10_000)),
    ("JPEG with EXIF tags that overlap", ".jpg", jpeg_tags),
    ("GIF of 65,535 x 65,535", ".gif",
     lambda: resized(_valid("gif plain"), ".gif", 65_535, 65_535)),
    ("GIF at the limit", ".gif", lambda: resized(_valid("gif plain"), ".gif", LIMIT, LIMIT)),
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
     lambda: resized(_valid("webp animated"), ".webp", 2**24, 2**24)),
    ("animated WebP at the limit", ".webp",
     lambda: resized(_valid("webp animated"), ".webp", LIMIT, LIMIT)),
    ("BMP of 2^31 x 2^31", ".bmp", lambda: run_length_bmp(2**31 - 1, 2**31 - 1)),
    ("BMP of run lengths at the limit", ".bmp", lambda: run_length_bmp(LIMIT, LIMIT)),
    ("PPM of 100,000 x 100,000", ".ppm", lambda: b"P6\n100000 100000\n255\n" + bytes(3_000)),
    ("PPM in digits at the limit", ".ppm", lambda: b"P3\n9459 9459\n255\n" + b"1 " * 30_000),
    ("no picture: nothing", ".jpg", lambda: b""),
    ("no picture: noise", ".png", lambda: random.Random(0).randbytes(10_000)),
    ("no picture: a web page", ".gif", lambda: b"<html><body>404 not found</body></html>"),
    ("no picture: PostScript", ".tif", lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n"),
)  # fmt: skip


def damaged(count: int, seed: int, bombs: Sequence[Bomb] = BOMBS) -> Iterator[Damaged]:
    """`count` damaged pictures: every bomb once, the rest of the other kinds in turn.

    The same arguments give the same pictures.
    """
    rng, bombs = random.Random(seed), bombs[:count]
    for name, extension, make in bombs:
        yield Damaged("bomb", name, extension, make())
    for i in range(count - len(bombs)):
        damage = DAMAGES[i % len(DAMAGES)]
        name, extension, data = rng.choice(whole())
        yield Damaged(damage.__name__, name, extension, damage(rng, data, extension))


# ---- reading


def read_one(folder: str) -> tuple[str, str]:
    """Reads the first of the two pictures of a folder as a run would: ('read' …, reason)."""
    from ssl_jax.data.sources.folder import open_folder

    fields = {"size": 224, "channels": 3, "fit": "crop", "labels": False, "max_bad": 1.0}
    splits = {"cache_bytes": 0, "train_split": "train", "test_split": "test"}
    source = open_folder(folder, "train", types.SimpleNamespace(**fields, **splits))
    batch = source.read([0])
    assert batch["image"].shape == (1, 224, 224, 3) and batch["image"].dtype == np.uint8
    if batch["index"][0] == 0:
        return "read", ""
    ((_, reason),) = source.bad()
    assert reason and "\n" not in reason
    memory = any(sign in reason for sign in ("not enough memory", "out of memory", "allocate"))
    return ("no memory" if memory else "replaced"), reason


def reader(folder: str, first: int, count: int, bound: int) -> None:
    """The child: reads the folders first … count − 1; a JSON line before and after each."""
    logging_off()
    own = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (own + bound, own + bound))
    for i in range(first, count):
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        print(json.dumps({"begin": i}), flush=True)
        start = time.process_time()
        result, reason = read_one(os.path.join(folder, f"{i:05d}"))
        seconds = time.process_time() - start
        print(json.dumps([result, reason, seconds, _status("VmHWM")]), flush=True)


def logging_off() -> None:
    """The library names each picture, and Pillow warns; here the table says it."""
    import logging
    import warnings

    import cv2  # noqa: F401  imported before memory is measured
    import simplejpeg  # noqa: F401
    from PIL import Image  # noqa: F401

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")


def _status(field: str) -> int:
    line = next(x for x in open("/proc/self/status") if x.startswith(field + ":"))
    return int(line.split()[1]) * 1024


def run(
    damages: int,
    seed: int,
    bombs: Sequence[Bomb] = BOMBS,
    bound: int = ADDRESS_SPACE,
    patience: float = PATIENCE,
) -> list[tuple[Damaged, Outcome]]:
    """Makes the damaged pictures and reads each; a process that dies is started again after it."""
    with tempfile.TemporaryDirectory() as folder:
        made = []
        for i, picture in enumerate(damaged(damages, seed, bombs)):
            place = pathlib.Path(folder, f"{i:05d}")
            place.mkdir()
            (place / f"a{picture.extension}").write_bytes(picture.data)
            (place / "b.png").write_bytes(_valid("png RGB"))
            made.append(picture._replace(data=b""))
        outcomes: list[Outcome] = []
        while len(outcomes) < len(made):
            outcomes += _child(folder, len(outcomes), len(made), bound, patience)
    return list(zip(made, outcomes, strict=True))


def _child(folder: str, first: int, count: int, bound: int, patience: float) -> list[Outcome]:
    command = [sys.executable, "-m", "benchmarks.fuzz_pictures", "--read", folder]
    command += ["--first", str(first), "--damages", str(count), "--bound", str(bound)]
    root = pathlib.Path(__file__).parents[1]
    found, seconds, start = [], 0.0, time.perf_counter()
    # Unbuffered: select knows nothing of lines read ahead. A file: libtiff fills any pipe.
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, cwd=root, bufsize=0, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        while ready := select.select([process.stdout], [], [], patience)[0]:
            line = process.stdout.readline()
            if not line:
                break
            message = json.loads(line)
            if isinstance(message, list):
                found.append(Outcome(*message))
            start = time.perf_counter()
        seconds = time.perf_counter() - start
        if not ready:
            process.kill()
        process.wait()
        errors.seek(0)
        last = errors.read().decode(errors="replace").strip().splitlines()[-1:]
    if len(found) < count - first:
        reason = f"exit code {process.returncode} {' '.join(last)}"
        found.append(Outcome("crashed" if ready else "hung", reason, seconds, 0))
    return found


RESULTS = ("read", "replaced", "no memory", "hung", "crashed")


def table(found: list[tuple[Damaged, Outcome]]) -> str:
    """Markdown: a row a kind of damage, and one for all."""
    groups = collections.defaultdict(list)
    for picture, outcome in found:
        groups[picture.kind].append((picture, outcome))
    lines = [
        f"| damage | pictures | {' | '.join(RESULTS)} | peak memory (MB) | slowest (s) |",
        f"|---|{'---|' * (len(RESULTS) + 3)}",
    ]
    for kind, part in [*groups.items(), ("all", found)]:
        counts = collections.Counter(outcome.result for _, outcome in part)
        peak = max(outcome.peak for _, outcome in part) / 1e6
        slowest = max(outcome.seconds for _, outcome in part)
        cells = [kind, len(part), *(counts[r] for r in RESULTS), f"{peak:.0f}", f"{slowest:.2f}"]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--damages", type=int, default=1000, help="pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bound", type=int, default=ADDRESS_SPACE, help="bytes a reader may map")
    parser.add_argument("--all", action="store_true", help="a line for every picture")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, default=0, help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.read:
        reader(flags.read, flags.first, flags.damages, flags.bound)
        return 0
    found = run(flags.damages, flags.seed, bound=flags.bound)
    broken = [(p, o) for p, o in found if o.result in RESULTS[2:]]
    costly = (
        sorted(found, key=lambda x: -x[1].peak)[:3] + sorted(found, key=lambda x: -x[1].seconds)[:3]
    )
    print(table(found))
    print("\ngreatest memory and slowest reads:" if not flags.all else "\nall:")
    for picture, o in broken + (found if flags.all else costly):
        print(
            f"  {picture.kind}, {picture.name}: {o.result}, {o.peak / 1e6:.0f} MB, "
            f"{o.seconds:.2f} s {o.reason}"
        )
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
