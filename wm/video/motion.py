"""How much a frame moves: the mean length of the optical-flow vectors that lead to it.

Two flows. ``dis``: OpenCV's DIS at its ultra-fast preset (Kroeger et al. 2016), the quick one.
``farneback``: dense polynomial expansion (Farnebäck 2003) at the settings people copy from OpenCV's
tutorial (0.5, 3, 15, 3, 5, 1.2). Both run at the size of the frames given; :mod:`wm.video.scan` gives them
a reduced luma.
"""

from typing import Literal, TypeAlias, get_args

import cv2
import numpy as np
import numpy.typing as npt

Luma: TypeAlias = npt.NDArray[np.uint8]
"""uint8 brightness, full range, shape (height, width)."""

MotionKind: TypeAlias = Literal["dis", "farneback"]
MOTION_KINDS: tuple[MotionKind, ...] = get_args(MotionKind)

_DIS_PATCH_PX = 8
_MIN_SIDE_PX = 16

cv2.setNumThreads(1)  # one process a core: threads inside each only get in one another's way


class MotionMeter:
    """Feeds on frames of one clip in order and says how far each moved from the one before."""

    def __init__(self, kind: MotionKind) -> None:
        self.kind = kind
        self._previous: Luma | None = None
        self._dis: cv2.DISOpticalFlow | None = None

    def next(self, luma_HW: Luma) -> float:
        """Mean flow magnitude from the frame before, px/frame of the frame given; 0 for the first frame.

        A frame of another shape than the one before it counts as 0: there is no flow between the two.
        """
        frame = _padded(luma_HW)
        previous, self._previous = self._previous, frame
        if previous is None:
            return 0.0
        if previous.shape != frame.shape:
            self._dis = None
            return 0.0
        flow_HW2 = self._flow(previous, frame)[: luma_HW.shape[0], : luma_HW.shape[1]]
        # numpy, not cv2.magnitude and cv2.mean: their last digits depend on where an array lies in memory
        squares_HW2 = flow_HW2 * flow_HW2
        return float(np.sqrt(squares_HW2[..., 0] + squares_HW2[..., 1]).mean(dtype=np.float64))

    def _flow(self, previous: Luma, frame: Luma) -> npt.NDArray[np.float32]:
        if self.kind == "farneback":
            flow = cv2.calcOpticalFlowFarneback(previous, frame, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        else:
            if self._dis is None:
                self._dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
                self._dis.setFinestScale(dis_finest_scale(*frame.shape[:2]))
            flow = self._dis.calc(previous, frame, None)
        return np.asarray(flow, dtype=np.float32)


def dis_finest_scale(height_px: int, width_px: int) -> int:
    """The finest pyramid level DIS looks at: 2 as in its preset, 1 for small frames.

    Chosen here because OpenCV's own choice ends the process on flat frames: 160 x 24 at level 2 leaves
    fewer rows than a patch has.
    """
    scale = 2 if max(height_px, width_px) >= 128 else 1
    while scale > 0 and min(height_px, width_px) >> scale < _DIS_PATCH_PX:
        scale -= 1
    return scale


def _padded(luma_HW: Luma) -> Luma:
    """At least 16 x 16, the last row and column repeated: DIS refuses smaller frames."""
    height, width = luma_HW.shape
    if height >= _MIN_SIDE_PX and width >= _MIN_SIDE_PX:
        return luma_HW
    below, right = max(0, _MIN_SIDE_PX - height), max(0, _MIN_SIDE_PX - width)
    return np.pad(luma_HW, ((0, below), (0, right)), mode="edge")
