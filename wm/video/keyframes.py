"""The paper's key-frame rule (section 3.2, ``K_f`` = 6 frames of most motion, ``I_f`` = 20 between two).
Pure numpy."""

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
    """Indices of the key-frames in time order.

    ``motion_T``: motion of each frame (any unit, finite). Frames are looked at in order of motion, the most
    moving first, equal ones by the lower index. Two readings of the paper:

    - ``top_then_spacing``: take the ``max_keyframes`` first, then drop each that is closer than
      ``min_interval`` frames to one already kept. Table 7's observations a video fit this one.
    - ``greedy_spacing``: go on down the whole order, keeping what is at least ``min_interval`` from all
      kept frames, until there are ``max_keyframes``.

    Raises :class:`InputError` on a motion that is not finite or a setting below 1.
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
    return sorted(_spaced(order, len(motion), max_keyframes, min_interval))


def _spaced(order: npt.NDArray[np.intp], num_frames: int, max_kept: int, min_interval: int) -> list[int]:
    blocked = np.zeros(num_frames, dtype=bool)
    kept: list[int] = []
    for frame in order.tolist():
        if blocked[frame]:
            continue
        kept.append(frame)
        if len(kept) == max_kept:
            break
        blocked[max(0, frame - min_interval + 1) : frame + min_interval] = True
    return kept


def frame_pairs(keyframes: Sequence[int]) -> list[tuple[int, int]]:
    """(source, target) = consecutive key-frames in time order: one pair fewer than key-frames (Table 7)."""
    ordered = sorted(keyframes)
    return list(pairwise(ordered))
