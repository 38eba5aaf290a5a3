"""The motion pass: one walk over all frames gives times, motion, key-frames and what a chosen frame must
look like."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from wm.video.decode import RawFrame, Tally, frames, small_size
from wm.video.errors import VideoError
from wm.video.facts import cut_scores
from wm.video.keyframes import KeyframeRule, choose_keyframes
from wm.video.motion import Luma, MotionKind, MotionMeter

CHECK_SIDE_PX = 48
CHECK_NEIGHBOURS = 4

Checks: TypeAlias = dict[int, npt.NDArray[np.uint8]]
"""Chosen frame → uint8 thumbnails of itself (row 0) and of its neighbours in time, shape (1 + neighbours,
h, w)."""


@dataclass(frozen=True)
class Scan:
    """What the motion pass found. T = ``num_frames``.

    ``times_s``: float64 presentation times in the file's own clock. ``motion``: float32 mean flow magnitude
    in px/frame of the full-size frame, 0 for the first. ``keyframes``: chosen indices in time order.
    ``size_px``: (height, width) upright. ``errors``: packets that could not be decoded and were skipped.
    ``cuts``: for each key-frame, how much the most cut-like frame since the key-frame before looks like the first of
    a new shot (:func:`wm.video.facts.cut_scores`; above 3: a hard cut lies between the two).
    Frames count from the first of the segment ``start_s`` to ``end_s`` (seconds in the file's own clock, half-open;
    None: the file's beginning, its end). ``motion_side_px``: the size at which it was seen, which a second reading
    must use too.
    """

    num_frames: int
    size_px: tuple[int, int]
    times_s: npt.NDArray[np.float64]
    motion: npt.NDArray[np.float32]
    keyframes: list[int]
    checks: Checks
    errors: int
    motion_side_px: int
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
    motion_side_px: int = 160,
    max_keyframes: int = 6,
    min_interval: int = 20,
    rule: KeyframeRule = "top_then_spacing",
    start_s: float | None = None,
    end_s: float | None = None,
) -> Scan:
    """Decode once at a long side of at most ``motion_side_px``, measure motion, choose key-frames.

    ``start_s``, ``end_s``: only this segment, see :func:`wm.video.decode.frames`.

    Raises :class:`VideoError` (see :func:`wm.video.decode.frames`), and ``no_frames``, ``one_frame``,
    ``decode_error``.
    """
    tally, meter = Tally(), MotionMeter(motion)
    times_s: list[float] = []
    curve: list[float] = []
    thumbs: list[Luma] = []
    size_px = small_px = (0, 0)
    for raw in frames(path, tally, start_s=start_s, end_s=end_s):
        if not times_s:
            size_px = raw.size_px()
            small_px = small_size(*size_px, motion_side_px)
        luma = motion_luma(raw, motion_side_px, small_px)
        curve.append(meter.next(luma) * max(size_px) / max(small_px))
        times_s.append(raw.time_s)
        thumbs.append(thumbnail(luma))
    _require_frames(path, len(times_s), tally)
    curve_T = np.asarray(curve, dtype=np.float32)
    chosen = choose_keyframes(curve_T, max_keyframes=max_keyframes, min_interval=min_interval, rule=rule)
    return Scan(
        num_frames=len(times_s),
        size_px=size_px,
        times_s=np.asarray(times_s),
        motion=curve_T,
        keyframes=chosen,
        checks={frame: _with_neighbours(thumbs, frame) for frame in chosen},
        errors=tally.errors,
        motion_side_px=motion_side_px,
        start_s=start_s,
        end_s=end_s,
        cuts=_cuts_between(thumbs, chosen),
    )


def motion_luma(raw: RawFrame, motion_side_px: int, size_px: tuple[int, int]) -> Luma:
    """A frame's brightness as the motion pass sees it. A picture that changes its size goes on at
    ``size_px``."""
    luma = raw.luma(motion_side_px)
    if luma.shape != size_px:
        return np.asarray(cv2.resize(luma, size_px[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return luma


def thumbnail(luma_HW: Luma) -> Luma:
    """A frame small enough to keep for every frame of a long clip: long side ``CHECK_SIDE_PX`` at most."""
    height, width = luma_HW.shape
    scale = CHECK_SIDE_PX / max(height, width)
    if scale >= 1:
        return luma_HW
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(luma_HW, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _cuts_between(thumbs: list[Luma], chosen: list[int]) -> list[float]:
    """The highest cut score in (key-frame before, key-frame], for each; the first counts from the clip's start."""
    if not chosen:
        return []
    cut_T = cut_scores(np.stack(thumbs[: chosen[-1] + 3]))
    return [
        float(cut_T[before + 1 : frame + 1].max(initial=0.0))
        for before, frame in zip([-1, *chosen], chosen, strict=False)
    ]


def _with_neighbours(thumbs: list[Luma], frame: int) -> npt.NDArray[np.uint8]:
    near = range(max(0, frame - CHECK_NEIGHBOURS), min(len(thumbs), frame + CHECK_NEIGHBOURS + 1))
    return np.stack([thumbs[frame], *(thumbs[index] for index in near if index != frame)])


def _require_frames(path: str | Path, num_frames: int, tally: Tally) -> None:
    if num_frames >= 2:
        return
    if num_frames == 1:
        raise VideoError("one_frame", f"{path}: one frame; a pair needs two")
    if tally.errors:
        raise VideoError("decode_error", f"{path}: no frame decoded, {tally.errors} errors: {tally.last_error}")
    raise VideoError("no_frames", f"{path}: a video stream without frames")
