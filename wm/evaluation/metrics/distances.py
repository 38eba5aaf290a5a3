"""Measure the distance between a predicted image and its target as pixels."""

import numpy as np
from PIL import Image

from wm.images import Pixels, fit_square


def full_l1(predicted_HWC: Pixels, target_HWC: Pixels) -> float:
    """Compute the L1 distance over the full target, as the paper's table of image metrics has it.

    The prediction is resized to the target's own width and height (bicubic), also where its sides have another ratio.

    Args:
        predicted_HWC: uint8 RGB of any size.
        target_HWC: uint8 RGB.

    Returns:
        Mean absolute difference over pixels and channels, 0 to 1.
    """
    height, width = target_HWC.shape[:2]
    # A square prediction of a wide target is stretched, as the paper's figures seem to be.
    if predicted_HWC.shape != target_HWC.shape:
        resized = Image.fromarray(predicted_HWC).resize((width, height), Image.Resampling.BICUBIC)
        predicted_HWC = np.array(resized)
    return _mean_gap(predicted_HWC, target_HWC)


def square_l1(predicted_HWC: Pixels, target_HWC: Pixels, side_px: int) -> float:
    """Compute the L1 distance over the centre squares of prediction and target.

    Args:
        predicted_HWC: uint8 RGB of any size.
        target_HWC: uint8 RGB of any size.
        side_px: Side of the squares; both images are scaled to it.

    Returns:
        Mean absolute difference over pixels and channels, 0 to 1.
    """
    return _mean_gap(fit_square(predicted_HWC, side_px), fit_square(target_HWC, side_px))


def _mean_gap(first_HWC: Pixels, second_HWC: Pixels) -> float:
    # Integers of 16 bits: the difference of two bytes would wrap around.
    return float(np.abs(first_HWC.astype(np.int16) - second_HWC).mean() / 255.0)
