"""Measure images for filters: brightness, sharpness, a thumbnail, a perceptual hash, cuts.

Decides nothing: thresholds are the filters'.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from wm.images import Pixels

SHARPNESS_SIDE_PX = 256
"""Short side at which sharpness is measured: the variance of a Laplacian depends on the size of the image."""
DIFFERENCE_SIDE_PX = 64
_HASH_SIDE_PX = 32
_HASH_FREQUENCIES = 8


@dataclass(frozen=True)
class FrameFacts:
    """Measurements of one key-frame.

    Attributes:
        luma: Mean brightness, 0 (black) to 255.
        sharpness: Variance of the Laplacian of the luma at a short side of :data:`SHARPNESS_SIDE_PX` at most
            (Pech-Pacheco et al. 2000), 0 for a flat image.
        small: uint8 luma, (64, 64).
        phash: 64-bit perceptual hash, see :func:`perceptual_hash`.
    """

    luma: float
    sharpness: float
    small: npt.NDArray[np.uint8]
    phash: int


def frame_facts(rgb_HWC: Pixels) -> FrameFacts:
    """Measure one uint8 RGB image of any size."""
    grey_HW = cv2.cvtColor(rgb_HWC, cv2.COLOR_RGB2GRAY)
    # Only downwards: enlarging adds no detail.
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
    """Hash uint8 brightness to 64 bits; images that look alike differ in few of them.

    One bit for each of the 8 x 8 lowest frequencies of the DCT at 32 x 32: set where the coefficient is above the
    median (pHash; Zauner 2010, section 3.2.1).
    """
    square = cv2.resize(grey_HW, (_HASH_SIDE_PX, _HASH_SIDE_PX), interpolation=cv2.INTER_AREA)
    # Low frequencies: what is left of an image after scaling and compression.
    low = cv2.dct(square.astype(np.float64))[:_HASH_FREQUENCIES, :_HASH_FREQUENCIES]
    # A flat image's coefficients are rounding noise, whose signs say nothing: too small counts as zero.
    low = np.where(np.abs(low) < 1e-6, 0.0, low).ravel()
    return int(np.packbits(low > np.median(low)).view(">u8")[0])


def pair_difference(source: FrameFacts, target: FrameFacts) -> float:
    """Compute the mean absolute difference of two thumbnails, in grey levels of 255: 0 for the same image twice.

    Args:
        source: Measurements of the source.
        target: Measurements of the target.
    """
    return float(np.abs(source.small.astype(np.int16) - target.small).mean())


def cut_scores(
    difference_T: npt.NDArray[np.float64], window: int = 2, min_difference: float = 12.0
) -> npt.NDArray[np.float32]:
    """Score how much each frame looks like the first of a new shot.

    The score is this difference over the mean of the same for the ``window`` frames on either side: a fast pan differs
    everywhere, a cut at one frame. Differences below ``min_difference`` grey levels score 0. The rule, its window and
    threshold are those of PySceneDetect's AdaptiveDetector (adaptive_threshold = 3, window_width = 2, min_content_val
    = 15 on the mean of hue, saturation and brightness; brightness alone needs a little less).

    Args:
        difference_T: Mean absolute difference to the frame before, of thumbnails, in grey levels; 0 for the first.
        window: Frames on either side.
        min_difference: Smaller differences score 0, in grey levels.

    Returns:
        float32 (T,): 0 where no shot begins, above 3 at a hard cut.
    """
    scores_T = np.zeros(len(difference_T), dtype=np.float32)
    difference_S = difference_T[1:]
    # Few frames pass the threshold, so a loop over them is quick.
    for step in np.flatnonzero(difference_S >= min_difference).tolist():
        around = np.r_[difference_S[max(0, step - window) : step], difference_S[step + 1 : step + 1 + window]]
        scores_T[step + 1] = difference_S[step] / max(float(around.mean()) if len(around) else 0.0, 1.0)
    return scores_T
