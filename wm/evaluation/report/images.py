"""Encode images as data URIs, so that the report needs no other file."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from wm.images import decode_image, encode_png

THUMB_PX = 192
"""Images larger than this are shrunk and stored as JPEG; smaller ones stay as they are."""


def image_uri(path: Path) -> str:
    """Encode a PNG file as a data URI, shrunk to :data:`THUMB_PX` if larger."""
    data = path.read_bytes()
    pixels_HWC = decode_image(data, str(path))
    if max(pixels_HWC.shape[:2]) <= THUMB_PX:
        return _data_uri(data, "image/png")
    small = Image.fromarray(pixels_HWC)
    small.thumbnail((THUMB_PX, THUMB_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return _data_uri(buffer.getvalue(), "image/jpeg")


def heat_uri(weights: Sequence[float]) -> str:
    """Encode weights of a square of image tokens (row-major) as a see-through image, the largest being opaque."""
    weights_N = np.array(weights, dtype=np.float64)
    side = round(len(weights_N) ** 0.5)
    top = float(weights_N.max()) if len(weights_N) else 0.0
    # Without a square or without any change there is nothing to lay over the target.
    if side * side != len(weights_N) or top <= 0:
        return _data_uri(encode_png(np.zeros((1, 1, 3), dtype=np.uint8)), "image/png")
    rgba_HWC = np.empty((side, side, 4), dtype=np.uint8)
    rgba_HWC[..., :3] = (255, 96, 32)
    rgba_HWC[..., 3] = np.round((weights_N / top).reshape(side, side) * 215)
    buffer = io.BytesIO()
    Image.fromarray(rgba_HWC).save(buffer, "PNG")
    return _data_uri(buffer.getvalue(), "image/png")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
