"""Run the motion pass: one walk over all frames gives times, motion, key-frames and thumbnails to prove them by.

Reads no colour: :mod:`wm.video.fetch` does.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wm.video.bounded import search_keyframes
from wm.video.facts import cut_scores
from wm.video.geometry import SQUARE_SAMPLES, Orientation, SampleAspect
from wm.video.keyframes import choose_keyframes, find_rule
from wm.video.motion import MotionKind
from wm.video.walk import WALK_BATCH, Checks, Walk


@dataclass(frozen=True)
class Scan:
    """Result of the motion pass; frames count from the first of the segment.

    Attributes:
        num_frames: T.
        size_px: (height, width) upright, in square pixels.
        times_s: float64 (T,), presentation times in the file's own clock.
        motion: float32 (T,), mean flow magnitude in px/frame of the full-size frame, 0 for the first.
        measured: bool (T,), false where ``motion`` is an expectation (only with ``farneback``).
        keyframes: Frame numbers in time order, all of them measured.
        checks: Thumbnails of each key-frame and its neighbours.
        errors: Packets that could not be decoded and were skipped.
        motion_side_px: Size at which the frames were measured; a second reading must use it too.
        small_px: The same as (height, width), in stored samples.
        orientations: Of each key-frame, as it is stored.
        sample_aspect: How its pixels are made square.
        start_s: Begin of the segment in the file's own clock (half-open, within half a frame step); None: of the file.
        end_s: Its end.
        cuts: For each key-frame, how much the most cut-like frame since the key-frame before looks like the first of
            a new shot (:func:`wm.video.facts.cut_scores`; above 3: a hard cut is between the two).
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
        """Time from the first frame to the last, plus one mean frame."""
        span_s = float(self.times_s[-1] - self.times_s[0])
        return span_s * self.num_frames / max(1, self.num_frames - 1)


def scan_video(
    path: str | Path,
    *,
    motion: MotionKind = "dis",
    motion_side_px: int = 40,
    max_keyframes: int = 6,
    min_interval_frames: int = 20,
    rule: str = "top_then_spacing",
    start_s: float | None = None,
    end_s: float | None = None,
) -> Scan:
    """Decode once, measure motion, choose key-frames.

    ``dis`` sees frames halved as long as their long side stays ``motion_side_px`` or more. ``farneback`` gives the
    key-frames that full-size Farnebäck on every frame would give, but runs it only where the choice can still change
    (:mod:`wm.video.bounded`); clips too small to be halved are measured at full size, by their luma.

    Memory is bounded at any length: see the limits in :mod:`wm.video.walk`, and some 100 bytes a frame.

    Args:
        path: A local file.
        motion: Kind of optical flow.
        motion_side_px: Frames are halved while their long side stays this or more.
        max_keyframes: ``K_f`` of :func:`wm.video.keyframes.choose_keyframes`.
        min_interval_frames: ``I_f`` of the same, in frames.
        rule: Name of a key-frame rule.
        start_s: Begin of the segment, see :func:`wm.video.decode.frames`.
        end_s: Its end.

    Raises:
        VideoError: As :func:`wm.video.decode.frames` does, and ``no_frames``, ``one_frame``, ``decode_error``.
        InputError: There is no such rule.
    """
    # 1. Walk once.
    keyframe_rule = find_rule(rule)
    max_candidates = keyframe_rule.max_candidates(max_keyframes, min_interval_frames)
    walk = Walk(path, motion, motion_side_px, max_candidates, start_s=start_s, end_s=end_s)
    walk.read()
    # 2. Exact motion only where it can change the choice.
    if walk.bounded:
        expected_T, measured_T = search_keyframes(
            walk.motion,
            walk.steps,
            walk.measure,
            walk.refine if walk.quarters is not None else None,
            max_keyframes=max_keyframes,
            min_interval_frames=min_interval_frames,
            rule=keyframe_rule,
            # A walk costs the same for one frame as for many; frames in memory cost only themselves.
            batch=1 if walk.decoded is not None else WALK_BATCH,
        )
    else:
        expected_T, measured_T = np.asarray(walk.motion), np.ones(len(walk.motion), dtype=bool)
    # 3. Choose; the decoded frames are no longer needed.
    walk.decoded = walk.quarters = None
    motion_T = expected_T.astype(np.float32)
    keyframes = choose_keyframes(
        motion_T, max_keyframes=max_keyframes, min_interval_frames=min_interval_frames, rule=rule
    )
    return _build_scan(walk, motion_T, measured_T, keyframes)


def _build_scan(
    walk: Walk, motion_T: npt.NDArray[np.float32], measured_T: npt.NDArray[np.bool_], keyframes: list[int]
) -> Scan:
    # With all by which a second reading is held against this one.
    return Scan(
        num_frames=len(walk.times_s),
        size_px=walk.size_px,
        times_s=np.asarray(walk.times_s),
        motion=motion_T,
        measured=measured_T,
        keyframes=keyframes,
        checks=walk.checks(keyframes),
        errors=walk.tally.errors,
        motion_side_px=walk.side_px,
        small_px=walk.small_px,
        orientations=walk.orientations(keyframes),
        sample_aspect=walk.sample_aspect,
        start_s=walk.start_s,
        end_s=walk.end_s,
        cuts=_max_cut_scores(np.asarray(walk.steps), keyframes),
    )


def _max_cut_scores(steps_T: npt.NDArray[np.float64], keyframes: list[int]) -> list[float]:
    """Return the max cut score in (key-frame before, key-frame], for each; the first counts from the clip's start."""
    cut_T = cut_scores(steps_T)
    return [
        float(cut_T[before + 1 : frame + 1].max(initial=0.0))
        for before, frame in zip([-1, *keyframes], keyframes, strict=False)
    ]
