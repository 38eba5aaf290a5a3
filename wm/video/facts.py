"""What a picture looks like in four numbers, for filters: brightness, sharpness, a thumbnail, a perceptual hash."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wm.images import Pixels

SHARPNESS_SIDE_PX = 256
"""Short side at which sharpness is measured: the variance of a Laplacian depends on the size of the picture."""
DIFFERENCE_SIDE_PX = 64
_HASH_SIDE_PX = 32
_HASH_FREQUENCIES = 8


@dataclass(frozen=True)
class FrameFacts:
    """One key-frame. ``luma``: mean brightness, 0 (black) to 255. ``sharpness``: variance of the Laplacian of the
    luma at a short side of :data:`SHARPNESS_SIDE_PX` at most (Pech-Pacheco et al. 2000), 0 for a flat picture.
    ``small``: uint8 luma, (64, 64). ``phash``: 64-bit perceptual hash, see :func:`perceptual_hash`."""

    luma: float
    sharpness: float
    small: npt.NDArray[np.uint8]
    phash: int


def frame_facts(rgb_HWC: Pixels) -> FrameFacts:
    """Measure one uint8 RGB picture of any size."""
    grey_HW = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY)
    scale = SHARPNESS_SIDE_PX / min(grey_HW.shape)
    if scale < 1:
        size = (max(1, round(grey_HW.shape[1] * scale)), max(1, round(grey_HW.shape[0] * scale)))
        grey_HW = cv2.resize(grey_HW, size, interpolation=cv2.INTER_AREA)
    small = cv2.resize(grey_HW, (DIFFERENCE_SIDE_PX, DIFFERENCE_SIDE_PX), interpolation=cv2.INTER_AREA)
    return FrameFacts(
        luma=float(grey_HW.mean()),
        sharpness=float(cv2.Laplacian(grey_HW, cv2.CV_64F).var()),
        small=np.asarray(small, dtype=np.uint8),
        phash=perceptual_hash(grey_HW),
    )


def perceptual_hash(grey_HW: npt.NDArray[np.uint8]) -> int:
    """64 bits, one for each of the 8 x 8 lowest frequencies of the DCT of the picture at 32 x 32: set where the
    coefficient is above the median (pHash; Zauner 2010, section 3.2.1). Pictures that look alike differ in few bits.
    """
    square = cv2.resize(grey_HW, (_HASH_SIDE_PX, _HASH_SIDE_PX), interpolation=cv2.INTER_AREA)
    low = cv2.dct(square.astype(np.float64))[:_HASH_FREQUENCIES, :_HASH_FREQUENCIES]
    # A flat picture's coefficients are rounding noise, whose signs say nothing: too small counts as zero.
    low = np.where(np.abs(low) < 1e-6, 0.0, low).ravel()
    return int(np.packbits(low > np.median(low)).view(">u8")[0])


def pair_difference(source: FrameFacts, target: FrameFacts) -> float:
    """Mean absolute difference of the two thumbnails, in grey levels of 255: 0 for the same picture twice."""
    return float(np.abs(source.small.astype(np.int16) - target.small).mean())


def cut_scores(
    small_THW: npt.NDArray[np.uint8], window: int = 2, min_difference: float = 12.0
) -> npt.NDArray[np.float32]:
    """:func:`cut_scores_of` the thumbnails of all frames in order, uint8."""
    difference_T = np.zeros(len(small_THW), dtype=np.float64)
    difference_T[1:] = np.abs(np.diff(small_THW.astype(np.int16), axis=0)).mean(axis=(1, 2))
    return cut_scores_of(difference_T, window, min_difference)


def cut_scores_of(
    difference_T: npt.NDArray[np.float64], window: int = 2, min_difference: float = 12.0
) -> npt.NDArray[np.float32]:
    """How much frame t looks like the first of a new shot, for each t: 0 where it does not, a hard cut is above 3.

    ``difference_T``: mean absolute difference to the frame before, of thumbnails, in grey levels; 0 for the first. The
    score is this difference over the mean of the same for the ``window`` frames on either side: a fast pan differs
    everywhere, a cut at one frame. Differences below ``min_difference`` grey levels score 0. The rule, its window and
    threshold are those of PySceneDetect's AdaptiveDetector (adaptive_threshold = 3, window_width = 2, min_content_val
    = 15 on the mean of hue, saturation and brightness; brightness alone needs a little less).
    """
    scores_T = np.zeros(len(difference_T), dtype=np.float32)
    difference_S = difference_T[1:]
    for step in np.flatnonzero(difference_S >= min_difference).tolist():
        around = np.r_[difference_S[max(0, step - window) : step], difference_S[step + 1 : step + 1 + window]]
        scores_T[step + 1] = difference_S[step] / max(float(around.mean()) if len(around) else 0.0, 1.0)
    return scores_T
