"""Read the brightness of decoded frames and shrink it, exact to the last bit on every machine.

Knows no orientation: :class:`wm.video.decode.RawFrame` lays frames upright.
"""

import re
from functools import lru_cache
from typing import Any

import av
import cv2
import numpy as np

from wm.images import Pixels
from wm.video.motion import Luma

_PLANAR_YUV = re.compile(r"(yuvj?a?4\d\dp(\d+le)?|nv12|nv21|nv16|nv24)")
_FULL_RANGE = 2
_WIDEN = np.clip((np.arange(256) - 16.0) * (255.0 / 219.0) + 0.5, 0, 255).astype(np.uint8)


@lru_cache(maxsize=256)
def _halved_sizes(height_px: int, width_px: int, side_px: int) -> tuple[tuple[int, int], ...]:
    """List the (height, width) after each halving."""
    # The long side counts, and no side is halved to nothing.
    sizes: list[tuple[int, int]] = []
    while max(height_px, width_px) // 2 >= side_px and min(height_px, width_px) >= 2:
        height_px, width_px = height_px // 2, width_px // 2
        sizes.append((height_px, width_px))
    return tuple(sizes)


def small_size(height_px: int, width_px: int, side_px: int) -> tuple[int, int]:
    """Compute the (height, width) that :func:`shrink` leaves of a frame.

    Args:
        height_px: Of the frame.
        width_px: Of the frame.
        side_px: Min long side that is left.
    """
    return ((height_px, width_px), *_halved_sizes(height_px, width_px, side_px))[-1]


def num_halvings(height_px: int, width_px: int, side_px: int) -> int:
    """Count how often :func:`shrink` halves a frame.

    Args:
        height_px: Of the frame.
        width_px: Of the frame.
        side_px: Min long side that is left.
    """
    return len(_halved_sizes(height_px, width_px, side_px))


def shrink(luma_HW: Any, side_px: int, max_halvings: int | None = None) -> Any:
    """Halve as often as the long side stays ``side_px`` or more; a last odd row or column is left out.

    Means of 2 x 2 pixels: the one reduction that costs next to nothing, and exact to the last bit everywhere.

    Args:
        luma_HW: uint8 or uint16 brightness.
        side_px: Min long side that is left.
        max_halvings: Halve at most so often; None: no limit.

    Returns:
        The smaller array, or the array itself where there is nothing to halve.
    """
    for height, width in _halved_sizes(*luma_HW.shape, side_px)[:max_halvings]:
        # Even sides only: then each mean is of exactly four pixels.
        even_HW = luma_HW[: 2 * height, : 2 * width]
        luma_HW = cv2.resize(even_HW, (width, height), interpolation=cv2.INTER_AREA)
    return luma_HW


def grey_luma(rgb_HWC: Pixels, side_px: int) -> Luma:
    """Compute what :meth:`wm.video.decode.RawFrame.luma` gives from another reader's upright colour frame.

    Args:
        rgb_HWC: uint8, upright.
        side_px: Min long side that is left.
    """
    grey: Luma = shrink(cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY), side_px)
    return grey


@lru_cache(maxsize=64)
def _sample_layout(format_name: str) -> tuple[type[np.uint8] | type[np.uint16], int, bool] | None:
    """Return the kind of a sample, the bits it has above 8, and whether its range is full by the format's name; None
    for a format without a plane of brightness."""
    if not _PLANAR_YUV.fullmatch(format_name):
        return None
    bits = av.VideoFormat(format_name).components[0].bits
    return np.uint8 if bits == 8 else np.uint16, bits - 8, format_name.startswith("yuvj")


def luma_plane(frame: av.VideoFrame) -> tuple[Any, int, bool]:
    """Return full-size brightness, the bits it has above 8, and whether its range is still the studio's.

    The brightness is a view of the frame's memory where it has a plane of its own.
    """
    layout = _sample_layout(frame.format.name)
    if layout is None:
        return frame.reformat(format="gray").to_ndarray(), 0, False  # swscale widens the range by itself
    kind, excess_bits, is_full_range = layout
    plane = frame.planes[0]
    # Rows are padded to the alignment of the decoder.
    rows = np.frombuffer(plane, kind).reshape(frame.height, -1)
    # A frame that is stored from the bottom up has a negative one.
    if plane.line_size < 0:
        rows = np.ascontiguousarray(rows[::-1])
    return rows[:, : frame.width], excess_bits, not is_full_range and frame.color_range != _FULL_RANGE


def widen_range(luma_HW: Luma) -> Luma:
    """Widen studio range (16 to 235) to 0..255."""
    return np.asarray(cv2.LUT(luma_HW, _WIDEN), dtype=np.uint8)
