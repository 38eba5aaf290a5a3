"""Bytes from outside become pixels, or an error that names them."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from wm.errors import InputError
from wm.images import decode_image, encode_png, fit_square, read_size


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""
    head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + png_chunk(b"IDAT", zlib.compress(b"\0")) + png_chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_come_back_exactly(kind: str, options: dict[str, object]) -> None:
    pixels = picture(5, 9)
    np.testing.assert_array_equal(decode_image(encoded(pixels, kind, **options), "x"), pixels)
    np.testing.assert_array_equal(decode_image(encode_png(pixels), "x"), pixels)


def test_jpeg_grey_alpha_palette_and_sixteen_bit_become_rgb() -> None:
    pixels = np.full((8, 8, 3), (200, 100, 50), np.uint8)
    assert np.abs(decode_image(encoded(pixels, "JPEG", quality=95), "x").astype(int) - pixels).max() <= 4
    grey = decode_image(encode_png(np.full((4, 6), 77, np.uint8)), "x")
    assert grey.shape == (4, 6, 3) and (grey == 77).all()
    for mode, value in (
        ("RGBA", (1, 2, 3, 0)),
        ("P", 3),
        ("LA", (9, 5)),
        ("1", 1),
        ("I;16", 300),
        ("CMYK", (0, 0, 0, 0)),
    ):
        buffer = io.BytesIO()
        Image.new(mode, (4, 2), value).save(buffer, "JPEG" if mode == "CMYK" else "PNG")
        decoded = decode_image(buffer.getvalue(), "x")
        assert decoded.shape == (2, 4, 3) and decoded.dtype == np.uint8


def test_sixteen_bits_keep_the_upper_eight() -> None:
    values = (np.arange(6 * 8).reshape(6, 8) * 1365).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    decoded = decode_image(buffer.getvalue(), "x")
    for channel in range(3):
        np.testing.assert_array_equal(decoded[..., channel], values // 256)


def test_transparency_is_white() -> None:
    """As in Chameleon's release: (1 - alpha) x 255 + alpha x colour, rounded down."""
    rgba = np.random.default_rng(1).integers(0, 256, (5, 7, 4), np.uint8)
    rgba[0, 0], rgba[0, 1] = (9, 8, 7, 0), (9, 8, 7, 255)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        decoded = decode_image(encoded(rgba, kind, **options), "x")
        assert decoded[0, 0].tolist() == [255, 255, 255] and decoded[0, 1].tolist() == [9, 8, 7]
        alpha = rgba[..., 3:].astype(np.float64) / 255
        expected = (1 - alpha) * 255 + alpha * rgba[..., :3]
        assert (np.abs(decoded - expected) < 1.001).all() and (decoded <= expected + 1e-3).all()
    grey = Image.new("LA", (2, 2), (9, 0))
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    colour = Image.new("RGB", (2, 2), (1, 2, 3))
    for image, more in ((grey, {}), (palette, {"transparency": 1}), (colour, {"transparency": (1, 2, 3)})):
        buffer = io.BytesIO()
        image.save(buffer, "PNG", **more)
        assert (decode_image(buffer.getvalue(), "x") == 255).all()


SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""PNG's colour types (grey, RGB, palette, grey and alpha, RGBA) and their numbers a pixel."""

PNG_KINDS = [
    (color, depth, key, interlaced)
    for color, depths in {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}.items()
    for depth in depths
    for key in ((False, True) if color in (0, 2, 3) else (False,))
    for interlaced in (False, True)
]
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(values: np.ndarray, color: int, depth: int, interlaced: bool, *chunks: bytes) -> bytes:
    """A PNG of these numbers (H, W, samples), written out as the specification says."""
    height, width = values.shape[:2]

    def scanlines(rows: np.ndarray) -> bytes:
        lines = []
        for row in rows:
            bits = (row.reshape(-1, 1).astype(np.int64) >> np.arange(depth)[::-1]) & 1
            lines.append(b"\0" + np.packbits(bits.astype(np.uint8)).tobytes())
        return b"".join(lines)

    passes = [values[y::down, x::right] for x, y, right, down in ADAM7] if interlaced else [values]
    pixels = b"".join(scanlines(rows) for rows in passes if rows.size)
    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    parts = [png_chunk(b"IHDR", head), *chunks, png_chunk(b"IDAT", zlib.compress(pixels)), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def on_white(rgb: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """The plain formula, rounded down: in whole numbers, colour and alpha of 8 bits."""
    alpha = alpha[..., None].astype(np.int64)
    return (alpha * rgb.astype(np.int64) + (255 - alpha) * 255) // 255


@pytest.mark.parametrize(("color", "depth", "key", "interlaced"), PNG_KINDS)
def test_every_kind_of_png(color: int, depth: int, key: bool, interlaced: bool) -> None:
    """All colour types, bit depths, transparent values and both orders; the pixels are known, as they are written."""
    rng = np.random.default_rng(depth + 100 * color)
    shape, top = (11, 13, SAMPLES[color]), 2**depth - 1
    values = rng.integers(0, 2**depth, shape)
    values[:4] = values[0, 0]  # enough pixels of the value that becomes transparent
    if depth == 16:
        values[4:6] = values[0, 0] ^ 1  # nearly the value: equal in the upper 8 bits
    chunks, alpha = [png_chunk(b"gAMA", struct.pack(">I", 100_000))], np.full(shape[:2], 255)
    eight = values >> 8 if depth == 16 else values * 255 // top
    if color == 3:
        palette, opacity = rng.integers(0, 256, (2**depth, 3)), rng.integers(0, 256, 2**depth)
        chunks.append(png_chunk(b"PLTE", palette.astype(np.uint8).tobytes()))
        rgb = palette[values[..., 0]]
        if key:
            chunks.append(png_chunk(b"tRNS", opacity.astype(np.uint8).tobytes()))
            alpha = opacity[values[..., 0]]
    else:
        rgb = eight[..., :3] if color in (2, 6) else np.repeat(eight[..., :1], 3, axis=2)
        if color in (4, 6):
            alpha = eight[..., -1]
        if key:
            chunks.append(png_chunk(b"tRNS", struct.pack(f">{shape[2]}H", *values[0, 0])))
            alpha = np.where((values == values[0, 0]).all(axis=-1), 0, 255)
    data = png_of(values, color, depth, interlaced, *chunks)
    decoded = decode_image(data, "x").astype(np.int64)
    expected = on_white(rgb, alpha)
    partly = (alpha != 0) & (alpha != 255)
    np.testing.assert_array_equal(decoded[~partly], expected[~partly])
    assert np.abs(decoded[partly] - expected[partly]).max(initial=0) <= 1  # rounded down from single precision
    reference = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)  # another decoder reads the same
    if reference.ndim == 3 and reference.dtype == np.uint8 and not key:
        channels = reference[..., [2, 1, 0]]
        np.testing.assert_array_equal(channels, rgb)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientations(orientation: int) -> None:
    """Also of what is transparent by its value: the value is looked for before the image is turned."""
    turns = [
        lambda a: a,
        np.fliplr,
        lambda a: np.rot90(a, 2),
        np.flipud,
        lambda a: a.swapaxes(0, 1),
        lambda a: np.rot90(a, -1),
        lambda a: np.rot90(a, 2).swapaxes(0, 1),
        np.rot90,
    ]
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = picture(4, 7)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        data = encoded(pixels, kind, exif=exif, **options)
        upright = decode_image(data, "x")
        np.testing.assert_array_equal(upright, turns[orientation - 1](pixels))
        # The size alone, without decoding.
        assert read_size(data, "x") == (upright.shape[1], upright.shape[0])
    values = np.random.default_rng(5).integers(0, 2**16, (4, 7, 3))
    chunks = [png_chunk(b"eXIf", exif.tobytes()[6:]), png_chunk(b"tRNS", struct.pack(">3H", *values[1, 2]))]
    expected = values >> 8
    expected[1, 2] = 255
    decoded = decode_image(png_of(values, 2, 16, False, *chunks), "x")
    np.testing.assert_array_equal(decoded, turns[orientation - 1](expected))


def test_a_cmyk_jpeg_is_read_as_by_opencv() -> None:
    """Inks as Adobe writes them (inverted); also against the plain formula."""
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[:8, :, 1], cmyk[8:, :, 2], cmyk[:, 8:, 3] = 200, 100, 60
    data = io.BytesIO()
    Image.fromarray(cmyk, "CMYK").save(data, "JPEG", quality=100, subsampling=0)
    ink = cmyk.astype(np.float64) / 255
    expected = 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    decoded = decode_image(data.getvalue(), "x")
    assert np.abs(decoded - expected).max() <= 4
    reference = cv2.imdecode(np.frombuffer(data.getvalue(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(decoded.astype(int) - reference).max() <= 4


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "x.png is empty; expected an image"),
        (b"hello", "x.png is no readable image"),
        (b"GIF89a" + bytes(40), "x.png is no readable image"),
        (b"\x89PNG\r\n\x1a\n", "x.png is no readable image"),
        (encoded(picture(40, 40), "PNG")[:900], "x.png is no readable image"),
        (encoded(picture(40, 40), "JPEG")[:300], "x.png is no readable image"),
    ],
)
def test_what_is_no_image_is_named(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        decode_image(data, "x.png")
    assert "\n" not in str(caught.value)


def test_a_format_that_is_not_accepted_is_not_even_opened() -> None:
    for kind in ("GIF", "TIFF", "PPM", "ICO"):
        with pytest.raises(InputError, match="no readable image"):
            decode_image(encoded(picture(16, 16), kind), "x")


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(Image.Image, "convert", forbidden)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", forbidden)
    with pytest.raises(InputError, match="x has 8000 x 7000 pixels; at most 40,000,000 are accepted"):
        decode_image(png_header(8000, 7000), "x")
    with pytest.raises(InputError, match="x has 11000 x 9000 pixels"):  # where PIL itself warns
        decode_image(png_header(11000, 9000), "x")
    with pytest.raises(InputError, match="x has too many pixels; at most 40,000,000"):  # where PIL itself refuses
        decode_image(png_header(100_000, 100_000), "x")
    with pytest.raises(InputError, match="x has 5 x 4 pixels; at most 19 are accepted"):
        decode_image(encode_png(picture(4, 5)), "x", max_pixels=19)


def test_the_limit_itself_is_accepted() -> None:
    assert decode_image(encode_png(picture(4, 5)), "x", max_pixels=20).shape == (4, 5, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP"])
@pytest.mark.filterwarnings("ignore")
def test_damaged_bytes_give_pixels_or_an_input_error(kind: str) -> None:
    rng = np.random.default_rng(3)
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {} if kind == "BMP" else {"exif": exif}
    whole = np.frombuffer(encoded(picture(12, 12), kind, **options), np.uint8)
    for _ in range(400):
        damaged = whole.copy()
        places = rng.integers(0, min(len(whole), 200), rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        data = damaged[: rng.integers(1, len(whole) + 1)].tobytes()
        try:
            pixels = decode_image(data, "x", max_pixels=10_000)
        except InputError as error:
            assert str(error).startswith("x ")
        else:
            assert pixels.ndim == 3 and pixels.dtype == np.uint8


@pytest.mark.filterwarnings("ignore")
def test_exif_that_pillow_chokes_on_is_an_input_error() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "desc"
    data = encoded(picture(4, 4), "JPEG", exif=exif)
    for place in range(data.index(b"Exif"), data.index(b"Exif") + 60):
        for value in (0, 2, 5, 12, 255):
            changed = bytes([*data[:place], value, *data[place + 1 :]])
            with contextlib.suppress(InputError):
                assert decode_image(changed, "x").shape == (4, 4, 3)


def reference_square(pixels: np.ndarray, side: int) -> np.ndarray:
    """As in facebookresearch/chameleon, chameleon/inference/image_tokenizer.py, ``_vqgan_input_from``."""
    img = Image.fromarray(pixels)
    s = min(img.size)
    scale = side / s
    new_size = (round(scale * img.size[0]), round(scale * img.size[1]))
    img = img.resize(new_size, Image.LANCZOS)
    x0 = (img.width - side) // 2
    y0 = (img.height - side) // 2
    return np.asarray(img.crop((x0, y0, x0 + side, y0 + side)))


@pytest.mark.parametrize("shape", [(32, 32), (31, 57), (90, 33), (7, 7), (1, 40), (48, 64), (200, 201)])
def test_fit_square_against_the_written_out_reference(shape: tuple[int, int]) -> None:
    pixels = picture(*shape)
    fitted = fit_square(pixels, 32)
    assert fitted.shape == (32, 32, 3) and fitted.dtype == np.uint8
    np.testing.assert_array_equal(fitted, reference_square(pixels, 32) if shape != (32, 32) else pixels)


STRIPS = [
    *[(1, 5000, 32), (5000, 1, 32), (2, 4999, 33), (4999, 3, 32), (37, 1999, 32), (1999, 37, 32)],
    *[(100, 1601, 32), (1701, 100, 31), (31, 997, 32), (5, 86, 512), (997, 31, 16), (333, 9001, 16), (64, 1025, 64)],
]


@pytest.mark.parametrize(("height", "width", "side"), STRIPS)
def test_strips_equal_the_reference_to_the_last_bit(height: int, width: int, side: int) -> None:
    """Beyond 16:1 only the middle is scaled, with the very weights that Pillow scales all of it with."""
    pixels = picture(height, width, seed=height)
    fitted = fit_square(pixels, side)
    assert fitted.dtype == np.uint8
    np.testing.assert_array_equal(fitted, reference_square(pixels, side))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(17, 60), st.integers(0, 39), st.booleans(), st.sampled_from([7, 16, 33]))
def test_any_strip_equals_the_reference(short: int, ratio: int, more: int, tall: bool, side: int) -> None:
    shape = (short, short * ratio + more % short)
    pixels = picture(*(shape[::-1] if tall else shape), seed=short)
    np.testing.assert_array_equal(fit_square(pixels, side), reference_square(pixels, side))


def test_fit_square_keeps_the_centre_of_a_wide_frame() -> None:
    frame = picture(48, 64)
    np.testing.assert_array_equal(fit_square(frame, 48), frame[:, 8:56])


@pytest.mark.parametrize(("shape", "side"), [((1, 5000), 64), ((9000, 2), 64), ((3, 30_000), 63), ((3000, 1), 7)])
def test_strips_are_cut_before_they_are_scaled(
    shape: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = picture(*shape)
    expected = reference_square(pixels, side)
    monkeypatch.setattr("wm.images.MAX_PIXELS", side * side)
    np.testing.assert_array_equal(fit_square(pixels, side), expected)


def test_the_longest_strip_that_is_accepted_takes_little_memory() -> None:
    """Scaled whole it would have 512 x 2 x 10^10 pixels."""
    strip = np.zeros((1, 40_000_000, 3), np.uint8)
    strip[0, 20_000_000 - 4 : 20_000_000 + 4] = 200
    fitted = fit_square(strip, 512)
    assert fitted.shape == (512, 512, 3)
    assert fitted[256, 256].tolist() == [200] * 3
    one = fit_square(np.full((1, 1, 3), 7, np.uint8), 512)
    assert one.shape == (512, 512, 3) and (one == 7).all()


def test_real_photographs(shared_data: Path) -> None:
    files = sorted((shared_data / "aurora-bench" / "data" / "magicbrush").rglob("*.png"))[:5]
    for file in files:
        with Image.open(file) as image:
            np.testing.assert_array_equal(decode_image(file.read_bytes(), file.name), np.asarray(image.convert("RGB")))
