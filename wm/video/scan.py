"""The motion pass: one walk over all frames gives times, motion, key-frames and what a chosen frame must
look like."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wm.video.bounded import search_keyframes
from wm.video.facts import cut_scores_of
from wm.video.geometry import SQUARE_SAMPLES, Orientation, SampleAspect
from wm.video.keyframes import KeyframeRule, choose_keyframes
from wm.video.motion import MotionKind
from wm.video.walk import WALK_BATCH, Checks, Walk


@dataclass(frozen=True)
class Scan:
    """What the motion pass found. T = ``num_frames``.

    ``times_s``: float64 presentation times in the file's own clock. ``motion``: float32 mean flow magnitude
    in px/frame of the full-size frame, 0 for the first. ``measured``: bool, false where ``motion`` is an expectation
    and no measurement (only with ``farneback``). ``keyframes``: chosen indices in time order, all of them measured.
    ``size_px``: (height, width) upright, in square pixels. ``errors``: packets that could not be decoded and were
    skipped. ``orientations``: for each key-frame, how it lies in the file. ``sample_aspect``: how its pixels are made
    square.
    ``cuts``: for each key-frame, how much the most cut-like frame since the key-frame before looks like the first of
    a new shot (:func:`wm.video.facts.cut_scores_of`; above 3: a hard cut lies between the two).
    Frames count from the first of the segment ``start_s`` to ``end_s`` (seconds in the file's own clock, half-open
    within half a frame step;
    None: the file's beginning, its end). ``motion_side_px``, ``small_px``: the size at which it was seen, in stored
    samples, which a second reading must use too.
    """

    num_frames: int
    size_px: tuple[int, int]
    times_s: npt.NDArray[np.float64]
    motion: npt.NDArray[np.float32]
    measured: npt.NDArray[np.bool_]
    keyframes: list[int]
    checks: Checks
    errors: int
    motion_side_px: int
    small_px: tuple[int, int]
    orientations: list[Orientation]
    sample_aspect: SampleAspect = SQUARE_SAMPLES
    start_s: float | None = None
    end_s: float | None = None
    cuts: list[float] = field(default_factory=list)

    @property
    def duration_s(self) -> float:
        """From the first frame's time to the last's, plus one mean frame."""
        span_s = float(self.times_s[-1] - self.times_s[0])
        return span_s * self.num_frames / max(1, self.num_frames - 1)


def scan_video(
    path: str | Path,
    *,
    motion: MotionKind = "dis",
    motion_side_px: int = 40,
    max_keyframes: int = 6,
    min_interval: int = 20,
    rule: KeyframeRule = "top_then_spacing",
    start_s: float | None = None,
    end_s: float | None = None,
) -> Scan:
    """Decode once, measure motion, choose key-frames.

    ``dis`` sees frames halved as long as their long side stays ``motion_side_px`` or more. ``farneback`` gives the
    key-frames that full-size Farnebäck on every frame would give, but runs it only where the choice can still change
    (:mod:`wm.video.bounded`); clips too small to be halved are measured whole, by their luma. ``start_s``, ``end_s``:
    only this segment, see :func:`wm.video.decode.frames`.

    Memory is bounded whatever the length: see the limits in :mod:`wm.video.walk`, and some 100 bytes a frame.

    Raises :class:`VideoError` (see :func:`wm.video.decode.frames`), and ``no_frames``, ``one_frame``,
    ``decode_error``.
    """
    # Each chosen frame rules out fewer than two intervals of others.
    max_chosen = max_keyframes * (2 * min_interval - 1)
    walk = Walk(path, motion, motion_side_px, max_chosen, start_s=start_s, end_s=end_s)
    walk.read()
    if walk.bounded:
        found_T, measured_T = search_keyframes(
            walk.motion,
            walk.steps,
            walk.measure,
            walk.refine if walk.quarters is not None else None,
            max_keyframes=max_keyframes,
            min_interval=min_interval,
            rule=rule,
            batch=1 if walk.held is not None else WALK_BATCH,
        )
    else:
        found_T, measured_T = np.asarray(walk.motion), np.ones(len(walk.motion), dtype=bool)
    walk.held = walk.quarters = None
    motion_T = found_T.astype(np.float32)
    chosen = choose_keyframes(motion_T, max_keyframes=max_keyframes, min_interval=min_interval, rule=rule)
    return Scan(
        num_frames=len(walk.times_s),
        size_px=walk.size_px,
        times_s=np.asarray(walk.times_s),
        motion=motion_T,
        measured=measured_T,
        keyframes=chosen,
        checks=walk.checks(chosen),
        errors=walk.tally.errors,
        motion_side_px=motion_side_px,
        small_px=walk.small_px,
        orientations=walk.orientations(chosen),
        sample_aspect=walk.sample_aspect,
        start_s=start_s,
        end_s=end_s,
        cuts=_cuts_between(np.asarray(walk.steps), chosen),
    )


def _cuts_between(steps_T: npt.NDArray[np.float64], chosen: list[int]) -> list[float]:
    """The highest cut score in (key-frame before, key-frame], for each; the first counts from the clip's start."""
    cut_T = cut_scores_of(steps_T)
    return [
        float(cut_T[before + 1 : frame + 1].max(initial=0.0))
        for before, frame in zip([-1, *chosen], chosen, strict=False)
    ]
