"""Run the motion pass: one walk over all frames gives times, motion, key-frames and thumbnails to prove them by.

Reads no colour: :mod:`wm.video.fetch` does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from wm.video.bounded import Ask, search_keyframes
from wm.video.device_flow import NO_DEVICE, DeviceFlow, FlowError, check_device, give_up
from wm.video.facts import cut_scores
from wm.video.farneback import describe_program
from wm.video.geometry import SQUARE_SAMPLES, Orientation, SampleAspect
from wm.video.keyframes import KeyframeRule, choose_keyframes, find_rule
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
        measured_on: Who measured the motion: the name of a GPU, ``cpu``, or ``cpu (why the GPU did not)``; on the CPU
            ``farneback`` adds its program, ``cpu by numba`` or ``cpu by OpenCV (why numba did not)``.
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
    measured_on: str = NO_DEVICE

    @property
    def duration_s(self) -> float:
        """Time from the first frame to the last, plus one mean frame."""
        span_s = float(self.times_s[-1] - self.times_s[0])
        return span_s * self.num_frames / max(1, self.num_frames - 1)


def scan_video(
    path: str | Path,
    *,
    motion: MotionKind = "dis",
    device: str = NO_DEVICE,
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
    (:mod:`wm.video.bounded`); clips too small to be halved are measured on every frame, by their luma. On a GPU it
    measures every frame (:mod:`wm.video.device_flow`).

    Memory is bounded at any length: see the limits in :mod:`wm.video.walk`, and some 100 bytes a frame.

    Args:
        path: A local file.
        motion: Kind of optical flow.
        device: Where ``farneback`` is measured, as torch calls it; ``cpu`` also takes over from a device that fails.
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
    scans = scan_rules(
        path,
        [rule],
        motion=motion,
        device=device,
        motion_side_px=motion_side_px,
        max_keyframes=max_keyframes,
        min_interval_frames=min_interval_frames,
        start_s=start_s,
        end_s=end_s,
    )
    return scans[rule]


def scan_rules(
    path: str | Path,
    rules: Sequence[str],
    *,
    motion: MotionKind = "dis",
    device: str = NO_DEVICE,
    motion_side_px: int = 40,
    max_keyframes: int = 6,
    min_interval_frames: int = 20,
    start_s: float | None = None,
    end_s: float | None = None,
) -> dict[str, Scan]:
    """Decode once for several key-frame rules; each scan is the one that :func:`scan_video` gives with its rule.

    Args:
        path: A local file.
        rules: Names of different key-frame rules.
        motion: As for :func:`scan_video`.
        device: As for :func:`scan_video`.
        motion_side_px: As for :func:`scan_video`.
        max_keyframes: As for :func:`scan_video`.
        min_interval_frames: As for :func:`scan_video`.
        start_s: Begin of the segment.
        end_s: Its end.

    Returns:
        The scan of each rule by its name.

    Raises:
        VideoError: As :func:`scan_video` does.
        InputError: There is no such rule.
    """
    # 1. Walk once, keeping enough for the rule that looks furthest down the order of motion.
    limits = (max_keyframes, min_interval_frames)
    keyframe_rules = {name: find_rule(name) for name in rules}
    max_candidates = max(rule.max_candidates(*limits) for rule in keyframe_rules.values())
    build_walk = partial(Walk, path, motion, motion_side_px, max_candidates, start_s=start_s, end_s=end_s)
    walk, measured_on = _read_walk(build_walk, device)
    # 2. Exact motion only where it can change a rule's own choice; what one has measured serves the next.
    measure = _remember(walk.measure)
    curves = {name: _measure_motion(walk, rule, limits, measure) for name, rule in keyframe_rules.items()}
    # 3. Choose; the decoded frames are no longer needed.
    walk.decoded = None
    scans = {}
    for name, (motion_T, measured_T) in curves.items():
        keyframes = choose_keyframes(
            motion_T, max_keyframes=max_keyframes, min_interval_frames=min_interval_frames, rule=name
        )
        scans[name] = _build_scan(walk, motion_T, measured_T, keyframes, measured_on)
    return scans


def _read_walk(build_walk: Callable[..., Walk], device: str) -> tuple[Walk, str]:
    """Walk with the flow on a device, or without where there is none or it fails; return who measures."""
    test = None if device == NO_DEVICE else check_device(device)
    if test is not None and not test.problem:
        walk = build_walk(flow=DeviceFlow(device))
        try:
            walk.read()
        except FlowError as error:
            test = give_up(device, str(error))
        else:
            return walk, test.measured_on if walk.flow is not None else NO_DEVICE + _describe_program(walk)
    # Anew: a device that fails midway leaves a part of the motion.
    walk = build_walk()
    walk.read()
    return walk, (NO_DEVICE if test is None else test.measured_on) + _describe_program(walk)


def _describe_program(walk: Walk) -> str:
    return f" by {describe_program()}" if walk.kind == "farneback" else ""


def _remember(ask: Ask) -> Ask:
    """Return a function that asks for each frame once."""
    answers: dict[int, float] = {}

    def ask_once(frame_numbers: list[int]) -> list[float]:
        if unknown := [number for number in frame_numbers if number not in answers]:
            answers.update(zip(unknown, ask(unknown), strict=True))
        return [answers[number] for number in frame_numbers]

    return ask_once


def _measure_motion(
    walk: Walk, rule: KeyframeRule, limits: tuple[int, int], measure: Ask
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the motion of each frame as a rule needs to know it, px/frame, and which of it was measured."""
    if not walk.bounded:
        return np.asarray(walk.motion).astype(np.float32), np.ones(len(walk.motion), dtype=bool)
    max_keyframes, min_interval_frames = limits
    expected_T, measured_T = search_keyframes(
        walk.motion,
        walk.steps,
        measure,
        max_keyframes=max_keyframes,
        min_interval_frames=min_interval_frames,
        rule=rule,
        # A walk costs the same for one frame as for many; frames in memory cost only themselves.
        batch=1 if walk.decoded is not None else WALK_BATCH,
    )
    return expected_T.astype(np.float32), measured_T


def _build_scan(
    walk: Walk,
    motion_T: npt.NDArray[np.float32],
    measured_T: npt.NDArray[np.bool_],
    keyframes: list[int],
    measured_on: str,
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
        measured_on=measured_on,
    )


def _max_cut_scores(steps_T: npt.NDArray[np.float64], keyframes: list[int]) -> list[float]:
    """Return the max cut score in (key-frame before, key-frame], for each; the first counts from the clip's start."""
    cut_T = cut_scores(steps_T)
    return [
        float(cut_T[before + 1 : frame + 1].max(initial=0.0))
        for before, frame in zip([-1, *keyframes], keyframes, strict=False)
    ]
