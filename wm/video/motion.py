"""Measure how much a frame moves: the mean length of the optical-flow vectors that lead to it.

Two flows. ``dis``: OpenCV's DIS (Kroeger et al. 2016), at a small size; quick. ``farneback``: dense polynomial
expansion (Farnebäck 2003) at the settings people copy from OpenCV's tutorial (0.5, 3, 15, 3, 5, 1.2), at full size,
which is what most people run. :mod:`wm.video.scan` decides which frames either sees.
"""

from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

Luma: TypeAlias = npt.NDArray[np.uint8]
"""uint8 brightness, full range, shape (height, width)."""

MotionKind: TypeAlias = Literal["dis", "farneback"]

_DIS_PATCH_PX = 8
_MIN_SIDE_PX = 16

cv2.setNumThreads(1)  # one process a core: threads inside each only get in one another's way


class MotionMeter:
    """A meter of motion from each frame of a clip to the next."""

    def __init__(self, kind: MotionKind) -> None:
        self.kind = kind
        self._previous: Luma | None = None
        self._dis = _build_dis() if kind == "dis" else None

    def next(self, luma_HW: Luma) -> float:
        """Measure the mean flow magnitude from the frame before.

        Args:
            luma_HW: The next frame in order, uint8.

        Returns:
            px/frame at the size of ``luma_HW``; 0 for the first frame, and for one of another shape than the one
            before it: there is no flow between the two.
        """
        previous, self._previous = self._previous, luma_HW
        # A video may change its size: no flow leads from one to the other.
        if previous is None or previous.shape != luma_HW.shape:
            return 0.0
        if self._dis is None:
            return farneback_motion(previous, luma_HW)
        # Padding is cut off again: it does not move and would lower the mean.
        before, after = _pad(previous), _pad(luma_HW)
        return _mean_length(self._dis.calc(before, after, None)[: luma_HW.shape[0], : luma_HW.shape[1]])


def farneback_motion(before_HW: Luma, after_HW: Luma) -> float:
    """Measure the mean length in pixels of Farnebäck's flow between two uint8 frames of one shape.

    Args:
        before_HW: The earlier frame.
        after_HW: The later one, of the same shape.
    """
    before, after = _pad(before_HW), _pad(after_HW)
    flow_HW2 = cv2.calcOpticalFlowFarneback(before, after, None, 0.5, 3, 15, 3, 5, 1.2, 0)
    return _mean_length(flow_HW2[: before_HW.shape[0], : before_HW.shape[1]])


def _build_dis() -> cv2.DISOpticalFlow:
    """Build DIS for small frames: as close to Farnebäck as the ultra-fast preset at a third of the time.

    Its finest level is at the size of the frames, patches are side by side instead of half overlapping, and there is no
    spatial propagation.
    """
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    # Chosen on real clips by the key-frames that Farnebäck gives.
    dis.setFinestScale(0)
    dis.setPatchSize(_DIS_PATCH_PX)
    dis.setPatchStride(_DIS_PATCH_PX)
    dis.setUseSpatialPropagation(False)
    return dis


def _mean_length(flow_HW2: npt.NDArray[np.float32]) -> float:
    # numpy, not cv2.magnitude and cv2.mean: their last digits depend on the address of an array
    squares_HW2 = flow_HW2 * flow_HW2
    return float(np.sqrt(squares_HW2[..., 0] + squares_HW2[..., 1]).mean(dtype=np.float64))


def _pad(luma_HW: Luma) -> Luma:
    """Pad to at least 16 x 16 by repeating the last row and column: DIS refuses smaller frames."""
    # Repeated edges do not move, and are cut off the flow afterwards.
    height, width = luma_HW.shape
    if height >= _MIN_SIDE_PX and width >= _MIN_SIDE_PX:
        return luma_HW
    below, right = max(0, _MIN_SIDE_PX - height), max(0, _MIN_SIDE_PX - width)
    return np.pad(luma_HW, ((0, below), (0, right)), mode="edge")
