import io
import struct

import numpy as np
import pytest
from kit.pictures import bombs, damages
from PIL import Image, ImageOps

from ssl_jax.data.decode import picture as decoding
from ssl_jax.data.decode import reader
from ssl_jax.data.decode.picture import Unreadable, decode, highest, resize, square, upright

RANDOM = np.random.default_rng(0)
RGB = RANDOM.integers(0, 256, (8, 8, 3), dtype=np.uint8)
GRAY = RANDOM.integers(0, 256, (8, 8), dtype=np.uint8)


@pytest.mark.parametrize(
    "format, options",
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("PPM", {}),
    ],
)
def test_lossless_formats_are_exact(encode, format, options):
    np.testing.assert_array_equal(decode(encode(RGB, format, **options), 8, 3), RGB)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF", "PPM"])
def test_gray_is_exact_and_repeats_to_colour(encode, format):
    data = encode(GRAY, format)
    np.testing.assert_array_equal(decode(data, 8, 1), GRAY[:, :, None])
    np.testing.assert_array_equal(decode(data, 8, 3), np.repeat(GRAY[:, :, None], 3, 2))


def test_colour_becomes_luma(encode):
    out = decode(encode(RGB, "PNG"), 8, 1)
    luma = RGB @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601; [8, 8, 3] @ [3]
    assert out.shape == (8, 8, 1)
    assert np.abs(out[:, :, 0] - luma).max() <= 1


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "TIFF"])
def test_palette_is_looked_up(encode, format):
    picture = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8), "P")
    palette = RANDOM.permutation(768).reshape(256, 3) % 256
    picture.putpalette(palette.astype(np.uint8).tobytes())
    expected = palette[:64].reshape(8, 8, 3)
    np.testing.assert_array_equal(decode(encode(picture, format), 8, 3), expected)


def test_one_bit_is_black_and_white(encode):
    picture = Image.fromarray(GRAY > 127)
    expected = np.where(GRAY > 127, 255, 0)[:, :, None]
    np.testing.assert_array_equal(decode(encode(picture, "PNG"), 8, 1), expected)


def test_alpha_lies_on_white(encode):
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:] = (100, 0, 200, 51)  # 51 / 255 = 1/5: 100/5 + 255·4/5 = 224, 204, 244
    rgba[0] = (10, 20, 30, 255)
    rgba[1] = (10, 20, 30, 0)
    expected = np.full((4, 4, 3), (224, 204, 244))
    expected[0], expected[1] = (10, 20, 30), 255
    np.testing.assert_array_equal(decode(encode(rgba, "PNG"), 4, 3), expected)
    np.testing.assert_array_equal(
        decode(encode(rgba, "WEBP", lossless=True, exact=True), 4, 3), expected
    )
    gray = decode(encode(rgba, "PNG"), 4, 1)[:, 0, 0]
    assert gray[1] == 255 and abs(int(gray[2]) - (0.299 * 224 + 0.587 * 204 + 0.114 * 244)) <= 1


def test_gray_alpha_and_transparent_palette_lie_on_white(encode):
    la = np.zeros((4, 4, 2), np.uint8)
    la[:] = (0, 102)  # 255·3/5 = 153
    np.testing.assert_array_equal(decode(encode(la, "PNG"), 4, 1), np.full((4, 4, 1), 153))
    picture = Image.fromarray(np.tile(np.array([0, 1], np.uint8), (4, 2)), "P")
    picture.putpalette([9, 9, 9, 40, 50, 60])
    out = decode(encode(picture, "PNG", transparency=0), 4, 3)
    np.testing.assert_array_equal(out[0], [[255] * 3, [40, 50, 60]] * 2)


VALUES = np.array([[0, 255, 256, 257], [32767, 32768, 65279, 65535]] * 2, np.uint16)
HIGH_BYTE = np.array([[0, 0, 1, 1], [127, 128, 254, 255]] * 2)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_keeps_its_high_byte(encode, format):
    data = encode(VALUES, format)
    np.testing.assert_array_equal(decode(data, 4, 1)[:, :, 0], HIGH_BYTE)
    np.testing.assert_array_equal(decode(data, 4, 3)[:, :, 2], HIGH_BYTE)


def test_16_bit_colour_keeps_its_high_byte():
    import cv2

    data = cv2.imencode(".png", np.stack([VALUES, VALUES[::-1], VALUES], -1))[1].tobytes()
    out = decode(data, 4, 3)
    np.testing.assert_array_equal(out[:, :, 0], HIGH_BYTE)
    np.testing.assert_array_equal(out[:, :, 1], HIGH_BYTE[::-1])


TWELVE = np.array([[0, 1, 2047, 2048], [4094, 4095, 4096, 65535]] * 2, np.uint16)
SHOWN = np.array([[0, 0, 127, 128], [255, 255, 255, 255]] * 2)  # 255 · v / 4095, rounded


@pytest.mark.parametrize("extension", ["png", "tiff"])
def test_a_range_of_16_bit_samples(extension):
    """Files as a camera's software writes them, grey, colour and with alpha, of 12 bits."""
    import cv2

    between = reader.bounds(12)
    assert between == (0, 4095)
    gray = cv2.imencode(f".{extension}", TWELVE)[1].tobytes()
    np.testing.assert_array_equal(decode(gray, 4, 1, between=between)[:, :, 0], SHOWN)
    np.testing.assert_array_equal(decode(gray, 4, 3, between=between)[:, :, 2], SHOWN)
    assert decode(gray, 4, 1)[:2, :, 0].max() == 255 and decode(gray, 4, 1)[1, 0, 0] == 15
    bgr = np.stack([TWELVE, TWELVE[::-1], 0 * TWELVE], -1)
    colour = cv2.imencode(f".{extension}", bgr)[1].tobytes()
    out = decode(colour, 4, 3, between=between)
    np.testing.assert_array_equal(out, np.stack([0 * SHOWN, SHOWN[::-1], SHOWN], -1))
    half = cv2.imencode(".png", np.dstack([bgr, np.full((4, 4), 32768, np.uint16)]))[1].tobytes()
    on_white = decode(half, 4, 3, between=between)
    assert on_white[0, 0].tolist() == [127, 255, 127]  # alpha 128 of 255: 255 · 127 / 255 + …


def test_a_range_between_two_values_and_what_it_leaves_alone(encode, smooth):
    values = np.array([[900, 1000, 1500, 2000]] * 4, np.uint16)
    out = decode(encode(values, "PNG"), 4, 1, between=reader.bounds((1000, 2000)))
    np.testing.assert_array_equal(out[0, :, 0], [0, 0, 128, 255])
    for format in ("PNG", "TIFF", "JPEG"):  # 8 bits
        data = encode(smooth(8, 8), format)
        np.testing.assert_array_equal(decode(data, 8, 3, between=(0, 4095)), decode(data, 8, 3))
    pgm = b"P5\n2 1\n4095\n" + np.array([0, 4095], ">u2").tobytes()  # it says its own range
    np.testing.assert_array_equal(decode(pgm, 2, 1, "squash", between=(0, 255))[0, :, 0], [0, 255])


def test_the_largest_value_of_16_bit_pictures(encode, smooth):
    import cv2

    bgr = np.stack([TWELVE // 2, TWELVE, 0 * TWELVE], -1)
    for data in (encode(TWELVE, "PNG"), encode(TWELVE, "TIFF"), cv2.imencode(".png", bgr)[1]):
        assert highest(bytes(data)) == 65535
    assert highest(encode(TWELVE // 16, "PNG")) == 4095
    for data in (encode(smooth(8, 8), "PNG"), encode(smooth(8, 8), "TIFF"), b"", b"BM"):
        assert highest(data) is None


def test_dark_16_bit_pictures_are_said_once_with_the_field(config, encode, tmp_path, caplog):
    from ssl_jax.data.sources import open_source

    (tmp_path / "set").mkdir()
    for i in range(20):
        picture = np.full((6, 6), 200 * i, np.uint16)  # up to 3,800: 12 bits
        (tmp_path / "set" / f"{i:02d}.{('png', 'tif')[i % 2]}").write_bytes(
            encode(picture, ("PNG", "TIFF")[i % 2])
        )
    plain = open_source(config(source=f"folder:{tmp_path}/set"), "train")
    (line,) = [r.getMessage() for r in caplog.records]
    assert "--config.data.range=12" in line and "largest value, in 8 of them, is 3,400" in line
    assert plain.read([19])["image"].max() == 14  # as before: 3,800 >> 8
    caplog.clear()
    asked = open_source(config(source=f"folder:{tmp_path}/set", range=12), "train")
    assert asked.read([19])["image"].max() == round(3800 * 255 / 4095) and not caplog.records
    (tmp_path / "set" / "00.png").write_bytes(encode(np.full((6, 6), 60_000, np.uint16), "PNG"))
    open_source(config(source=f"folder:{tmp_path}/set"), "train")
    assert not caplog.records


def test_cmyk(encode):
    cmyk = np.zeros((4, 4, 4), np.uint8)
    cmyk[0] = (255, 0, 0, 0)  # cyan
    cmyk[1] = (0, 0, 0, 255)  # black
    cmyk[2] = (0, 255, 255, 0)  # red
    picture = Image.fromarray(cmyk, "CMYK")
    expected = [[0, 255, 255], [0, 0, 0], [255, 0, 0], [255, 255, 255]]
    np.testing.assert_array_equal(decode(encode(picture, "TIFF"), 4, 3)[:, 0], expected)
    flat = Image.fromarray(np.full((16, 16, 4), (0, 255, 255, 0), np.uint8), "CMYK")
    out = decode(encode(flat, "JPEG", quality=100), 16, 3)
    assert np.abs(out.astype(int) - [255, 0, 0]).max() <= 3


# What undoes each EXIF orientation, in terms of rotations and flips.
UPRIGHT = {
    1: lambda x: x,
    2: np.fliplr,
    3: lambda x: np.rot90(x, 2),
    4: np.flipud,
    5: lambda x: np.flipud(np.rot90(x)),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: np.fliplr(np.rot90(x)),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(encode, smooth, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = smooth(16, 24)
    expected = np.ascontiguousarray(UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(upright(stored, orientation), expected)
    pillow = ImageOps.exif_transpose(Image.open(io.BytesIO(encode(stored, "PNG", exif=exif))))
    np.testing.assert_array_equal(np.asarray(pillow), expected)  # our table means what Pillow means
    for format, tolerance in (("PNG", 0), ("TIFF", 0), ("WEBP", 8), ("JPEG", 8)):
        options = {"quality": 95} if tolerance else {}
        out = decode(encode(stored, format, exif=exif, **options), 16, 3)
        assert np.abs(out.astype(int) - square(expected)).max() <= tolerance, format


def deep_tiff(pixels, orientation, big):
    """An uncompressed TIFF, or BigTIFF, of uint16 [h, w, 3]."""
    height, width, _ = pixels.shape
    head, entry, word = (16, 20, "Q") if big else (8, 12, "I")
    tags = [(256, width), (257, height), (258, None), (259, 1), (262, 2), (273, None)]
    tags += [(274, orientation), (277, 3), (278, height), (279, pixels.nbytes), (284, 1)]
    count = struct.pack("<Q" if big else "<H", len(tags))
    after = head + len(count) + entry * len(tags) + struct.calcsize(f"<{word}")
    entries = b""
    for tag, value in tags:
        if tag == 258:  # 16 bits, three times: they fit into a BigTIFF's entry alone
            bits = struct.pack("<HHHH", 16, 16, 16, 0) if big else struct.pack("<I", after)
            entries += struct.pack(f"<HH{word}", tag, 3, 3) + bits
        elif tag in (273, 279):
            entries += struct.pack(f"<HH{word}{word}", tag, 16 if big else 4, 1, value or after + 6)
        else:
            entries += struct.pack(f"<HH{word}H", tag, 3, 1, value) + bytes(6 if big else 2)
    start = (
        struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8)
    )
    bits = struct.pack("<HHH", 16, 16, 16)
    return (
        start + count + entries + bytes(len(struct.pack(f"<{word}", 0))) + bits + pixels.tobytes()
    )


@pytest.mark.parametrize("big", [False, True], ids=["TIFF", "BigTIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_so_it_is_to_16_bit_colours_with_a_range(smooth, orientation, big):
    """OpenCV, which reads them, turns a TIFF itself, in part."""
    stored = smooth(16, 24)
    data = deep_tiff(stored.astype("<u2") * 16, orientation, big)
    out = decode(data, 16, 3, between=reader.bounds((0, 255 * 16)))
    np.testing.assert_array_equal(out, square(UPRIGHT[orientation](stored)))


def test_broken_exif_leaves_the_picture(encode, smooth):
    data = encode(smooth(16, 16), "JPEG", exif=b"Exif\0\0garbage")
    np.testing.assert_array_equal(
        decode(data, 16, 3), decode(encode(smooth(16, 16), "JPEG"), 16, 3)
    )


def test_first_frame_of_an_animation(encode):
    frames = [Image.fromarray(np.full((4, 4), v, np.uint8)) for v in (50, 200)]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, 4, 1), np.full((4, 4, 1), 50))


def test_crop_takes_the_centre_and_squash_everything(encode):
    wide = np.zeros((4, 9, 3), np.uint8)
    wide[:] = np.arange(9)[None, :, None] * 20
    np.testing.assert_array_equal(decode(encode(wide, "PNG"), 4, 3, "crop"), wide[:, 2:6])
    wide = wide[:, :8]
    pairs = (wide[:, ::2].astype(int) + wide[:, 1::2]) // 2  # [4, 8, 3] -> [4, 4, 3]
    np.testing.assert_array_equal(decode(encode(wide, "PNG"), 4, 3, "squash"), pairs)
    np.testing.assert_array_equal(square(np.arange(15).reshape(5, 3, 1))[:, 0, 0], [3, 6, 9])


def test_shrinking_averages_and_growing_keeps_flat_areas():
    board = (np.indices((16, 16)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None]
    assert set(np.unique(resize(board, 4))) <= {127, 128}
    flat = np.full((3, 5, 1), 77, np.uint8)
    np.testing.assert_array_equal(resize(flat, 8), np.full((8, 8, 1), 77))
    tall = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 2)[:, None, None]  # [48, 1, 1]
    out = resize(tall, 24)  # one side shrinks, the other grows
    np.testing.assert_array_equal(out[:, 0, 0], np.arange(0, 240, 10))
    np.testing.assert_array_equal(out, np.repeat(out[:, :1], 24, axis=1))


@pytest.mark.parametrize("n,size", [(256, 224), (64, 48), (48, 45), (64, 62), (60, 28), (90, 80)])
def test_every_shrunken_pixel_is_the_average_of_its_area(n, size):
    """Also where two pixels a side make one (the first four), which goes another way."""
    assert (decoding._pairs(n, size) is not None) == (n in (256, 64, 48))
    edges = np.arange(size + 1) * n / size
    overlap = np.minimum(edges[1:, None], np.arange(n) + 1) - np.maximum(
        edges[:-1, None], np.arange(n)
    )
    weights = np.clip(overlap, 0, 1) * size / n  # [size, n]
    pixels = np.random.default_rng(0).integers(0, 256, (n, n, 3), dtype=np.uint8)
    want = np.einsum("ij,jkc,lk->ilc", weights, pixels, weights, optimize=True)
    for x in (pixels, pixels[:, :, :1]):
        assert np.abs(resize(x, size) - want[:, :, : x.shape[2]]).max() < 0.51


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_scaled_in_the_dct_domain_equals_shrinking_it_in_full(encode, smooth, channels):
    picture = smooth(300, 520)
    data = encode(picture, "JPEG", quality=95)
    lossless = encode(picture, "PNG")
    for size in (30, 70, 150, 290, 400):
        out, expected = decode(data, size, channels), decode(lossless, size, channels)
        assert out.shape == (size, size, channels)
        assert np.abs(out.astype(int) - expected).max() <= 4


def test_jpeg_gray_is_its_luma(encode):
    data = encode(np.full((16, 16, 3), (200, 100, 50), np.uint8), "JPEG", quality=100)
    assert np.abs(decode(data, 16, 1).astype(int) - 124).max() <= 1  # 59.8 + 58.7 + 5.7
    assert (decode(encode(np.full((16, 16), 90, np.uint8), "JPEG"), 16, 3) == 90).all()


def test_stray_bytes_in_a_jpeg_are_forgiven(encode, smooth):
    import simplejpeg

    whole = encode(smooth(40, 40), "JPEG", quality=95)
    cut = 4 + int.from_bytes(whole[4:6])  # after the first segment
    stray = whole[:cut] + b"\x00\x11\x22" + whole[cut:]
    with pytest.raises(ValueError):
        simplejpeg.decode_jpeg(stray)
    difference = decode(stray, 40, 3).astype(int) - decode(whole, 40, 3)
    assert np.abs(difference).max() <= 2  # another decoder read it


@pytest.mark.parametrize(
    "name, reason",
    [
        ("truncated.jpg", "image file is truncated"),
        ("empty.png", "the file is empty"),
        ("text.png", "not a picture of a known format (it starts with '<html>40')"),
        ("header.jpg", "not a picture of a known format"),
        ("bomb.png", "Image size (3600000000 pixels) exceeds limit"),
    ],
)
def test_unreadable_with_a_reason(broken, name, reason):
    with pytest.raises(Unreadable) as error:
        decode(broken[name], 16, 3)
    assert reason in str(error.value) and "\n" not in str(error.value)


def test_the_bound_on_pixels_holds_for_jpeg(encode, smooth):
    data = encode(smooth(20, 30), "JPEG")
    assert decode(data, 8, 3, max_pixels=600).shape == (8, 8, 3)
    with pytest.raises(Unreadable, match="30 x 20 pixels, more than the 599 allowed"):
        decode(data, 8, 3, max_pixels=599)


def test_what_a_header_promises_is_checked_before_memory_is_taken():
    makers = {name: make for name, _, make in bombs.BOMBS}
    reasons = {
        "PNG of 100,000 x 100,000": "Image size",
        "PNG of 1 x 89,000,000": "1 x 89000000 pixels, a side of more than",
        "JPEG of 10,000 scans": "a JPEG of 10009 scans, more than the 100 allowed",
        "TIFF with a tile of 16,000 x 16,000": "a tile of 16000 x 16000 pixels, more than",
        "WebP of 16,383 x 16,383": "pixels",
    }
    for name, reason in reasons.items():
        with pytest.raises(Unreadable) as error:
            decode(makers[name](), 16, 3)
        assert reason in str(error.value) and "\n" not in str(error.value)
    assert decode(bombs.scans(40, 3), 16, 3).shape == (16, 16, 3)
    assert decode(bombs.tile(32), 16, 1).shape == (16, 16, 1)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_bands_give_the_same_pixels(monkeypatch):
    whole = {name: data for name, _, data in damages.whole()}
    expected = {(n, c): decode(d, 48, c) for n, d in whole.items() for c in (1, 3)}
    monkeypatch.setattr(decoding, "BAND", 400)  # 6 rows of 61, the last band has fewer
    for (name, channels), pixels in expected.items():
        np.testing.assert_array_equal(decode(whole[name], 48, channels), pixels, err_msg=name)


def test_want_of_memory_is_not_the_fault_of_the_picture(encode, monkeypatch):
    def fails(*_):
        raise MemoryError

    monkeypatch.setattr(decoding, "_pillow", fails)
    with pytest.raises(MemoryError):
        decode(encode(RGB, "PNG"), 8, 3)


def test_samples_of_unknown_range_are_unreadable(encode):
    with pytest.raises(Unreadable, match="float samples"):
        decode(encode(np.ones((4, 4), np.float32), "TIFF"), 4, 3)
    with pytest.raises(Unreadable, match="32-bit samples"):
        decode(encode(np.ones((4, 4), np.int32), "TIFF"), 4, 3)


def test_formats_that_start_other_programs_are_not_tried():
    with pytest.raises(Unreadable, match="known format"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", 8, 3)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_raise_nothing_else(encode, smooth):
    random = np.random.default_rng(1)
    readable = 0
    for format in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM"):
        whole = encode(smooth(24, 31), format)
        for trial in range(30):
            data = bytearray(whole[: random.integers(1, len(whole) + 1)] if trial % 2 else whole)
            for place in random.integers(0, len(data), trial):
                data[place] = random.integers(256)
            try:
                out = decode(bytes(data), 16, 3)
            except Unreadable as error:
                assert str(error)
            else:
                readable += 1
                assert out.shape == (16, 16, 3) and out.dtype == np.uint8
    assert 7 <= readable <= 200  # both outcomes were seen
