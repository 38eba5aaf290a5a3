# ruff: noqa: PLR0917 - compiled functions take their arguments by position
"""Run the iterations of Farnebäck's flow at one level of the pyramid, compiled by numba.

Each loop goes over contiguous rows of few arrays: only such loops become vector instructions (LLVM checks at run time
that arrays do not overlap, and gives up where there are many).
"""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from numba import float32, float64, int32, uint32

from wm.video.farneback_expand import Array, Floats, compile_loops, expand

__all__ = ["MARGIN", "build_scratch", "expand", "iterate"]

Ints: TypeAlias = npt.NDArray[np.int32]
Indices: TypeAlias = npt.NDArray[np.uint32]
Doubles: TypeAlias = npt.NDArray[np.float64]

MARGIN = 32
"""Columns of zeros on either side of an expansion, so that a row is read past its ends; above and below is one row."""
RADIUS = 7
"""The window is 15 x 15 px."""
ITERATIONS = 3
_RING = 16
"""Rows of matrices in memory: the window's, and the one that leaves it."""
_LAG = RADIUS + 1
"""Rows by which an iteration follows the one before it: so all of them use what is still in the CPU's cache."""
_MIN_DET = 1e-3
"""Added to a determinant, as OpenCV does: no flow where there is nothing to see."""
_BLOCK = 64
"""Pixels."""


@compile_loops
def _locate(dx: Floats, dy: Floats, y: int, height: int, frac_2W: Floats, half: Floats, shift_2W: Ints) -> None:
    """Find the pixel that each pixel's flow leads to.

    Sets its distance in pixels, rounded down (``shift_2W``) and not (``frac_2W``), and ``half``: 1/2, or 0 where
    it is outside the frame.
    """
    width = len(dx)
    for x in range(width):
        # With the column added, as OpenCV rounds it.
        at_x, at_y = float32(x) + dx[x], float32(y) + dy[x]
        column, row = np.floor(at_x), np.floor(at_y)
        is_inside = (column >= 0) & (column < float32(width - 1)) & (row >= 0) & (row < float32(height - 1))
        half[x] = float32(0.5) if is_inside else float32(0)
        # What is outside is read from the margin; in this order NaN stays inside it too. One column is left: a block
        # reads all of its pixels by the least shift among them.
        column = column if column > float32(1 - MARGIN) else float32(1 - MARGIN)
        column = column if column < float32(width + MARGIN - 4) else float32(width + MARGIN - 4)
        row = row if row > float32(-1) else float32(-1)
        row = row if row < float32(height - 2) else float32(height - 2)
        shift_2W[0, x], shift_2W[1, x] = int32(column) - int32(x), int32(row) - int32(y)
        frac_2W[0, x], frac_2W[1, x] = at_x - float32(x), at_y - float32(y)


@compile_loops
def _span(values: Ints) -> tuple[int, int]:
    low, high = values[0], values[0]
    for x in range(len(values)):
        low, high = min(low, values[x]), max(high, values[x])
    return low, high


@compile_loops
def _find_block(shift_2W: Ints, begin: int) -> tuple[int, bool, int, int]:
    """Return the end of a block of pixels, whether its shifts differ by 1 or less, and its least shifts."""
    end = shift_2W.shape[1]
    # The row's remainder at once, or a block.
    while True:
        low_x, high_x = _span(shift_2W[0, begin:end])
        low_y, high_y = _span(shift_2W[1, begin:end])
        is_near = (high_x - low_x <= 1) & (high_y - low_y <= 1)
        if is_near or end - begin <= _BLOCK:
            return end, is_near, low_x, low_y
        end = begin + _BLOCK


@compile_loops
def _weigh(frac: Floats, low: int, near: Floats, middle: Floats, far: Floats) -> None:
    """Set the weights of three pixels in a row, of which two are the neighbours of a bilinear sample."""
    for x in range(len(frac)):
        t = frac[x] - float32(low)
        near[x] = max(float32(1) - t, float32(0))
        far[x] = max(t - float32(1), float32(0))
        middle[x] = float32(1) - near[x] - far[x]


@compile_loops
def _sample_run(row0: Floats, row1: Floats, row2: Floats, w_6W: Floats, out: Floats) -> None:
    """Sample by 3 x 3 weights: twice the arithmetic of 2 x 2, but without an index a pixel."""
    for x in range(len(out)):
        a, b, c = w_6W[0, x], w_6W[1, x], w_6W[2, x]
        top = row0[x] * a + row0[x + 1] * b + row0[x + 2] * c
        centre = row1[x] * a + row1[x + 1] * b + row1[x + 2] * c
        bottom = row2[x] * a + row2[x + 1] * b + row2[x + 2] * c
        out[x] = top * w_6W[3, x] + centre * w_6W[4, x] + bottom * w_6W[5, x]


@compile_loops
def _index(
    shift_x: Ints, shift_y: Ints, frac_x: Floats, frac_y: Floats, origin: int, pitch: int, index: Indices, w_6W: Floats
) -> None:
    """Set where each pixel's 2 x 2 neighbours begin, and their weights."""
    for x in range(len(index)):
        index[x] = uint32(origin + x + shift_x[x] + shift_y[x] * pitch)
    for x in range(len(index)):
        right, down = frac_x[x] - float32(shift_x[x]), frac_y[x] - float32(shift_y[x])
        near, up = float32(1) - right, float32(1) - down
        w_6W[0, x], w_6W[1, x], w_6W[2, x], w_6W[3, x] = near * up, right * up, near * down, right * down


@compile_loops
def _sample_each(planes_5P: Floats, pitch: int, index: Indices, w_6W: Floats, out_5W: Floats, begin: int) -> None:
    """Sample pixel by pixel, where the flow differs too much."""
    y, x, yy, xx, xy = out_5W[0, begin:], out_5W[1, begin:], out_5W[2, begin:], out_5W[3, begin:], out_5W[4, begin:]
    for i in range(len(index)):
        a, b, c, d = w_6W[0, i], w_6W[1, i], w_6W[2, i], w_6W[3, i]
        at, below = index[i], index[i] + uint32(pitch)
        right, last = at + uint32(1), below + uint32(1)
        # Written out: one index and its weights serve all five.
        p = planes_5P
        y[i] = p[0, at] * a + p[0, right] * b + (p[0, below] * c + p[0, last] * d)
        x[i] = p[1, at] * a + p[1, right] * b + (p[1, below] * c + p[1, last] * d)
        yy[i] = p[2, at] * a + p[2, right] * b + (p[2, below] * c + p[2, last] * d)
        xx[i] = p[3, at] * a + p[3, right] * b + (p[3, below] * c + p[3, last] * d)
        xy[i] = p[4, at] * a + p[4, right] * b + (p[4, below] * c + p[4, last] * d)


@compile_loops
def _sample(
    planes_5P: Floats,
    origin: int,
    pitch: int,
    frac_2W: Floats,
    shift_2W: Ints,
    weights_6W: Floats,
    index_W: Indices,
    out_5W: Floats,
) -> None:
    """Sample a row of the later frame where its flow leads to, block by block."""
    width, begin = out_5W.shape[1], 0
    while begin < width:
        end, is_near, low_x, low_y = _find_block(shift_2W, begin)
        if is_near:
            _weigh(frac_2W[0, begin:end], low_x, weights_6W[0], weights_6W[1], weights_6W[2])
            _weigh(frac_2W[1, begin:end], low_y, weights_6W[3], weights_6W[4], weights_6W[5])
            row0 = origin + begin + low_x + low_y * pitch
            row1, row2 = row0 + pitch, row0 + 2 * pitch
            for c in range(5):
                plane = planes_5P[c]
                _sample_run(plane[row0:], plane[row1:], plane[row2:], weights_6W, out_5W[c, begin:end])
        else:
            shift_x, shift_y, index = shift_2W[0, begin:end], shift_2W[1, begin:end], index_W[: end - begin]
            frac_x, frac_y = frac_2W[0, begin:end], frac_2W[1, begin:end]
            _index(shift_x, shift_y, frac_x, frac_y, origin + begin, pitch, index, weights_6W)
            _sample_each(planes_5P, pitch, index, weights_6W, out_5W, begin)
        begin = end


@compile_loops
def _build_matrices(
    first: tuple[Floats, ...], second_5W: Floats, half: Floats, dx: Floats, dy: Floats, weights: Floats, m: Floats
) -> None:
    """Build each pixel's A'A (three values) and A'b (two) from both expansions (Farnebäck 2003, section 4)."""
    y0, x0, yy0, xx0, xy0 = first
    pitch = len(dx) + 2 * RADIUS
    m_yy, m_xy, m_xx = m[RADIUS:], m[RADIUS + pitch :], m[RADIUS + 2 * pitch :]
    m_y, m_x = m[RADIUS + 3 * pitch :], m[RADIUS + 4 * pitch :]
    for x in range(len(dx)):
        near = half[x]
        own = float32(1) - near
        a_yy = yy0[x] * own + second_5W[2, x] * near
        a_xx = xx0[x] * own + second_5W[3, x] * near
        a_xy = (xy0[x] * own + second_5W[4, x] * near) * float32(0.5)
        b_y = y0[x] * float32(0.5) - second_5W[0, x] * near + (a_yy * dy[x] + a_xy * dx[x])
        b_x = x0[x] * float32(0.5) - second_5W[1, x] * near + (a_xy * dy[x] + a_xx * dx[x])
        weight = weights[x]
        m_yy[x] = (a_yy * a_yy + a_xy * a_xy) * weight
        m_xy[x] = (a_yy + a_xx) * a_xy * weight
        m_xx[x] = (a_xx * a_xx + a_xy * a_xy) * weight
        m_y[x] = (a_yy * b_y + a_xy * b_x) * weight
        m_x[x] = (a_xy * b_y + a_xx * b_x) * weight


@compile_loops
def _slide(sums: Doubles, new: Floats, old: Floats, padded: Floats) -> None:
    """Move the window down by a row. In doubles: the sums run down the complete frame."""
    for x in range(len(new)):
        total = sums[x] + (float64(new[x]) - float64(old[x]))
        sums[x] = total
        padded[x] = float32(total)


@compile_loops
def _sum_along(padded: Floats, threes: Floats, window: Floats, width: int) -> None:
    """Sum along the row: five channels side by side, each with the window's radius at either end."""
    # At the edges the last pixel is repeated.
    for begin in range(0, len(padded), width + 2 * RADIUS):
        first, last = begin + RADIUS, begin + RADIUS + width - 1
        for x in range(1, RADIUS + 1):
            padded[first - x], padded[last + x] = padded[first], padded[last]
    # 15 = 5 x 3, without differences of large sums.
    for x in range(len(threes)):
        threes[x] = padded[x] + padded[x + 1] + padded[x + 2]
    for x in range(len(window)):
        window[x] = threes[x] + threes[x + 3] + threes[x + 6] + threes[x + 9] + threes[x + 12]


@compile_loops
def _solve(yy: Floats, xy: Floats, xx: Floats, y: Floats, x: Floats, dx: Floats, dy: Floats) -> None:
    """Solve each pixel's two equations for its flow."""
    mean = 1.0 / float64((2 * RADIUS + 1) ** 2)
    for i in range(len(dx)):
        a, b, c, d, e = yy[i] * mean, xy[i] * mean, xx[i] * mean, y[i] * mean, x[i] * mean
        scale = 1.0 / (a * c - b * b + _MIN_DET)
        dx[i], dy[i] = float32((a * e - b * d) * scale), float32((c * d - b * e) * scale)


@compile_loops
def iterate(
    first_5P: Floats,
    second_5P: Floats,
    flow_2HW: Floats,
    border_HW: Floats,
    scratch: tuple[Array, ...],
) -> None:
    """Improve a flow by three iterations, in place.

    Args:
        first_5P: Expansion of the earlier frame with its margins (:func:`wm.video.farneback.expand`).
        second_5P: Of the later one.
        flow_2HW: Horizontal and vertical flow in px; 16 rows or more.
        border_HW: Squared weight of each pixel's equations.
        scratch: :func:`build_scratch` of the width.
    """
    height, width = flow_2HW.shape[1:]
    pitch = width + 2 * MARGIN
    ring, sums, frac_2W, shift_2W, half, weights_6W, sample_5W, padded, threes, index_W, window, zeros = scratch
    padded_width = width + 2 * RADIUS
    for step in range(height + RADIUS + (ITERATIONS - 1) * _LAG):
        for k in range(ITERATIONS):
            y = step - k * _LAG
            if y < 0 or y >= height + RADIUS:
                continue
            if y < height:
                # 1. Sample the later frame where the flow of the iteration before leads to.
                dx, dy, origin = flow_2HW[0, y], flow_2HW[1, y], (y + 1) * pitch + MARGIN
                _locate(dx, dy, y, height, frac_2W, half, shift_2W)
                rows = frac_2W, shift_2W, weights_6W, index_W, sample_5W
                _sample(second_5P, origin, pitch, *rows)
                # 2. Equations of this row.
                end = origin + width
                y0, x0, yy0 = first_5P[0, origin:end], first_5P[1, origin:end], first_5P[2, origin:end]
                first = (y0, x0, yy0, first_5P[3, origin:end], first_5P[4, origin:end])
                _build_matrices(first, sample_5W, half, dx, dy, border_HW[y], ring[k, y % _RING])
            # 3. Sum them over the window, and solve for the row in its middle.
            new, old = ring[k, min(y, height - 1) % _RING], ring[k, max(y - 2 * RADIUS - 1, 0) % _RING]
            # Above the frame its first row is repeated.
            if y == 0:
                sums[k] = 0.0
            for _ in range(RADIUS + 2 if y == 0 else 1):
                _slide(sums[k], new, old if y >= RADIUS else zeros, padded)
            if y >= RADIUS:
                _sum_along(padded, threes, window, width)
                yy, xy, xx = window[:width], window[padded_width:], window[2 * padded_width :]
                y_, x_ = window[3 * padded_width :], window[4 * padded_width :]
                _solve(yy, xy, xx, y_, x_, flow_2HW[0, y - RADIUS], flow_2HW[1, y - RADIUS])


def build_scratch(width: int) -> tuple[Array, ...]:
    """Allocate the rows that :func:`iterate` works in.

    Args:
        width: Of the level, in px.
    """
    padded_5W = 5 * (width + 2 * RADIUS)
    return (
        np.zeros((ITERATIONS, _RING, padded_5W), np.float32),
        np.zeros((ITERATIONS, padded_5W), np.float64),
        np.empty((2, width), np.float32),
        np.empty((2, width), np.int32),
        np.empty(width, np.float32),
        np.empty((6, width), np.float32),
        np.empty((5, width), np.float32),
        np.empty(padded_5W, np.float32),
        np.empty(padded_5W - 2, np.float32),
        np.empty(_BLOCK, np.uint32),
        np.empty(padded_5W - 2 * RADIUS, np.float32),
        np.zeros(padded_5W, np.float32),
    )
