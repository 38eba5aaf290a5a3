"""Measure how much a frame moves: the mean length of the optical-flow vectors that lead to it.

Two flows. ``dis``: OpenCV's DIS (Kroeger et al. 2016), at a small size; quick. ``farneback``: dense polynomial
expansion (Farnebäck 2003) at the settings people copy from OpenCV's tutorial (0.5, 3, 15, 3, 5, 1.2), at full size,
which is what most people run (:mod:`wm.video.farneback`). :mod:`wm.video.scan` decides which frames either sees.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from wm.video.farneback import FlowMeter

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
        self._farneback = FlowMeter() if kind == "farneback" else None

    def measure(self, lumas: Sequence[Luma]) -> list[float]:
        """Measure the mean flow magnitude to each frame from the one before.

        Args:
            lumas: The next frames in order, uint8 and of one shape; at least one.

        Returns:
            px/frame at their size; 0 for the first frame of all, and for one of another shape than the one before it:
            there is no flow between the two.
        """
        previous, self._previous = self._previous, lumas[-1]
        motion: list[float] = []
        # A video may change its size: no flow leads from one to the other.
        if previous is None or previous.shape != lumas[0].shape:
            previous, lumas, motion = lumas[0], lumas[1:], [0.0]
        if not lumas:
            return motion
        if self._dis is None:
            return motion + [farneback_motion(*pair, self._farneback) for pair in pairwise([previous, *lumas])]
        padded = [_pad(luma_HW) for luma_HW in (previous, *lumas)]
        flows = [self._dis.calc(before, after, None) for before, after in pairwise(padded)]
        return motion + _mean_lengths(flows, previous.shape)

    def next(self, luma_HW: Luma) -> float:
        """Measure one frame as :meth:`measure` does.

        Args:
            luma_HW: The next frame in order, uint8.
        """
        return self.measure([luma_HW])[0]


def farneback_motion(before_HW: Luma, after_HW: Luma, meter: FlowMeter | None = None) -> float:
    """Measure the mean length in pixels of Farnebäck's flow between two uint8 frames.

    Args:
        before_HW: The earlier frame.
        after_HW: The later one.
        meter: One for many pairs expands a frame once that is in two of them.

    Returns:
        px/frame; 0 for frames of two shapes.
    """
    if before_HW.shape != after_HW.shape:
        return 0.0
    flow_HW2 = (meter or FlowMeter()).flow(_pad(before_HW), _pad(after_HW))
    return _mean_lengths([flow_HW2], before_HW.shape)[0]


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


def _mean_lengths(flows: Sequence[npt.ArrayLike], size_px: tuple[int, ...]) -> list[float]:
    """Compute the mean length of each flow's vectors in the first (height, width) of it."""
    # Padding is cut off again: it does not move and would lower the mean.
    flow_NHW2 = np.array(flows, dtype=np.float32)[:, : size_px[0], : size_px[1]]
    # numpy, not cv2.magnitude and cv2.mean: their last digits depend on the address of an array
    flow_NHW2 *= flow_NHW2
    lengths_NHW = np.sqrt(flow_NHW2[..., 0] + flow_NHW2[..., 1])
    # float64 before it is summed: numpy would convert in chunks, which begin anywhere in a frame.
    lengths: list[float] = lengths_NHW.reshape(len(lengths_NHW), -1).astype(np.float64).mean(axis=1).tolist()
    return lengths


def _pad(luma_HW: Luma) -> Luma:
    """Pad to at least 16 x 16 by repeating the last row and column: DIS refuses smaller frames."""
    # Repeated edges do not move, and are cut off the flow afterwards.
    height, width = luma_HW.shape
    if height >= _MIN_SIDE_PX and width >= _MIN_SIDE_PX:
        return luma_HW
    below, right = max(0, _MIN_SIDE_PX - height), max(0, _MIN_SIDE_PX - width)
    return np.pad(luma_HW, ((0, below), (0, right)), mode="edge")
