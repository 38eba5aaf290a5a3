"""Pixels in and out of bytes. Every byte string that comes from outside is read here, with limits."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from wm.errors import InputError

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""uint8 RGB, shape (height, width, 3)."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 40_000_000
MAX_ASPECT = 16
"""Strips longer than so many squares are cut before they are scaled: a kilobyte of them would cost seconds."""


def encode_png(pixels_HWC: Pixels) -> bytes:
    """Lossless PNG bytes of a uint8 RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB" if pixels_HWC.ndim == 3 else "L").save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode PNG, JPEG, WebP or BMP bytes to RGB, EXIF rotation applied; see :func:`_rgb` for other modes.

    The size is checked before a pixel is decoded. Raises :class:`InputError` that calls the image ``name``.
    """
    with _open_image(data, name, max_pixels) as image:
        upright = ImageOps.exif_transpose(image)
        return _rgb(upright or image)


def count_pixels(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> int:
    """Read width x height of an image without decoding it. Raises as :func:`decode_image` does."""
    with _open_image(data, name, max_pixels) as image:
        return image.width * image.height


@contextmanager
def _open_image(data: bytes, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """Open an image whose size is accepted. What fails inside the block is an :class:`InputError` too."""
    if not data:
        raise InputError(f"{name} is empty; expected an image ({', '.join(FORMATS)})")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > max_pixels:
                    raise InputError(
                        f"{name} has {image.width} x {image.height} pixels; at most {max_pixels:,} are accepted"
                    )
                yield image
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has too many pixels; at most {max_pixels:,} are accepted") from error
    except Exception as error:
        # Pillow has many ways to fail on hostile bytes (struct.error and TypeError in damaged EXIF among them).
        raise InputError(f"{name} is no readable image ({', '.join(FORMATS)}): {error}") from error


def _rgb(image: Image.Image) -> Pixels:
    """Of 16 bits the upper 8 are kept, where Pillow's own conversion would clip at 255. What is transparent becomes
    white, as in Chameleon's release (facebookresearch/chameleon, image_tokenizer.py, ``_whiten_transparency``)."""
    if image.mode.startswith("I"):
        grey_HW = (np.array(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8)
        return np.repeat(grey_HW[..., None], 3, axis=2)
    if not image.has_transparency_data:
        return np.array(image.convert("RGB"))
    rgba_HWC = np.array(image.convert("RGBA"))
    alpha_HW1 = rgba_HWC[..., 3:].astype(np.float32) / 255
    # In place: three copies of a large picture in float32 would take 1.5 GB.
    rgb_HWC = rgba_HWC[..., :3].astype(np.float32)
    rgb_HWC *= alpha_HW1
    rgb_HWC += 255 * (1 - alpha_HW1)
    return rgb_HWC.astype(np.uint8)


def fit_square(pixels_HWC: Pixels, side_px: int) -> Pixels:
    """Scale the short side to ``side_px`` and cut the centre square: Chameleon's image preparation.

    Lanczos, as in the release's image processor (facebookresearch/chameleon, image_tokenizer.py: resize, centre crop).
    """
    if pixels_HWC.shape[:2] == (side_px, side_px):
        return pixels_HWC
    size = _scaled(pixels_HWC, side_px)
    if size[0] * size[1] > min(MAX_PIXELS, MAX_ASPECT * side_px**2):
        pixels_HWC = _middle(pixels_HWC, side_px)
        size = _scaled(pixels_HWC, side_px)
    image = Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return np.array(image.crop((left, top, left + side_px, top + side_px)))


def _scaled(pixels_HWC: Pixels, side_px: int) -> tuple[int, int]:
    """Width and height when the short side is ``side_px``."""
    height, width = pixels_HWC.shape[:2]
    scale = side_px / min(height, width)
    return max(side_px, round(width * scale)), max(side_px, round(height * scale))


def _middle(pixels_HWC: Pixels, side_px: int) -> Pixels:
    """Of a strip the middle, with as much beside the square as Lanczos' filter reaches (3 pixels of the coarser
    grid). A strip of 1 x 40,000,000 pixels is accepted; scaled whole it would be far larger."""
    short = min(pixels_HWC.shape[:2])
    beside = 3 * max(1, -(-short // side_px)) + 2
    height, width = (max(0, (length - short) // 2 - beside) for length in pixels_HWC.shape[:2])
    return pixels_HWC[height : pixels_HWC.shape[0] - height, width : pixels_HWC.shape[1] - width]
