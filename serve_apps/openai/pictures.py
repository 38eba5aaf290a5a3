"""Several images in one JSON request: data URLs alone, decoded under limits that hold for all of them together."""

import re
from collections.abc import Sequence
from typing import Any

from serve_apps.openai.checks import image_bytes
from serve_apps.openai.errors import ApiError, Limits
from wm.errors import InputError
from wm.images import Pixels, count_pixels, decode_image, fit_square

PIXEL_URL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4XmNoaGgAAAMEAYGyFkehAAAAAElFTkSuQmCC"
)
"""A grey image of one pixel, for examples."""
DATA_URL_SCHEMA = {
    "type": "string",
    "pattern": "^data:image/[a-z]+;base64,[A-Za-z0-9+/]+={0,2}$",
    "description": "A data URL of PNG, JPEG, WebP or BMP: data:image/png;base64,… Also read: base64 in lines, without "
    "padding, URL-safe.",
    "examples": [PIXEL_URL],
}
TOGETHER = 2
"""All images of a request may have so many times the pixels of one."""


def data_url_bytes(reference: Any, name: str) -> bytes:
    """Return the bytes of a data URL; addresses, paths and bare base64 are refused."""
    if isinstance(reference, str) and not re.match(r"(?ai)\s*data:", reference) and "://" not in reference[:64]:
        raise ApiError(f"{name}: expected a data URL that starts with data:image/…;base64,", param=name)
    if not isinstance(reference, str):
        raise ApiError(f"{name}: expected a data URL, got {type(reference).__name__}", param=name)
    return image_bytes(reference, name)


def count_pixels_of(images: Sequence[tuple[str, bytes]], limits: Limits) -> list[int]:
    """Read the sizes of named images, without decoding a pixel.

    Args:
        images: The name of each, for errors, and its bytes.
        limits: One image may have ``max_pixels``, all of them :data:`TOGETHER` times as many.

    Returns:
        Width x height of each.

    Raises:
        ApiError: It names the image that cannot be read or is too large.
    """
    counts: list[int] = []
    for name, data in images:
        try:
            counts.append(count_pixels(data, name, limits.max_pixels))
        except InputError as error:
            raise ApiError(str(error), param=name, code="invalid_image") from error
        if sum(counts) > TOGETHER * limits.max_pixels:
            raise _too_many(name, limits)
    return counts


def prepare_image(name: str, data: bytes, side_px: int, limits: Limits) -> Pixels:
    """Decode an image and fit it to the model, as uint8 (side_px, side_px, 3).

    Raises:
        ApiError: It names the image that cannot be read.
    """
    try:
        return fit_square(decode_image(data, name, limits.max_pixels), side_px)
    except InputError as error:
        raise ApiError(str(error), param=name, code="invalid_image") from error


def _too_many(name: str, limits: Limits) -> ApiError:
    most = TOGETHER * limits.max_pixels
    return ApiError(
        f"the images up to {name} have more than {most:,} pixels together", param=name, code="invalid_image"
    )
