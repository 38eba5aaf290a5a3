"""Read the brightness of decoded frames and shrink it, exact to the last bit on every machine.

Knows no orientation: :class:`wm.video.decode.RawFrame` lays frames upright.
"""

import re
from typing import Any

import av
import cv2
import numpy as np

from wm.images import Pixels
from wm.video.motion import Luma

_PLANAR_YUV = re.compile(r"(yuvj?a?4\d\dp(\d+le)?|nv12|nv21|nv16|nv24)")
_FULL_RANGE = 2
_WIDEN = np.clip((np.arange(256) - 16.0) * (255.0 / 219.0) + 0.5, 0, 255).astype(np.uint8)


def small_size(height_px: int, width_px: int, side_px: int) -> tuple[int, int]:
    """Compute the (height, width) that :func:`shrink` leaves of a frame.

    Args:
        height_px: Of the frame.
        width_px: Of the frame.
        side_px: Min long side that is left.
    """
    halvings = num_halvings(height_px, width_px, side_px)
    return height_px >> halvings, width_px >> halvings


def num_halvings(height_px: int, width_px: int, side_px: int) -> int:
    """Count how often :func:`shrink` halves a frame.

    Args:
        height_px: Of the frame.
        width_px: Of the frame.
        side_px: Min long side that is left.
    """
    # As shrink does it: the long side counts, and no side is halved to nothing.
    halvings = 0
    while max(height_px, width_px) >> halvings + 1 >= side_px and min(height_px, width_px) >> halvings + 1:
        halvings += 1
    return halvings


def shrink(luma_HW: Any, side_px: int) -> Any:
    """Halve as often as the long side stays ``side_px`` or more; a last odd row or column is left out.

    Means of 2 x 2 pixels: the one reduction that costs next to nothing, and exact to the last bit everywhere.

    Args:
        luma_HW: uint8 or uint16 brightness.
        side_px: Min long side that is left.
    """
    while (smaller := halve(luma_HW, side_px)) is not luma_HW:
        luma_HW = smaller
    return luma_HW


def grey_luma(rgb_HWC: Pixels, side_px: int) -> Luma:
    """Compute what :meth:`wm.video.decode.RawFrame.luma` gives from another reader's upright colour frame.

    Args:
        rgb_HWC: uint8, upright.
        side_px: Min long side that is left.
    """
    grey: Luma = shrink(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY), side_px)
    return grey


def halve(luma_HW: Any, side_px: int) -> Any:
    """Halve by means of 2 x 2 pixels, or return the array itself where its long side would fall below ``side_px``.

    Args:
        luma_HW: uint8 or uint16 brightness.
        side_px: Min long side that is left.
    """
    height, width = luma_HW.shape
    if max(height, width) // 2 < side_px or min(height, width) < 2:
        return luma_HW
    # Even sides only: then each mean is of exactly four pixels.
    height, width = height // 2, width // 2
    return cv2.resize(luma_HW[: 2 * height, : 2 * width], (width, height), interpolation=cv2.INTER_AREA)


def luma_plane(frame: av.VideoFrame) -> tuple[Any, int, bool]:
    """Return full-size brightness, the bits it has above 8, and whether its range is still the studio's.

    The brightness is a view of the frame's memory where it has a plane of its own.
    """
    name = frame.format.name
    if not _PLANAR_YUV.fullmatch(name):
        return frame.reformat(format="gray").to_ndarray(), 0, False  # swscale widens the range by itself
    bits = frame.format.components[0].bits
    plane = frame.planes[0]
    kind = np.uint8 if bits == 8 else np.uint16
    # Rows are padded to the alignment of the decoder.
    rows = np.frombuffer(plane, kind).reshape(-1, plane.line_size // np.dtype(kind).itemsize)
    widen = frame.color_range != _FULL_RANGE and not name.startswith("yuvj")
    return rows[: frame.height, : frame.width], bits - 8, widen


def widen_range(luma_HW: Luma) -> Luma:
    """Widen studio range (16 to 235) to 0..255."""
    return np.asarray(cv2.LUT(luma_HW, _WIDEN), dtype=np.uint8)
