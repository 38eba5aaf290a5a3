"""Which frames a segment holds that a list gives in seconds.

Lists hold rounded times: sums of floats, six digits, float32, a clock of 10 ms. Compared as they are with a frame's
time, a boundary that is meant to be that very time falls on either side of it. So a frame counts as shown a little
later than it is: by half of the step between frames, which no rounding reaches.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

TimedFrame: TypeAlias = tuple[float, Any]
"""Presentation time in the file's own clock (s), decoded frame."""


def mark_segment(timed: Iterable[TimedFrame], begin_s: float, end_s: float) -> Iterator[tuple[float, Any, bool]]:
    """Give each frame with its time and whether it is in the half-open segment from ``begin_s`` to ``end_s``, up to the
    first frame behind it.

    Each frame has one place in time, whatever the segment, so that segments which share a boundary share no frame and
    lose none. The first frame of ``timed`` must lie before the segment, or be the first of the file.
    """
    for place_s, (time_s, frame) in _placed(timed):
        yield time_s, frame, begin_s <= place_s < end_s
        if place_s >= end_s:
            return


def _placed(timed: Iterable[TimedFrame]) -> Iterator[tuple[float, TimedFrame]]:
    """Give each frame with its time plus half a step; each waits for the time of the one after it."""
    previous_s, current = -math.inf, None
    for following in timed:
        if current is not None:
            yield _place_s(previous_s, current[0], following[0]), current
            previous_s = current[0]
        current = following
    if current is not None:
        yield _place_s(previous_s, current[0], math.inf), current


def _place_s(previous_s: float, time_s: float, following_s: float) -> float:
    """Add half of the shorter step beside a frame: where the rate varies, a long pause is no reason to be lax. Steps
    of 0 and less are no steps but repeated or broken times."""
    steps_s = [step_s for step_s in (time_s - previous_s, following_s - time_s) if 0 < step_s < math.inf]
    return time_s + min(steps_s, default=0.0) / 2
