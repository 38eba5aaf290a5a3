"""Score predicted images against the held-out targets: distances, and the figures of a judge if there is one."""

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from wm.dynamics.observation import Observation, unchanged_share
from wm.evaluation.heldout import HeldOut
from wm.evaluation.metrics.stats import Floats
from wm.images import Pixels, fit_square
from wm.judging import JudgeScore
from wm.models import ImageCodec

JUDGE_METRICS = ("final", "editing_success", "minimal_editing", "right", "copied")
Codes: TypeAlias = npt.NDArray[np.int64]

JudgeMany: TypeAlias = Callable[[Codes, Pixels], list[JudgeScore]]
"""``judge_many(items_M, predicted_MHWC)``: one score for each prediction; ``items_M``: rows of the held-out
set."""
ActionCheck: TypeAlias = Callable[[Pixels, Pixels, str], bool]
"""``action_is_right(source_HWC, target_HWC, text)``: does the action, done in the source, give the target?"""


def image_metrics(
    held_out: HeldOut, codec: ImageCodec, judge_many: JudgeMany | None, items_M: Codes, codes_MN: Codes
) -> dict[str, Floats]:
    """Score predicted codes.

    Args:
        held_out: The triplets.
        codec: Decodes the codes.
        judge_many: Scores the images too, if there is a judge.
        items_M: Row of the held-out set that each prediction is of.
        codes_MN: The predictions.

    Returns:
        Metric → (M,): those of :func:`pixel_metrics`, and ``unchanged_tokens``, a share.
    """
    # Against the source's own codes, position by position.
    source_MN = held_out.source_codes.numpy()[items_M]
    unchanged_M: Floats = (codes_MN == source_MN).mean(axis=1)
    return pixel_metrics(held_out, judge_many, items_M, codec.decode(codes_MN)) | {"unchanged_tokens": unchanged_M}


def pixel_metrics(
    held_out: HeldOut, judge_many: JudgeMany | None, items_M: Codes, predicted_MHWC: Pixels
) -> dict[str, Floats]:
    """Score predicted images against their targets.

    Args:
        held_out: The triplets.
        judge_many: Scores the images too, if there is a judge.
        items_M: Row of the held-out set that each image is of.
        predicted_MHWC: uint8 RGB at the codec's size.

    Returns:
        Metric → (M,). ``l1``: mean absolute difference to the target over pixels, 0 to 1; and the judge's figures.
    """
    # Integers of 16 bits: the difference of two bytes would wrap around.
    gaps = [
        np.abs(held_out.target_pixels[item].astype(np.int16) - predicted).mean() / 255.0
        for item, predicted in zip(items_M.tolist(), predicted_MHWC, strict=True)
    ]
    metrics = {"l1": np.array(gaps, dtype=np.float64)}
    # A judge gives one score an image, in the order of the items.
    if judge_many is not None:
        scores = judge_many(items_M, predicted_MHWC)
        for name in JUDGE_METRICS:
            metrics[name] = np.array([float(getattr(score, name)) for score in scores])
    return metrics


def edit_metrics(
    held_out: HeldOut, judge_many: JudgeMany | None, items_M: Codes, predicted: Sequence[Pixels]
) -> dict[str, Floats]:
    """Score predicted pixels, which have no codes.

    Args:
        held_out: The triplets.
        judge_many: Scores the images too, if there is a judge.
        items_M: Row of the held-out set that each image is of.
        predicted: uint8 RGB of any size, compared at the size of the targets.

    Returns:
        Metric → (M,): those of :func:`pixel_metrics`, and ``unchanged_tokens``, here the share of blocks of pixels that
        stay as they were (see :func:`wm.dynamics.observation.unchanged_share`).
    """
    side_px = held_out.target_pixels.shape[1]
    # As the codec's images are: an editor may work at another size.
    squares_MHWC = np.stack([fit_square(image, side_px) for image in predicted])
    pairs = [
        (Observation.from_pixels(held_out.source_pixels[item]), Observation.from_pixels(square))
        for item, square in zip(items_M.tolist(), squares_MHWC, strict=True)
    ]
    # Without codes blocks of pixels are what can stay as it was.
    unchanged_M: Floats = np.array([unchanged_share(source, square) for source, square in pairs])
    return pixel_metrics(held_out, judge_many, items_M, squares_MHWC) | {"unchanged_tokens": unchanged_M}


def copy_metrics(held_out: HeldOut, judge_many: JudgeMany | None) -> dict[str, Floats]:
    """Score the source as the prediction.

    Args:
        held_out: The triplets.
        judge_many: Scores the images too, if there is a judge.

    Returns:
        Metric → (B,).
    """
    # A copy changes no token, by definition and not by measurement.
    items = np.arange(len(held_out))
    return pixel_metrics(held_out, judge_many, items, held_out.source_pixels) | {
        "unchanged_tokens": np.ones(len(held_out))
    }


def ceiling_metrics(held_out: HeldOut, codec: ImageCodec, judge_many: JudgeMany | None) -> dict[str, Floats]:
    """Score the true target through the codec, which predictions of codes beat by luck alone.

    Args:
        held_out: The triplets.
        codec: Decodes the targets.
        judge_many: Scores the images too, if there is a judge.

    Returns:
        Metric → (B,).
    """
    return image_metrics(held_out, codec, judge_many, np.arange(len(held_out)), held_out.target_codes.numpy())
