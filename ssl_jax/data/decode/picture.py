"""Encoded picture -> uint8 pixels of one size.

One rule for each case that files in the wild hold:

- JPEG is decoded by libjpeg-turbo (simplejpeg), at 1/2, 1/4 or 1/8 of its size where that is still
  at least `size` (scaling in the DCT domain, itself antialiased). What it refuses, and every other
  format, goes to Pillow.
- EXIF orientation is applied: pictures stand upright.
- Transparent pixels lie on white, as a viewer shows them: (a·c + (255 − a)·255) / 255.
- 16-bit samples keep their high byte, v >> 8, in grey as in colour; or `between` (low, high) they
  become round(255 · (v − low) / (high − low)), below and above it 0 and 255. (PGM and PPM say their
  highest value themselves.)
- Palettes are looked up; CMYK and the other colour spaces become RGB by Pillow's conversion.
- Grey to colour repeats the channel; colour to grey is the luma of ITU-R BT.601.
- Of an animation, the first frame.
- 32-bit and float samples have no known range and count as unreadable.

No file, however made, runs code, ends the process or takes memory without bound: what a header
promises is checked before memory is taken for it (pixels, tiles, scans), and what Pillow unpacks
is converted a band at a time. `python -m benchmarks.fuzz_pictures` tries it.
"""

import functools
import io
import math

import numpy as np

# Pillow's own bound (1 GiB / 4 / 3 pixels). A 4 kB file can promise gigabytes of zeros.
MAX_PIXELS = 89_478_485
MAX_SIDE = 1 << 20  # Pillow keeps an address for every row
# A progressive JPEG has some ten scans. Each takes a pass over the whole picture, in a few bytes of
# the file. (libjpeg-turbo's own tests stop at 500.)
MAX_SCANS = 100
BAND = 1 << 20  # pixels that are converted at a time

# Only these are tried: Pillow would start other programs for some formats (EPS: Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")

ORIENTATION = 0x0112  # the EXIF tag
TILE_WIDTH, TILE_LENGTH = 322, 323  # TIFF tags
BITS_PER_SAMPLE = 258


class Unreadable(Exception):
    """A picture that cannot be decoded; str() is the reason."""


def decode(
    data: bytes,
    size: int,
    channels: int,
    fit: str = "crop",
    max_pixels: int = MAX_PIXELS,
    between: tuple[int, int] | None = None,
) -> np.ndarray:
    """Decodes one picture to a square.

    Args:
      data: the bytes of the file.
      size: side of the result in pixels.
      channels: 1 (grey) or 3 (RGB).
      fit: 'crop' takes the largest centred square, then resizes it: the shorter side becomes
        `size`, proportions are kept. 'squash' resizes both sides to `size`.
      max_pixels: refuse a picture of more pixels than this.
      between: 16-bit samples that become 0 and 255; None: their high byte is kept.

    Returns:
      uint8 [size, size, channels].

    Raises:
      Unreadable: whatever is wrong with the picture.
      MemoryError: there is not enough of it just now. Nothing else is raised.
    """
    try:
        if not data:
            raise Unreadable("the file is empty")
        pixels = None
        if data[:3] == b"\xff\xd8\xff":
            scans = data.count(b"\xff\xda")  # inside a scan, 255 is always followed by 0
            if scans > MAX_SCANS:
                raise Unreadable(f"a JPEG of {scans} scans, more than the {MAX_SCANS} allowed")
            pixels = _jpeg(data, size, channels, max_pixels)
        if pixels is None:
            pixels = _pillow(data, channels, max_pixels, between)
        return resize(square(pixels) if fit == "crop" else pixels, size)
    except (Unreadable, MemoryError):
        raise
    except Exception as error:  # decoders raise anything on broken bytes; cv2 its own class
        reason = " ".join(str(error).split())
        kind = "" if reason and isinstance(error, OSError) else f"{type(error).__name__} "
        raise Unreadable(f"{kind}{reason}") from error


def highest(data: bytes, max_pixels: int = MAX_PIXELS) -> int | None:
    """The largest sample of a 16-bit PNG or TIFF; None of any other picture.

    Raises:
      Whatever a decoder raises on broken bytes.
    """
    if data[:4] not in (b"\x89PNG", b"II*\0", b"MM\0*"):
        return None
    with _opened(data, max_pixels) as image:
        if not _deep(image, data):
            return None
        return int((np.asarray(image) if image.mode[0] == "I" else _colour(data)).max())


def square(pixels: np.ndarray) -> np.ndarray:
    """The largest centred square, [h, w, C] -> [s, s, C], s = min(h, w)."""
    h, w = pixels.shape[:2]
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    return pixels[top : top + s, left : left + s]


def resize(pixels: np.ndarray, size: int) -> np.ndarray:
    """Resizes uint8 [h, w, C] to [size, size, C].

    A side that shrinks is averaged over the area of each new pixel (antialiased), a side that
    grows is interpolated by cubics.
    """
    import cv2

    h, w, channels = pixels.shape
    places = _pairs(h, size) if h == w else None
    if places is not None:
        pixels = cv2.remap(pixels, *places, cv2.INTER_LINEAR)
    elif h > size or w > size:
        pixels = cv2.resize(pixels, (min(w, size), min(h, size)), interpolation=cv2.INTER_AREA)
    if h < size or w < size:
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(pixels).reshape(size, size, channels)  # cv2 drops C = 1


@functools.lru_cache(maxsize=4)
def _pairs(n: int, size: int):
    """Where `cv2.remap` finds n × n pixels averaged over the area of each of size × size new ones.

    If an area never touches more than two pixels a side, as in 256 → 224, its average is linear
    interpolation at a place between them. cv2 interpolates in steps of 1/32: where the weights are
    multiples of it the result is the same, in half the time that INTER_AREA takes.

    Returns:
      (int16 [size, size, 2], uint16 [size, size]), cv2's fixed-point maps, or None where that does
      not hold.
    """
    import cv2

    unit = math.gcd(n, size)
    old, new = size // unit, n // unit  # sides of an old and a new pixel on a common grid
    if new <= old or old == 1 or 32 % new:
        return None
    start = np.arange(size) * new
    first = start // old  # the first of the two old pixels
    second = np.maximum(new - ((first + 1) * old - start), 0)  # what of the area is beyond it
    if (second > old).any():
        return None
    place = np.broadcast_to((first + second / new).astype(np.float32), (size, size))
    return cv2.convertMaps(place.copy(), place.T.copy(), cv2.CV_16SC2)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undoes the EXIF orientation 1 … 8 of [h, w, C]; any other number is taken as 1."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _guard(height: int, width: int, max_pixels: int, what: str = "") -> None:
    if height * width > max_pixels:
        raise Unreadable(f"{what}{width} x {height} pixels, more than the {max_pixels} allowed")
    if max(height, width) > MAX_SIDE:
        raise Unreadable(f"{what}{width} x {height} pixels, a side of more than {MAX_SIDE}")


def _jpeg(data: bytes, size: int, channels: int, max_pixels: int) -> np.ndarray | None:
    """Pixels [h, w, C] of a JPEG by libjpeg-turbo; None if Pillow should have a look at it."""
    import simplejpeg

    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        _guard(height, width, max_pixels)
        if space not in ("YCbCr", "Gray", "RGB"):
            return None
        pixels = simplejpeg.decode_jpeg(
            data,
            colorspace="GRAY" if channels == 1 else "RGB",
            min_height=size,
            min_width=size,
            min_factor=2,  # 7/8 and the like take longer than decoding in full
        )
    except ValueError:
        # Strict: also harmless warnings (stray bytes between markers) come here. Pillow reads
        # those, and says what is wrong with the others.
        return None
    if b"Exif\0\0" in data[:65536]:
        from PIL import Image

        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            pixels = upright(pixels, _orientation(image))
    return pixels


def _pillow(
    data: bytes, channels: int, max_pixels: int, between: tuple[int, int] | None
) -> np.ndarray:
    """Pixels [h, w, C] of any of FORMATS by Pillow."""
    with _opened(data, max_pixels) as image:
        deep = between is not None and _deep(image, data)
        if deep and image.mode[0] != "I":  # Pillow reads the high bytes of colours alone
            pixels = _shown(_colour(data), channels, between)
        else:
            image.load()
            pixels = _bands(image, channels, between if deep else None)
        # After load(): Pillow turns TIFF itself, and then drops the tag.
        orientation = _orientation(image)
    return upright(pixels, orientation)  # by now Pillow's copy is gone


def _opened(data: bytes, max_pixels: int):
    """A Pillow image that keeps to the bounds, not loaded yet."""
    from PIL import Image, UnidentifiedImageError

    try:
        opened = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        start = data[:8].decode("ascii", "backslashreplace")
        raise Unreadable(f"not a picture of a known format (it starts with {start!r})") from None
    try:
        _guard(opened.height, opened.width, max_pixels)
        if opened.format == "TIFF":  # libtiff unpacks whole tiles, however small the picture
            tile = (int(opened.tag_v2.get(tag, 0)) for tag in (TILE_LENGTH, TILE_WIDTH))
            _guard(*tile, max_pixels, "a tile of ")
    except BaseException:
        opened.close()
        raise
    return opened


def _deep(image, data: bytes) -> bool:
    """Whether a Pillow image of these bytes has 16-bit samples whose range no header says."""
    if image.format == "PNG":
        return data[24:25] == b"\x10"
    if image.format != "TIFF" or image.mode in ("I", "F"):
        return False
    bits = image.tag_v2.get(BITS_PER_SAMPLE, (1,))
    return 16 in (bits if isinstance(bits, tuple) else (bits,))


def _colour(data: bytes) -> np.ndarray:
    """16-bit samples of a PNG or TIFF in colour or with alpha: uint16 [h, w, 3 or 4], RGB(A)."""
    import cv2

    found = cv2.imdecode(np.frombuffer(as_stored(data), np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3:
        raise Unreadable("16-bit samples of a kind that cannot be read with data.range")
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB if found.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _shown(samples: np.ndarray, channels: int, between: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, channels] of `_colour`; alpha, which has a range of its own, on white."""
    from PIL import Image

    height, width, _ = samples.shape
    pixels = np.empty((height, width, channels), np.uint8)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        band = samples[top : top + rows]
        parts = [_scaled(band[:, :, :3], between), (band[:, :, 3:] >> 8).astype(np.uint8)]
        image = Image.fromarray(np.concatenate(parts, -1))
        pixels[top : top + rows] = _channels(image, "PNG", channels, None)
    return pixels


def _scaled(samples: np.ndarray, between: tuple[int, int]) -> np.ndarray:
    """uint8: `between` linearly onto 0 … 255."""
    low, high = between
    kept = np.clip(samples.astype(np.float32), low, high)
    return ((kept - low) * np.float32(255 / (high - low)) + np.float32(0.5)).astype(np.uint8)


def _bands(image, channels: int, between: tuple[int, int] | None) -> np.ndarray:
    """Pixels of a loaded Pillow image as uint8 [h, w, channels], a band of rows at a time."""
    width, height = image.size
    rows = max(1, BAND // width)
    if height <= rows:
        return _channels(image, image.format, channels, between)
    pixels = np.empty((height, width, channels), np.uint8)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        band = image.crop((0, top, width, bottom))
        pixels[top:bottom] = _channels(band, image.format, channels, between)
    return pixels


def _orientation(image) -> int:
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except Exception:  # broken EXIF does not make the pixels unreadable
        return 1


def _channels(image, format: str, channels: int, between: tuple[int, int] | None) -> np.ndarray:
    """Pixels of (a band of) a loaded Pillow image as uint8 [h, w, channels]."""
    from PIL import Image

    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and format in ("PNG", "PPM")):
        # Older Pillow opens 16-bit PNG as mode I. Its convert("L") would clip at 255.
        samples = np.asarray(image)
        gray = _scaled(samples, between) if between else (samples >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], channels, axis=2)
    if mode in ("I", "F"):
        raise Unreadable(f"{'float' if mode == 'F' else '32-bit'} samples, whose range is unknown")
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = np.asarray(image.convert("RGBA")).astype(np.uint16)  # the sum below fits
        rgb, alpha = rgba[:, :, :3], rgba[:, :, 3:]
        pixels = ((rgb * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
        if channels == 3:
            return pixels
        image = Image.fromarray(pixels)
    pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return pixels.reshape(*pixels.shape[:2], channels)


def as_stored(data: bytes) -> bytes:
    """A TIFF without its orientation, which OpenCV would turn it by in part; others as they are."""
    if data[:2] not in (b"II", b"MM"):
        return data
    little = data[:2] == b"II"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], "little" if little else "big")

    # Where the directory's place stands, and the bytes of that, its count, an entry, and of what
    # comes in an entry before the value: of a TIFF and of a BigTIFF.
    at, wide, count, entry, before = (8, 8, 8, 20, 12) if number(2, 2) == 43 else (4, 4, 2, 12, 8)
    first = number(at, wide)
    begin = first + count
    for place in range(begin, min(begin + entry * number(first, count), len(data)), entry):
        if number(place, 2) == ORIENTATION:
            value = place + before
            return data[:value] + (1).to_bytes(2, "little" if little else "big") + data[value + 2 :]
    return data
