"""Expand a frame into quadratic polynomials (Farnebäck 2003, section 2), compiled by numba.

Imported only where numba is installed (:mod:`wm.video.farneback`), as :mod:`wm.video.farneback_rows` is.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from numba import float32, njit

Function = TypeVar("Function", bound=Callable[..., object])
Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32]

RADIUS = 5


def compile_loops(function: Function) -> Function:
    """Compile on first use, and keep the result on disk where a folder is writable.

    Functions of one file only may call one another: the cache of a caller does not see another file change.

    Args:
        function: Loops over arrays.
    """
    # Products and sums may be fused, never reordered: results of two CPUs differ by rounding only. Arrays are not
    # counted (_nrt): counting costs as much as the loops over a short row, and nothing here outlives a call.
    settings = {"error_model": "numpy", "fastmath": {"contract"}, "_nrt": False}
    try:
        compiled: Function = njit(cache=True, **settings)(function)
    except RuntimeError:  # no folder for the cache: compiled anew in each process
        compiled = njit(**settings)(function)
    return compiled


@compile_loops
def _fold(  # noqa: PLR0917 - compiled functions take their arguments by position
    above: Floats, below: Floats, taps: Floats, mean: Floats, slope: Floats, square: Floats
) -> None:
    """Add two rows at one distance from the middle: even filters take their sum, the odd one their difference."""
    for x in range(len(above)):
        total, difference = above[x] + below[x], below[x] - above[x]
        mean[x] += taps[0] * total
        slope[x] += taps[1] * difference
        square[x] += taps[2] * total


@compile_loops
def _filter_along(row: Floats, taps: Floats, out: Floats, is_odd: bool) -> None:
    """Filter a padded row by 11 taps, of which those on the right are given; even, or odd."""
    sign = float32(-1.0) if is_odd else float32(1.0)
    t0, t1, t2, t3, t4, t5 = taps[0], taps[1], taps[2], taps[3], taps[4], taps[5]
    for x in range(len(out)):
        near = t1 * (row[x + 6] + sign * row[x + 4]) + t2 * (row[x + 7] + sign * row[x + 3])
        far = t3 * (row[x + 8] + sign * row[x + 2]) + t4 * (row[x + 9] + sign * row[x + 1])
        out[x] = t0 * row[x + 5] + near + (far + t5 * (row[x + 10] + sign * row[x]))


@compile_loops
def expand(image_HW: Floats, down_K3: Floats, along_5K: Floats, planes_5P: Floats, rows_3W: Floats) -> None:
    """Fit a quadratic polynomial around each pixel by separable filters; at the edges the last pixel is repeated.

    Args:
        image_HW: Brightness.
        down_K3: Vertical filters by distance from the middle: window, moment, square.
        along_5K: Horizontal filter of each coefficient.
        planes_5P: Coefficients with their margins (a row above and below, columns on either side), which are left as
            they are.
        rows_3W: Rows to work in, 10 pixels longer than the image's.
    """
    height, width = image_HW.shape
    # From the shape: a constant of another file would stay in the cache as it was.
    pitch = planes_5P.shape[1] // (height + 2)
    for y in range(height):
        mean, slope, square = rows_3W[0], rows_3W[1], rows_3W[2]
        middle = image_HW[y]
        for x in range(width):
            mean[x + 5] = down_K3[0, 0] * middle[x]
            square[x + 5] = down_K3[0, 2] * middle[x]
            slope[x + 5] = float32(0)
        for k in range(1, 6):
            above, below = image_HW[max(y - k, 0)], image_HW[min(y + k, height - 1)]
            _fold(above, below, down_K3[k], mean[5:], slope[5:], square[5:])
        for x in range(5):
            mean[x], mean[width + 5 + x] = mean[5], mean[width + 4]
            slope[x], slope[width + 5 + x] = slope[5], slope[width + 4]
            square[x], square[width + 5 + x] = square[5], square[width + 4]
        begin = (y + 1) * pitch + (pitch - width) // 2
        end = begin + width
        _filter_along(slope, along_5K[0], planes_5P[0, begin:end], False)
        _filter_along(mean, along_5K[1], planes_5P[1, begin:end], True)
        _filter_along(square, along_5K[2], planes_5P[2, begin:end], False)
        _filter_along(mean, along_5K[3], planes_5P[3, begin:end], False)
        _filter_along(slope, along_5K[4], planes_5P[4, begin:end], True)
