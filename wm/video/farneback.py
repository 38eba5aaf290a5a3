"""Measure Farnebäck's flow (2003) at OpenCV's settings (0.5, 3, 15, 3, 5, 1.2), each frame expanded once.

The steps and their order are those of OpenCV's ``calcOpticalFlowFarneback``: OpenCV blurs and scales the pyramid, the
rest is compiled by numba (:mod:`wm.video.farneback_expand`, :mod:`wm.video.farneback_rows`), the extra ``wm[fast]``.
Without it OpenCV measures: the same flow up to rounding, at a third to a fourth of the speed.
"""

from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
Pyramid: TypeAlias = list[Floats]
"""Expansion at each level, the coarsest first: float32 (5, height + 2, width + 2 margins), zeros around."""

_MIN_SIDE_PX = 32
"""No level of the pyramid is smaller, but for a frame that is."""
_MAX_HALVINGS = 3
_POLY_RADIUS = 5
_POLY_SIGMA = 1.2
_EDGE = np.array([0.14, 0.14, 0.4472, 0.4472, 0.4472], dtype=np.float32)
"""OpenCV's weights of the outermost five rows and columns."""


_PROBLEMS: list[str] = []
"""Why numba is not used, as long as the process lives."""


@lru_cache(maxsize=1)
def load_compiled() -> ModuleType | None:
    """Compile the loops, or load them from numba's cache; None where that fails."""
    if _PROBLEMS:
        return None
    try:
        # Only here: numba is optional, and its import costs half a second.
        compiled = import_module("wm.video.farneback_rows")
        FlowMeter(compiled).flow(*np.zeros((2, 16, 16), dtype=np.uint8))
    # A numba that does not suit Python, numpy, LLVM or the memory fails in many ways: no video should answer for it.
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [""])[0]
        _PROBLEMS.append(f"{type(error).__name__}: {first_line[:160]}")
        return None
    return compiled


def compile_flow(problem: str = "") -> None:
    """Compile the loops before a video's time counts.

    Args:
        problem: Why another process could not: this one does not try. Empty: it does.
    """
    if problem:
        _PROBLEMS[:] = [problem]
    load_compiled()


def describe_program() -> str:
    """Return what computes the flow in this process: ``numba``, or ``OpenCV`` and why."""
    return "numba" if load_compiled() is not None else f"OpenCV ({_PROBLEMS[0]})"


class FlowMeter:
    """A meter of the flow between two frames, which remembers the expansions of the last two."""

    def __init__(self, compiled: ModuleType | None = None) -> None:
        """Begin a clip.

        Args:
            compiled: :mod:`wm.video.farneback_rows`; None: as :func:`load_compiled` gives it.
        """
        self._compiled = compiled or load_compiled()
        self._pyramids: list[tuple[npt.NDArray[np.uint8], Pyramid]] = []
        self._scratch: dict[int, Any] = {}

    def flow(self, before_HW: npt.NDArray[np.uint8], after_HW: npt.NDArray[np.uint8]) -> Floats:
        """Compute the flow from one frame to another.

        Args:
            before_HW: The earlier frame, 16 x 16 px or more. Neither may be changed as long as the meter lives.
            after_HW: The later one, of the same shape.

        Returns:
            float32 (height, width, 2): horizontal and vertical flow in px.
        """
        if self._compiled is None:
            return opencv_flow(before_HW, after_HW)
        compiled, flow_2HW = self._compiled, np.zeros((2, 1, 1), dtype=np.float32)
        for first, second in zip(self._expand(before_HW), self._expand(after_HW), strict=True):
            width, height = first.shape[2] - 2 * compiled.MARGIN, first.shape[1] - 2
            # Each level begins with the flow of the one before, the coarsest with none.
            flow_2HW = 2 * np.stack([cv2.resize(plane, (width, height)) for plane in flow_2HW])
            if width not in self._scratch:
                self._scratch[width] = compiled.build_scratch(width)
            planes = first.reshape(5, -1), second.reshape(5, -1)
            compiled.iterate(*planes, flow_2HW, _border(height, width), self._scratch[width])
        return np.moveaxis(flow_2HW, 0, -1)

    def _expand(self, luma_HW: npt.NDArray[np.uint8]) -> Pyramid:
        """Return a frame's expansion; the last two are remembered."""
        assert self._compiled is not None
        for entry in self._pyramids:
            if entry[0] is luma_HW:
                # Now the newest: the other one makes room for the frame it is measured against.
                self._pyramids = [other for other in self._pyramids if other is not entry] + [entry]
                return entry[1]
        # The memory of the oldest is used again: fresh pages cost more than the filters.
        oldest = self._pyramids.pop(0) if len(self._pyramids) == 2 else None
        into = oldest[1] if oldest is not None and oldest[0].shape == luma_HW.shape else None
        pyramid = expand(luma_HW, self._compiled, into)
        self._pyramids.append((luma_HW, pyramid))
        return pyramid


def opencv_flow(before_HW: npt.NDArray[np.uint8], after_HW: npt.NDArray[np.uint8]) -> Floats:
    """Compute OpenCV's own flow between two frames of one shape, at the settings above.

    Args:
        before_HW: The earlier frame, at least 16 px high and wide.
        after_HW: The later one.

    Returns:
        float32 (height, width, 2): horizontal and vertical flow in px.
    """
    return np.asarray(cv2.calcOpticalFlowFarneback(before_HW, after_HW, None, 0.5, 3, 15, 3, 5, 1.2, 0), np.float32)


def expand(luma_HW: npt.NDArray[np.uint8], compiled: ModuleType, into: Pyramid | None = None) -> Pyramid:
    """Fit a quadratic polynomial around each pixel, at each level of the pyramid.

    Args:
        luma_HW: A frame.
        compiled: :mod:`wm.video.farneback_rows`.
        into: Expansion of another frame of the same shape, whose memory is used.

    Returns:
        Coefficients of y, x, y², x² and xy.
    """
    height, width = luma_HW.shape
    halvings = 0
    while halvings < _MAX_HALVINGS and min(height, width) * 0.5 ** (halvings + 1) >= _MIN_SIDE_PX:
        halvings += 1
    image = luma_HW.astype(np.float32)
    pyramid: Pyramid = []
    for level in range(halvings, -1, -1):
        scale = 0.5**level
        sigma = (1 / scale - 1) * 0.5
        side = max(round(sigma * 5) | 1, 3)
        blurred = cv2.GaussianBlur(image, (side, side), sigma)
        smaller = cv2.resize(blurred, (round(width * scale), round(height * scale)))
        rows, columns = smaller.shape
        planes = (
            np.zeros((5, rows + 2, columns + 2 * compiled.MARGIN), np.float32) if into is None else into[len(pyramid)]
        )
        scratch = np.empty((3, columns + 2 * _POLY_RADIUS), dtype=np.float32)
        compiled.expand(smaller, *_filters(), planes.reshape(5, -1), scratch)
        pyramid.append(planes)
    return pyramid


@lru_cache(maxsize=1)
def _filters() -> tuple[Floats, Floats]:
    """Build the vertical filters and each coefficient's horizontal one, from the middle on (Farnebäck 2003, section 2).

    Returns:
        float32 (6, 3): window, moment and square, by distance; float32 (5, 6): for y, x, y², x² and xy.
    """
    x = np.arange(-_POLY_RADIUS, _POLY_RADIUS + 1.0)
    window = np.exp(-(x**2) / (2 * _POLY_SIGMA**2))
    window /= window.sum()
    # Normal equations of the basis 1, x², y² under the window; the other three are orthogonal to all.
    second, fourth = (window * x**2).sum(), (window * x**4).sum()
    moments = np.array([[1, second, second], [second, fourth, second**2], [second, second**2, fourth]])
    inverse = np.linalg.inv(moments)
    square, moment = inverse[0, 1] * window + inverse[1, 1] * x**2 * window, x * window
    down = np.stack([window, moment, square], axis=1)[_POLY_RADIUS:]
    along = np.stack([window / second, moment / second, window, square, moment / second**2])[:, _POLY_RADIUS:]
    return np.ascontiguousarray(down, dtype=np.float32), np.ascontiguousarray(along, dtype=np.float32)


@lru_cache(maxsize=8)
def _border(height: int, width: int) -> Floats:
    """Return the squared weight of each pixel."""
    sides = np.ones(height, dtype=np.float32), np.ones(width, dtype=np.float32)
    for weights in sides:
        weights[: len(_EDGE)] *= _EDGE
        weights[-len(_EDGE) :] *= _EDGE[::-1]
    return np.outer(*sides) ** 2
