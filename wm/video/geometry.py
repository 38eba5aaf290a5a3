"""Convert stored samples to the image that a player shows: orientation of the display matrix, square pixels.

ffmpeg's own output is the reference for both: it lays a frame as its display matrix says before any filter, and
``scale=iw*sar:ih`` makes its pixels square. Margins that only a container declares (``clap`` of MP4, ``PixelCrop`` of
Matroska) are kept: PyAV does not report them.
"""

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, TypeVar

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.sidedata.sidedata import Type
from PIL import Image

from wm.images import Pixels
from wm.video.errors import VideoError
from wm.video.motion import Luma

Element = TypeVar("Element", bound=np.generic)

SQUARE = Fraction(1)
MAX_SAMPLE_ASPECT_RATIO = 8
"""Wider or narrower samples are a damaged header's, and pixels stay as they are stored. Real ones, of tapes and discs,
lie between 2:5 and 3:1."""

_UNNAMED_SIDE_DATA = range(len(Type), len(Type) + 8)
"""Kinds of side data that FFmpeg may attach and this PyAV has no name for."""
_NO_FRAME = av.VideoFrame(2, 2, "gray")


@dataclass(frozen=True, slots=True)
class Orientation:
    """One of the eight ways to lay a frame.

    Attributes:
        transposed: Rows and columns are exchanged, before the flips.
        vertical_flip: The order of rows is reversed, as by ffmpeg's ``vflip``.
        horizontal_flip: The order of columns is reversed.
    """

    transposed: bool = False
    vertical_flip: bool = False
    horizontal_flip: bool = False

    def apply(self, pixels: npt.NDArray[Element]) -> npt.NDArray[Element]:
        """Lay an array of shape (height, width, ...) upright; return a view, or the array itself."""
        # Views only: a copy of every frame would cost more than its motion.
        if self.transposed:
            pixels = pixels.swapaxes(0, 1)
        if self.vertical_flip:
            pixels = pixels[::-1]
        if self.horizontal_flip:
            pixels = pixels[:, ::-1]
        return pixels

    @property
    def clockwise_turns(self) -> int:
        """Quarter turns that readers make who take the matrix for an angle: right but for a mirrored frame."""
        if self.transposed:
            return 3 if self.vertical_flip else 1
        return 2 if self.horizontal_flip else 0

    @property
    def filters(self) -> str:
        """The same in ffmpeg's filters, empty for a frame that is stored upright."""
        if self.transposed:
            if self.vertical_flip == self.horizontal_flip:
                return "transpose=clock_flip" if self.vertical_flip else "transpose=cclock_flip"
            return "transpose=cclock" if self.vertical_flip else "transpose=clock"
        return ",".join(["hflip"] * self.horizontal_flip + ["vflip"] * self.vertical_flip)


_ORIENTATIONS = {
    (transposed, vertical, horizontal): Orientation(transposed, vertical, horizontal)
    for transposed in (False, True)
    for vertical in (False, True)
    for horizontal in (False, True)
}
"""Each orientation once, so that frames are compared by identity."""
UPRIGHT = _ORIENTATIONS[False, False, False]


def orientation_of(frame: Any) -> Orientation | None:
    """Read the orientation of a decoded frame from the container's or the codec's display matrix; None if it has none.

    Raises:
        VideoError: ``odd_orientation``, see :func:`parse_display_matrix`.
    """
    try:
        side_data = frame.side_data
    except ValueError:  # PyAV stops at the first kind it has no name for, such as a JPEG's EXIF block
        side_data = _without_unnamed_side_data(frame).side_data
    matrix = bytes(side_data[Type.DISPLAYMATRIX]) if Type.DISPLAYMATRIX in side_data else b""
    # A frame and its side data hold each other, and frames that wait for the garbage collector fill the memory.
    side_data.__init__(_NO_FRAME)
    return parse_display_matrix(matrix) if matrix else None


@lru_cache(maxsize=64)
def parse_display_matrix(matrix: bytes) -> Orientation:
    """Read a display matrix as FFmpeg stores it: nine native int32, rows (a, b, u), (c, d, v), (x, y, w).

    A stored sample at (p, q) is shown at (ap + cq, bp + dq), up to shift and scale. Like ffmpeg, angles are rounded to
    degrees and a matrix that flattens the image counts as none.

    Raises:
        VideoError: ``odd_orientation`` for an angle that is no multiple of 90 degrees: the upright image would be no
            rectangle.
    """
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    x_scale, y_scale = math.hypot(a, c), math.hypot(b, d)
    # Compared by signs only: real matrices are scaled in many ways.
    if not x_scale or not y_scale:
        return UPRIGHT
    degrees = round(math.degrees(math.atan2(b / y_scale, a / x_scale)))
    if degrees % 90:
        raise VideoError(
            "odd_orientation", f"its display matrix turns it by {degrees} degrees, expected a multiple of 90"
        )
    if degrees % 180:
        return _ORIENTATIONS[True, b < 0, c < 0]
    return _ORIENTATIONS[False, d < 0, a < 0]


def _without_unnamed_side_data(frame: Any) -> Any:
    """Return the frame (its pixels are shared) without side data that PyAV cannot list."""
    # FFmpeg's filter knows every kind by its number, those that PyAV has no name for too.
    graph = av.filter.Graph()
    chain: list[Any] = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=SQUARE)]
    chain += [graph.add("sidedata", f"mode=delete:type={kind}") for kind in _UNNAMED_SIDE_DATA]
    graph.link_nodes(*chain, graph.add("buffersink")).configure()
    graph.push(frame)
    return graph.pull()


@dataclass(frozen=True, slots=True)
class SampleAspect:
    """Shape of a stored sample, and of a sample of the upright frame, by which its pixels are made square.

    The latter two are the object :data:`SQUARE` where there is nothing to scale: fractions are slow to compare.

    Attributes:
        ratio: Width over height of a stored sample, 1 where the file has none.
        as_stored: The same as it is applied to a frame that is not transposed.
        transposed: And to one that is.
    """

    ratio: Fraction
    as_stored: Fraction
    transposed: Fraction

    def upright(self, orientation: Orientation) -> Fraction:
        """Return the ratio of a sample of a frame of this orientation."""
        return self.transposed if orientation.transposed else self.as_stored

    def __str__(self) -> str:
        """Write the ratio as ffmpeg does (``64:45``), and whether it was of no use."""
        text = f"{self.ratio.numerator}:{self.ratio.denominator}"
        return text if self.as_stored == self.ratio else f"{text} (not applied)"


def sample_aspect(ratio: Fraction | None) -> SampleAspect:
    """Build the aspect of a stream's ``sample_aspect_ratio``; an absurd one is not applied."""
    ratio = ratio or SQUARE
    # Either way of the ratio, without division.
    in_bounds = 1 <= MAX_SAMPLE_ASPECT_RATIO * ratio <= MAX_SAMPLE_ASPECT_RATIO**2
    applied = ratio if in_bounds and ratio != SQUARE else SQUARE
    return SampleAspect(ratio, applied, SQUARE if applied is SQUARE else 1 / applied)


SQUARE_SAMPLES = sample_aspect(None)


def square_width(width_px: int, aspect: Fraction) -> int:
    """Compute the width of a frame of square pixels, with the rounding of ffmpeg's ``scale=iw*sar:ih``.

    Args:
        width_px: Width in stored samples.
        aspect: Width over height of a sample.
    """
    return int(width_px * (aspect.numerator / aspect.denominator)) or width_px


def to_square_pixels(pixels: Pixels, aspect: Fraction) -> Pixels:
    """Scale the columns of an upright uint8 image (height, width[, 3]) so that its pixels are square (bicubic).

    Args:
        pixels: the image; returned as it is where ``aspect`` is 1.
        aspect: width over height of one of its samples.
    """
    # Identity first: it is nearly always that, and fractions are slow to compare.
    if aspect is SQUARE or aspect == SQUARE:
        return pixels
    height_px, width_px = pixels.shape[:2]
    size = (square_width(width_px, aspect), height_px)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))


def to_square_luma(luma: Luma, aspect: Fraction) -> Luma:
    """Do the same to the small brightness of every frame that the motion pass measures: quicker and less smooth.

    Args:
        luma: uint8 (height, width).
        aspect: Width over height of a sample.
    """
    if aspect is SQUARE:
        return luma
    height_px, width_px = luma.shape
    square_px = square_width(width_px, aspect)
    if square_px == width_px:  # clips scaled by ffmpeg have ratios such as 256:255
        return luma
    interpolation = cv2.INTER_AREA if square_px < width_px else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(luma, (square_px, height_px), interpolation=interpolation), dtype=np.uint8)
