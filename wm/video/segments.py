"""Decide which frames a segment holds that a list gives in seconds.

Lists hold rounded times: sums of floats, six digits, float32, a clock of 10 ms. Compared as they are with a frame's
time, a boundary that is meant to be that very time falls on either side of it. So a frame counts as shown a little
later than it is: by half of the step between frames, which no rounding reaches.
"""

import math
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import av

TimedFrame: TypeAlias = tuple[float, av.VideoFrame]
"""Presentation time in the file's own clock (s), decoded frame."""


def mark_segment(
    timed: Iterable[TimedFrame], begin_s: float, end_s: float
) -> Iterator[tuple[float, av.VideoFrame, bool]]:
    """Give each frame with its time and whether it is in the half-open segment from ``begin_s`` to ``end_s``, up to the
    first frame behind it.

    Each frame has one midpoint, whatever the segment, so that segments which share a boundary share no frame and lose
    none.

    Args:
        timed: Frames in order; the first must be before the segment, or be the first of the file.
        begin_s: Begin of the segment in the file's own clock; may be -inf.
        end_s: Its end; may be inf.

    Yields:
        (time in s, frame, whether it is in the segment).
    """
    for midpoint_s, (time_s, frame) in _iterate_midpoints(timed):
        yield time_s, frame, begin_s <= midpoint_s < end_s
        # Frames are in order, so the rest need not be decoded.
        if midpoint_s >= end_s:
            return


def _iterate_midpoints(timed: Iterable[TimedFrame]) -> Iterator[tuple[float, TimedFrame]]:
    """Iterate over frames with their times plus half a step; each waits for the time of the next."""
    previous_s, current = -math.inf, None
    for following in timed:
        if current is not None:
            yield _midpoint_s(previous_s, current[0], following[0]), current
            previous_s = current[0]
        current = following
    # The last frame has only the step before it.
    if current is not None:
        yield _midpoint_s(previous_s, current[0], math.inf), current


def _midpoint_s(previous_s: float, time_s: float, following_s: float) -> float:
    """Add half of the shorter step beside a frame: where the rate varies, a long pause is no reason to be lax. Steps
    of 0 and less are no steps but repeated or broken times."""
    steps_s = [step_s for step_s in (time_s - previous_s, following_s - time_s) if 0 < step_s < math.inf]
    return time_s + min(steps_s, default=0.0) / 2
