"""Convert images from and to encoded bytes, and to the square that a codec reads.

Every byte string that comes from outside is decoded here, with limits. Not known here: codecs, models, files.
"""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import PIL
from PIL import ExifTags, Image, UnidentifiedImageError

from wm.errors import InputError

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""uint8 RGB, shape (height, width, 3)."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 40_000_000
MAX_ASPECT = 16
"""Only the middle of a strip longer than so many squares is scaled: a kilobyte of strip would cost seconds."""

_PNG_GREY, _PNG_RGB = 0, 2
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the transposition that makes such an image upright."""
_LANCZOS = Image.Resampling.LANCZOS
_TALL_FIRST = int(PIL.__version__.split(".")[0]) >= 13
"""From version 13 on Pillow scales along the height first where this shrinks more than twice as many pixels as the
width; in versions before always along the width first. The two differ by rounding."""
_WEIGHT_BITS = 22
"""Pillow's weights are whole numbers of 2**-22."""


def encode_png(pixels_HWC: Pixels) -> bytes:
    """Encode uint8 pixels, RGB (height, width, 3) or grey (height, width), as a lossless PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB" if pixels_HWC.ndim == 3 else "L").save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode PNG, JPEG, WebP or BMP bytes to RGB, EXIF orientation applied and transparency put on white.

    Args:
        data: The file's bytes; its size in pixels is checked before a pixel is decoded.
        name: Name of the image in errors.
        max_pixels: Max width x height.

    Returns:
        uint8, shape (height, width, 3).

    Raises:
        InputError: The bytes are no such image, or one of more pixels.
    """
    with _open_image(data, name, max_pixels) as image:
        image.load()  # metadata may follow the pixels
        transposition = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        pixels_HWC = _to_rgb(image, data)
        if transposition is None:
            return pixels_HWC
        return np.array(Image.fromarray(pixels_HWC).transpose(transposition))


def read_size(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read width and height of an image, upright, without decoding it.

    Args:
        data: The file's bytes.
        name: Name of the image in errors.
        max_pixels: Max width x height.

    Returns:
        Pixels of both sides.

    Raises:
        InputError: The bytes are no such image, or one of more pixels.
    """
    with _open_image(data, name, max_pixels) as image:
        # Orientations 5 to 8 exchange the sides.
        is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
        return (image.height, image.width) if is_turned else (image.width, image.height)


@contextmanager
def _open_image(data: bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image whose size is accepted. What fails inside the block is an :class:`InputError` too."""
    if not data:
        raise InputError(f"{name} is empty; expected an image ({', '.join(FORMATS)})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                # Only the header is read so far: a small file may hold gigabytes of pixels.
                if image.width * image.height > max_pixels:
                    raise InputError(
                        f"{name} has {image.width} x {image.height} pixels; at most {max_pixels:,} are accepted"
                    )
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has too many pixels; at most {max_pixels:,} are accepted") from error
    except UnidentifiedImageError as error:
        # Pillow's message names the buffer by its address: rejects would differ from run to run.
        raise InputError(f"{name} is no readable image ({', '.join(FORMATS)})") from error
    except Exception as error:
        # Pillow has many ways to fail on hostile bytes (struct.error and TypeError in damaged EXIF among them).
        raise InputError(f"{name} is no readable image ({', '.join(FORMATS)}): {error}") from error


def _to_rgb(image: Image.Image, data: bytes) -> Pixels:
    """Convert an image of any mode to RGB and put transparent pixels on white.

    White, as in Chameleon's release (facebookresearch/chameleon, image_tokenizer.py, ``_whiten_transparency``). Of 16
    bits the upper 8 are kept, where Pillow's own conversion would clip at 255. Colour profiles and gamma are
    ignored, as there.

    Args:
        image: The decoded image, in the file's orientation.
        data: The file that it was decoded from.
    """
    key = _transparent_key(image, data)
    if key is not None:
        pixels_HWC = _grey_16_to_rgb(image) if image.mode.startswith("I") else np.array(image.convert("RGB"))
        pixels_HWC[key] = 255
        return pixels_HWC
    if image.mode.startswith("I"):
        return _grey_16_to_rgb(image)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba_HWC = np.array(image.convert("RGBA"))
    # Over white: colour x alpha + 255 x (1 - alpha).
    alpha_HW1 = rgba_HWC[..., 3:].astype(np.float32) / 255
    # In place: three copies of a large image in float32 would take 1.5 GB.
    rgb_HWC = rgba_HWC[..., :3].astype(np.float32)
    rgb_HWC *= alpha_HW1
    rgb_HWC += 255 * (1 - alpha_HW1)
    return rgb_HWC.astype(np.uint8)


def _grey_16_to_rgb(image: Image.Image) -> Pixels:
    grey_HW = (np.array(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
    return np.repeat(grey_HW[..., None], 3, axis=2)


def _transparent_key(image: Image.Image, data: bytes) -> npt.NDArray[np.bool_] | None:
    """Mark the pixels of a PNG that have its one transparent value, or return None for an image without such a value.

    The value is in the file's own bits (PNG specification, 11.3.2.1): 0 to 3 with 2 bits a pixel, of which Pillow makes
    0 to 255, and 0 to 65,535 with 16, of which it keeps the upper 8. Its own conversion compares one with the other.
    """
    # Palettes carry bytes here, and are converted right by Pillow.
    value = image.info.get("transparency")
    if image.format != "PNG" or not isinstance(value, int | tuple):
        return None
    bit_depth, color_type = data[24], data[25]
    if color_type == _PNG_GREY and isinstance(value, int):
        value &= (1 << bit_depth) - 1
        if bit_depth == 16:
            return np.asarray(np.array(image).astype(np.int64) == value)
        # Fewer bits are spread evenly over 0 to 255, which is divisible by 1, 3 and 15.
        return np.asarray(np.array(image.convert("L")) == value * 255 // ((1 << bit_depth) - 1))
    if color_type == _PNG_RGB and isinstance(value, tuple):
        color = np.array(value) & (1 << bit_depth) - 1
        pixels_HWC = _decode_16_bits(data) if bit_depth == 16 else np.array(image)
        return np.asarray((pixels_HWC == color).all(axis=-1))
    return None


def _decode_16_bits(data: bytes) -> npt.NDArray[np.uint16]:
    """Decode an RGB PNG of 16 bits in full by OpenCV, as Pillow drops the lower 8."""
    import cv2

    pixels_HWC = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels_HWC is None or pixels_HWC.ndim != 3 or pixels_HWC.dtype != np.uint16:
        raise ValueError("its 16-bit pixels cannot be decoded")
    return np.asarray(pixels_HWC[..., 2::-1], np.uint16)


def fit_square(pixels_HWC: Pixels, side_px: int) -> Pixels:
    """Scale the short side to ``side_px`` and cut the centre square: Chameleon's image preparation.

    Lanczos, as in the release's image processor (facebookresearch/chameleon, image_tokenizer.py: resize, centre crop).

    Args:
        pixels_HWC: uint8 RGB of any size.
        side_px: Side of the square, in pixels.

    Returns:
        uint8, shape (side_px, side_px, 3).
    """
    if pixels_HWC.shape[:2] == (side_px, side_px):
        return pixels_HWC
    size = _scaled_size(pixels_HWC, side_px)
    # All of a long strip is never computed: it would cost seconds.
    if size[0] * size[1] > min(MAX_PIXELS, MAX_ASPECT * side_px**2):
        return _fit_strip(pixels_HWC, side_px, size)
    image = Image.fromarray(pixels_HWC).resize(size, _LANCZOS)
    left_px, top_px = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return np.array(image.crop((left_px, top_px, left_px + side_px, top_px + side_px)))


def _scaled_size(pixels_HWC: Pixels, side_px: int) -> tuple[int, int]:
    """Compute width and height when the short side is ``side_px``."""
    height, width = pixels_HWC.shape[:2]
    scale = side_px / min(height, width)
    return max(side_px, round(width * scale)), max(side_px, round(height * scale))


def _fit_strip(pixels_HWC: Pixels, side_px: int, size: tuple[int, int]) -> Pixels:
    """Scale a strip and cut its centre square, without computing the rest.

    Equal to the last bit to scaling all of it. Pillow scales along one axis and then along the other, each with its own
    weights; of the long axis only the weights of the middle are built here, as Pillow builds them
    (libImaging/Resample.c). Its own ``resize(box=)`` takes single-precision bounds, which moves the image by a part of
    a pixel.
    """
    height, width = pixels_HWC.shape[:2]
    if width >= height:
        left_px = (size[0] - side_px) // 2
        middle_HWC = _resample_rows(pixels_HWC.swapaxes(0, 1), size[0], range(left_px, left_px + side_px)).swapaxes(
            0, 1
        )
        return _resize(middle_HWC, (side_px, side_px))
    top_px = (size[1] - side_px) // 2
    middle = range(top_px, top_px + side_px)
    if width > side_px and _TALL_FIRST:
        return _resize(_resample_rows(pixels_HWC, size[1], middle), (side_px, side_px))
    # Of the rows only those that the filter of the middle reaches are scaled.
    first = _row_weights(height, size[1], middle[0])[0].start
    stop = _row_weights(height, size[1], middle[-1])[0].stop
    rows_HWC = _resize(pixels_HWC[first:stop], (side_px, stop - first))
    return _resample_rows(rows_HWC, size[1], middle, num_rows=height, first=first)


def _resize(pixels_HWC: Pixels, size: tuple[int, int]) -> Pixels:
    return np.array(Image.fromarray(np.ascontiguousarray(pixels_HWC)).resize(size, _LANCZOS))


def _resample_rows(
    pixels_HWC: Pixels, num_scaled: int, rows: range, num_rows: int | None = None, first: int = 0
) -> Pixels:
    """Scale along the first axis.

    Args:
        pixels_HWC: Rows ``first`` and following of an image, uint8.
        num_scaled: Rows of the scaled image.
        rows: The rows of the scaled image that are computed.
        num_rows: Rows of the complete image; those of ``pixels_HWC`` if None.
        first: Number of the first row in ``pixels_HWC``.

    Returns:
        uint8, shape (len(rows), W, C).
    """
    num_rows = len(pixels_HWC) if num_rows is None else num_rows
    scaled_HWC = np.empty((len(rows), *pixels_HWC.shape[1:]), np.uint8)
    for number, row in enumerate(rows):
        # Fixed-point sums with Pillow's rounding, so that results are equal to the last bit.
        span, weights = _row_weights(num_rows, num_scaled, row)
        reached = pixels_HWC[span.start - first : span.stop - first].astype(np.int64)
        sums = np.tensordot(weights, reached, axes=1) + (1 << _WEIGHT_BITS - 1)
        scaled_HWC[number] = (sums >> _WEIGHT_BITS).clip(0, 255)
    return scaled_HWC


def _row_weights(num_rows: int, num_scaled: int, row: int) -> tuple[range, npt.NDArray[np.int64]]:
    """Compute the rows that a scaled row is made of, and Pillow's weights of them, in units of 2**-22."""
    # In the order of Pillow's own operations, so that rounding is the same.
    scale = num_rows / num_scaled
    filter_scale = max(1.0, scale)
    center, support = (row + 0.5) * scale, 3 * filter_scale
    span = range(max(0, int(center - support + 0.5)), min(num_rows, int(center + support + 0.5)))
    weights = [_lanczos_weight((at - center + 0.5) * (1 / filter_scale)) for at in span]
    total = sum(weights)
    # Rounded half away from zero.
    units = [weight / total * (1 << _WEIGHT_BITS) if total else weight for weight in weights]
    return span, np.array([int(unit - 0.5 if unit < 0 else unit + 0.5) for unit in units], np.int64)


def _lanczos_weight(distance: float) -> float:
    """Compute Lanczos' window of three lobes."""
    return _sinc(distance) * _sinc(distance / 3) if -3 <= distance < 3 else 0.0


def _sinc(value: float) -> float:
    return math.sin(value * math.pi) / (value * math.pi) if value else 1.0
