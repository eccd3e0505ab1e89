"""Small pictures of every format that the library reads, and six ways to damage them."""

import functools
import io
import random
import struct
import zlib

import numpy as np

LIMIT = 9_459  # side of the largest square that decode.MAX_PIXELS allows
EXTREMES = (0, 1, 2, 255, 256, 32_767, 32_768, 65_535, 65_536, 2**31 - 1, 2**31, 2**32 - 1)


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


def valid(name: str) -> bytes:
    """The picture of that name, in order."""
    return next(data for n, _, data in whole() if n == name)


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
