"""Choose key-frames by the paper's rule (section 3.2, ``K_f`` = 6 frames of most motion, ``I_f`` = 20 between two).

Pure numpy: knows nothing of videos.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from wm.errors import InputError

KeyframeRule: TypeAlias = Literal["top_then_spacing", "greedy_spacing"]
KEYFRAME_RULES: tuple[KeyframeRule, ...] = get_args(KeyframeRule)


def choose_keyframes(
    motion_T: Sequence[float] | npt.NDArray[np.floating],
    *,
    max_keyframes: int = 6,
    min_interval: int = 20,
    rule: KeyframeRule = "top_then_spacing",
) -> list[int]:
    """Choose the key-frames of a motion curve.

    Frames are visited in order of motion, the most moving first, equal ones by the lower index. Two readings of the
    paper:

    - ``top_then_spacing``: take the ``max_keyframes`` first, then drop each that is closer than ``min_interval`` frames
      to one already selected. Table 7's observations a video fit this one.
    - ``greedy_spacing``: continue down the complete order, selecting what is at least ``min_interval`` from all
      selected frames, until there are ``max_keyframes``.

    Args:
        motion_T: Motion of each frame (any unit, finite).
        max_keyframes: ``K_f``, 1 or more.
        min_interval: ``I_f`` in frames, 1 or more.
        rule: Which reading.

    Returns:
        Frame numbers in time order.

    Raises:
        InputError: A motion that is not finite, or a setting below 1.
    """
    motion = np.asarray(motion_T, dtype=np.float64)
    if motion.ndim != 1:
        raise InputError(f"motion has shape {motion.shape}; expected one number a frame")
    if not np.isfinite(motion).all():
        raise InputError(f"motion of frame {int(np.argmin(np.isfinite(motion)))} is not finite")
    if max_keyframes < 1 or min_interval < 1:
        raise InputError(f"max_keyframes = {max_keyframes}, min_interval = {min_interval}; both must be 1 or more")
    if rule not in KEYFRAME_RULES:
        raise InputError(f"key-frame rule {rule!r}; expected {' or '.join(KEYFRAME_RULES)}")
    order = np.argsort(-motion, kind="stable")  # stable: equal motion keeps the lower index first
    if rule == "top_then_spacing":
        order = order[:max_keyframes]
    return sorted(_select_spaced(order, len(motion), max_keyframes, min_interval))


def _select_spaced(order: npt.NDArray[np.intp], num_frames: int, max_keyframes: int, min_interval: int) -> list[int]:
    """Select frames in this order, each at least ``min_interval`` from all selected before it."""
    # One mask instead of distances to every selected frame: linear in long videos.
    blocked = np.zeros(num_frames, dtype=bool)
    keyframes: list[int] = []
    for frame in order.tolist():
        if blocked[frame]:
            continue
        keyframes.append(frame)
        if len(keyframes) == max_keyframes:
            break
        blocked[max(0, frame - min_interval + 1) : frame + min_interval] = True
    return keyframes


def frame_pairs(keyframes: Sequence[int]) -> list[tuple[int, int]]:
    """Pair consecutive key-frames in time order as (source, target): one pair fewer than key-frames (Table 7)."""
    # Source before target, whatever the order of the choice.
    ordered = sorted(keyframes)
    return list(pairwise(ordered))
