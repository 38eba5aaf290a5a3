"""Choose key-frames of a motion curve: each rule is one class here, and one entry of :data:`KEYFRAME_RULES`.

Pure numpy: knows nothing of videos. The scan, the search for exact key-frames and the planner ask the rule alone.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from wm.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]

PAPER_LENGTHS_S = (3.04, 7.24, 9.02)
"""Mean clip lengths in the paper's Table 7 (Moments in Time, UCF-101, Kinetics-700), in seconds."""


class KeyframeRule(ABC):
    """A way to choose key-frames, and all that others must know of it."""

    name: ClassVar[str]
    """Name in recipes."""

    @abstractmethod
    def choose(self, motion_T: Floats, max_keyframes: int, min_interval_frames: int) -> list[int]:
        """Choose key-frames.

        Args:
            motion_T: Finite motion of each frame, any unit.
            max_keyframes: ``K_f``, 1 or more.
            min_interval_frames: ``I_f``, 1 or more.

        Returns:
            Different frame numbers in any order.
        """

    @abstractmethod
    def expected_keyframes(self, length_s: float) -> float:
        """Estimate the key-frames of a video that has two or more, at the paper's ``K_f`` and ``I_f``.

        Args:
            length_s: Length of the video in seconds.
        """

    def list_candidates(self, motion_T: Floats, max_keyframes: int, min_interval_frames: int) -> list[int]:
        """List the frames whose exact motion must be known before the choice is certain.

        Args:
            motion_T: An upper bound of each frame's motion, exact where it was measured.
            max_keyframes: As for :meth:`choose`.
            min_interval_frames: As for :meth:`choose`.

        Returns:
            Frame numbers, the most moving first. Once all of them are measured, they decide the choice.
        """
        keyframes = sorted(self.choose(motion_T, max_keyframes, min_interval_frames))
        return sorted(keyframes, key=lambda frame: -motion_T[frame])

    def max_candidates(self, max_keyframes: int, min_interval_frames: int) -> int:
        """Bound the rank of a key-frame: all are among so many frames of most motion.

        A rule that chooses others stays right, but a clip that does not fit into memory is then walked once more.
        """
        # Each key-frame rules out fewer than two intervals of others.
        return max_keyframes * (2 * min_interval_frames - 1)


class TopThenSpacing(KeyframeRule):
    """Take the ``K_f`` frames of most motion, then drop each that is closer than ``I_f`` to one already selected.

    The paper's Table 7 has the observations a video that this reading of section 3.2 gives.
    """

    name = "top_then_spacing"

    def choose(self, motion_T: Floats, max_keyframes: int, min_interval_frames: int) -> list[int]:
        order = self.list_candidates(motion_T, max_keyframes, min_interval_frames)
        return _select_spaced(order, len(motion_T), max_keyframes, min_interval_frames)

    def list_candidates(self, motion_T: Floats, max_keyframes: int, min_interval_frames: int) -> list[int]:
        # Those too close to another one count too: they keep frames of less motion out.
        return sort_by_motion(motion_T, max_keyframes)

    def expected_keyframes(self, length_s: float) -> float:
        return float(np.interp(length_s, PAPER_LENGTHS_S, (2.05, 3.00, 2.71)))


class GreedySpacing(KeyframeRule):
    """Go down the complete order of motion, selecting what is at least ``I_f`` from all selected, up to ``K_f``."""

    name = "greedy_spacing"

    def choose(self, motion_T: Floats, max_keyframes: int, min_interval_frames: int) -> list[int]:
        return _select_spaced(sort_by_motion(motion_T), len(motion_T), max_keyframes, min_interval_frames)

    def expected_keyframes(self, length_s: float) -> float:
        # Measured on real clips of the lengths and shapes of Table 7.
        return float(np.interp(length_s, PAPER_LENGTHS_S, (3.7, 5.9, 6.0)))


KEYFRAME_RULES: dict[str, KeyframeRule] = {
    TopThenSpacing.name: TopThenSpacing(),
    GreedySpacing.name: GreedySpacing(),
}
"""Every rule by its name."""


def find_rule(name: str) -> KeyframeRule:
    """Return the rule of a name.

    Raises:
        InputError: There is none; the message names those that there are.
    """
    if name not in KEYFRAME_RULES:
        raise InputError(f"key-frame rule {name!r}; expected {' or '.join(KEYFRAME_RULES)}")
    return KEYFRAME_RULES[name]


def choose_keyframes(
    motion_T: Sequence[float] | npt.NDArray[np.floating],
    *,
    max_keyframes: int = 6,
    min_interval_frames: int = 20,
    rule: str = "top_then_spacing",
) -> list[int]:
    """Choose the key-frames of a motion curve.

    Args:
        motion_T: Motion of each frame (any unit, finite).
        max_keyframes: ``K_f`` of the paper's section 3.2, 1 or more.
        min_interval_frames: ``I_f``, 1 or more.
        rule: Name of a rule.

    Returns:
        Frame numbers in time order.

    Raises:
        InputError: A motion that is not finite, a setting below 1, an unknown rule.
    """
    motion = np.asarray(motion_T, dtype=np.float64)
    if motion.ndim != 1:
        raise InputError(f"motion has shape {motion.shape}; expected one number a frame")
    if not np.isfinite(motion).all():
        raise InputError(f"motion of frame {int(np.argmin(np.isfinite(motion)))} is not finite")
    if max_keyframes < 1 or min_interval_frames < 1:
        settings = f"max_keyframes = {max_keyframes}, min_interval_frames = {min_interval_frames}"
        raise InputError(f"{settings}; both must be 1 or more")
    return sorted(find_rule(rule).choose(motion, max_keyframes, min_interval_frames))


def sort_by_motion(motion_T: Floats, num_frames: int | None = None) -> list[int]:
    """List the ``num_frames`` (None: all) frames of most motion, the most moving first, equal ones by their number."""
    order: list[int] = np.argsort(-motion_T, kind="stable")[:num_frames].tolist()
    return order


def _select_spaced(order: list[int], num_frames: int, max_keyframes: int, min_interval_frames: int) -> list[int]:
    """Select frames in this order, each at least ``min_interval_frames`` from all selected before it."""
    # One mask instead of distances to every selected frame: linear in long videos.
    blocked = np.zeros(num_frames, dtype=bool)
    keyframes: list[int] = []
    for frame in order:
        if blocked[frame]:
            continue
        keyframes.append(frame)
        if len(keyframes) == max_keyframes:
            break
        blocked[max(0, frame - min_interval_frames + 1) : frame + min_interval_frames] = True
    return keyframes


def frame_pairs(keyframes: Sequence[int]) -> list[tuple[int, int]]:
    """Pair consecutive key-frames in time order as (source, target): one pair fewer than key-frames (Table 7)."""
    # Source before target, whatever the order of the choice.
    ordered = sorted(keyframes)
    return list(pairwise(ordered))
