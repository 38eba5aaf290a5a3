"""Bytes from outside become pixels, or an error that names them."""

import contextlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from wm.errors import InputError
from wm.images import decode_image, encode_png, fit_square


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


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


def test_exif_rotation_is_applied() -> None:
    pixels = picture(4, 7)
    turns = {1: lambda a: a, 3: lambda a: np.rot90(a, 2), 6: lambda a: np.rot90(a, -1), 8: np.rot90, 2: np.fliplr}
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(pixels, "PNG", exif=exif)
        np.testing.assert_array_equal(decode_image(data, "x"), turn(pixels))


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
    """Chameleon's processor, written out: scale the short side, cut the centre."""
    image = Image.fromarray(pixels)
    width, height = image.size
    if width <= height:
        image = image.resize((side, max(side, round(height * side / width))), Image.Resampling.LANCZOS)
    else:
        image = image.resize((max(side, round(width * side / height)), side), Image.Resampling.LANCZOS)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image)[top : top + side, left : left + side]


@pytest.mark.parametrize("shape", [(32, 32), (31, 57), (90, 33), (7, 7), (1, 40), (48, 64), (200, 201)])
def test_fit_square_against_the_written_out_reference(shape: tuple[int, int]) -> None:
    pixels = picture(*shape)
    fitted = fit_square(pixels, 32)
    assert fitted.shape == (32, 32, 3) and fitted.dtype == np.uint8
    np.testing.assert_array_equal(fitted, reference_square(pixels, 32) if shape != (32, 32) else pixels)


def test_fit_square_keeps_the_centre_of_a_wide_frame() -> None:
    frame = picture(48, 64)
    np.testing.assert_array_equal(fit_square(frame, 48), frame[:, 8:56])


@pytest.mark.parametrize(("shape", "side"), [((1, 5000), 64), ((9000, 2), 64), ((3, 30_000), 63), ((3000, 1), 7)])
def test_strips_are_cut_before_they_are_scaled(
    shape: tuple[int, int], side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the short side grows by a whole factor, the very same square."""
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
