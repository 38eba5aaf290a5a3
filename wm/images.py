"""Pixels in and out of bytes. Every byte string that comes from outside is read here, with limits."""

import io
import warnings
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from wm.errors import InputError

Pixels: TypeAlias = npt.NDArray[np.uint8]
"""uint8 RGB, shape (height, width, 3)."""

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
MAX_PIXELS = 40_000_000


def encode_png(pixels_HWC: Pixels) -> bytes:
    """Lossless PNG bytes of a uint8 RGB image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC, "RGB" if pixels_HWC.ndim == 3 else "L").save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def decode_image(data: bytes, name: str, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode PNG, JPEG, WebP or BMP bytes to RGB, EXIF rotation applied.

    The size is checked before a pixel is decoded. Raises :class:`InputError` that calls the image ``name``.
    """
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
                upright = ImageOps.exif_transpose(image)
                return np.array((upright or image).convert("RGB"))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{name} has too many pixels; at most {max_pixels:,} are accepted") from error
    except Exception as error:
        # Pillow has many ways to fail on hostile bytes (struct.error and TypeError in damaged EXIF among them).
        raise InputError(f"{name} is no readable image ({', '.join(FORMATS)}): {error}") from error


def fit_square(pixels_HWC: Pixels, side_px: int) -> Pixels:
    """Scale the short side to ``side_px`` and cut the centre square: Chameleon's image preparation.

    Lanczos, as in the release's image processor (facebookresearch/chameleon, image_tokenizer.py: resize, centre crop).
    """
    height, width = pixels_HWC.shape[:2]
    if (height, width) == (side_px, side_px):
        return pixels_HWC
    scale = side_px / min(height, width)
    size = (max(side_px, round(width * scale)), max(side_px, round(height * scale)))
    image = Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - side_px) // 2, (size[1] - side_px) // 2
    return np.array(image.crop((left, top, left + side_px, top + side_px)))
