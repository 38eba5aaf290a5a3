"""What one walk over a clip's frames gathers, in bounded memory, and the later walks for what it did not keep."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from wm.video.decode import RawFrame, Tally, frames, num_halvings, shrink, small_size
from wm.video.errors import VideoError
from wm.video.geometry import SQUARE_SAMPLES, Orientation, SampleAspect, to_square_luma
from wm.video.motion import Luma, MotionKind, MotionMeter, farneback_motion

CHECK_SIDE_PX = 40
CHECK_NEIGHBOURS = 4

MAX_THUMBS = 16384
"""Thumbnails held at once (2 to 5 kB each): of a longer clip only those of the frames that move most are kept."""
MAX_HELD_BYTES = 256 * 2**20
"""Decoded frames held for exact motion. A longer clip is walked again, a few times, for the frames it needs."""
MAX_QUARTER_BYTES = 128 * 2**20
"""Brightness at a quarter of the size, held for exact motion; of a longer clip frames are measured without it."""
MAX_GREYS = 16
"""Full-size frames kept ready for measuring."""
WALK_BATCH = 32
"""Frames to measure at least in such a walk."""

Checks: TypeAlias = dict[int, npt.NDArray[np.uint8]]
"""Chosen frame → uint8 thumbnails of itself (row 0) and of its neighbours in time, shape (1 + neighbours,
h, w)."""


@dataclass
class Walk:
    """Everything that is gathered while a clip is walked over."""

    path: str | Path
    kind: MotionKind
    side_px: int
    max_chosen: int
    """The key-frames are among as many frames of most motion."""
    start_s: float | None = None
    end_s: float | None = None
    tally: Tally = field(default_factory=Tally)
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the first frame, upright and in square pixels."""
    sampled_px: tuple[int, int] = (0, 0)
    """The same in the file's samples."""
    small_px: tuple[int, int] = (0, 0)
    sample_aspect: SampleAspect = SQUARE_SAMPLES
    orientation_changes: list[tuple[int, Orientation]] = field(default_factory=list)
    """Frames from which on the video lies in another way, the first one included."""
    times_s: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    """px/frame of the full-size frame."""
    steps: list[float] = field(default_factory=list)
    """Mean absolute difference of thumbnails to the frame before, in grey levels."""
    thumbs: dict[int, Luma] = field(default_factory=dict)
    bounded: bool = False
    """``motion`` is a stand-in; :meth:`measure` knows better."""
    held: list[RawFrame] | None = None
    quarters: list[Luma] | None = None
    greys: dict[int, Luma] = field(default_factory=dict)

    def _frames(self, tally: Tally | None = None) -> Generator[RawFrame]:
        return frames(self.path, tally, start_s=self.start_s, end_s=self.end_s)

    def read(self) -> None:
        """The first pass."""
        meter, scale = MotionMeter("dis"), 1.0
        before: Luma | None = None
        orientation: Orientation | None = None
        for raw in self._frames(self.tally):
            if not self.times_s:
                scale = self._begin(raw)
                meter = MotionMeter("dis" if self.bounded else self.kind)
            if raw.orientation is not orientation:
                orientation = raw.orientation
                self.orientation_changes.append((raw.index, orientation))
            luma = motion_luma(raw, self.side_px, self.small_px)
            thumb = thumbnail(luma)
            self.motion.append(meter.next(to_square_luma(luma, raw.upright_aspect)) * scale)
            # A sum of whole numbers, the same wherever the arrays lie
            self.steps.append(cv2.norm(thumb, before, cv2.NORM_L1) / thumb.size if before is not None else 0.0)
            self.thumbs[raw.index] = before = thumb
            self.times_s.append(raw.time_s)
            if len(self.thumbs) > MAX_THUMBS:
                self._forget()
            if self.bounded:
                self._hold(raw)
        _require_frames(self.path, len(self.times_s), self.tally)

    def _begin(self, raw: RawFrame) -> float:
        """Note the sizes; returns the scale of the motion pass."""
        self.size_px, self.sampled_px = raw.size_px(), raw.sampled_px()
        self.sample_aspect = raw.sample_aspect
        halvings = num_halvings(*self.sampled_px, self.side_px)
        self.small_px = small_size(*self.sampled_px, self.side_px)
        self.bounded = self.kind == "farneback" and halvings > 0
        self.held = [] if self.bounded else None
        self.quarters = [] if self.bounded and halvings > 2 else None
        return float(2**halvings)

    def _hold(self, raw: RawFrame) -> None:
        """Keep what the search for exact key-frames asks for, as far as it fits."""
        if self.held is not None:
            self.held.append(raw)
            if len(self.held) * raw.num_bytes > MAX_HELD_BYTES:
                self.held = None
        if self.quarters is not None:
            quarter = raw.luma(max(self.sampled_px) // 4)
            self.quarters.append(to_square_luma(quarter, raw.upright_aspect))
            if len(self.quarters) * self.quarters[-1].size > MAX_QUARTER_BYTES:
                self.quarters = None

    def refine(self, wanted: list[int]) -> list[float]:
        """Farneback at a quarter of the size, px/frame of the full size."""
        held = self.quarters or []
        return [4 * _motion(held[frame - 1], held[frame]) for frame in wanted]

    def measure(self, wanted: list[int]) -> list[float]:
        """Full-size Farnebäck at each frame, px/frame."""
        if self.held is not None:
            held = self.held
            return [_motion(self._grey(held, frame - 1), self._grey(held, frame)) for frame in wanted]
        found: dict[int, float] = {}
        before = None
        with closing(self._frames()) as walk:
            for raw in walk:
                if raw.index in wanted and before is not None:
                    found[raw.index] = _motion(before.grey(), raw.grey())
                before = raw
                if len(found) == len(wanted):
                    break
        if len(found) < len(wanted):
            raise VideoError("frame_mismatch", f"{self.path}: {len(found)} of {len(wanted)} frames on second reading")
        return [found[frame] for frame in wanted]

    def _grey(self, held: list[RawFrame], frame: int) -> Luma:
        """Full-size brightness of a held frame. A few are kept: frames next to one another are asked for together."""
        if frame not in self.greys:
            if len(self.greys) == MAX_GREYS:
                del self.greys[next(iter(self.greys))]
            self.greys[frame] = held[frame].grey()
        return self.greys[frame]

    def orientations(self, chosen: list[int]) -> list[Orientation]:
        """Return how each chosen frame lies in the file."""
        return [next(laid for begin, laid in reversed(self.orientation_changes) if begin <= frame) for frame in chosen]

    def checks(self, chosen: list[int]) -> Checks:
        """What each chosen frame must look like when it is read again."""
        near = {frame: self._near(frame) for frame in chosen}
        missing = {index for indices in near.values() for index in indices} - self.thumbs.keys()
        if missing:
            with closing(self._frames()) as walk:
                for raw in walk:
                    if raw.index in missing:
                        self.thumbs[raw.index] = thumbnail(motion_luma(raw, self.side_px, self.small_px))
                        if raw.index == max(missing):
                            break
        return {frame: np.stack([self.thumbs[index] for index in near[frame]]) for frame in chosen}

    def _near(self, frame: int) -> list[int]:
        """The frame itself, then its neighbours in time."""
        near = range(max(0, frame - CHECK_NEIGHBOURS), min(len(self.times_s), frame + CHECK_NEIGHBOURS + 1))
        return [frame, *(index for index in near if index != frame)]

    def _forget(self) -> None:
        """Keep only the thumbnails of frames that may still be chosen, their neighbours', and the newest."""
        most = np.argsort(-np.asarray(self.motion), kind="stable")[: self.max_chosen]
        keep = {index for frame in most.tolist() for index in self._near(frame)}
        newest = len(self.motion) - 1 - CHECK_NEIGHBOURS
        self.thumbs = {index: thumb for index, thumb in self.thumbs.items() if index in keep or index >= newest}


def _motion(before: Luma, after: Luma) -> float:
    return farneback_motion(before, after) if before.shape == after.shape else 0.0


def motion_luma(raw: RawFrame, motion_side_px: int, size_px: tuple[int, int]) -> Luma:
    """A frame's brightness as the motion pass sees it, in stored samples. A picture that changes its size goes on at
    ``size_px``."""
    luma = raw.luma(motion_side_px)
    if luma.shape != size_px:
        return np.asarray(cv2.resize(luma, size_px[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return luma


def thumbnail(luma_HW: Luma) -> Luma:
    """A frame small enough to keep for every frame of a clip: long side below twice ``CHECK_SIDE_PX``."""
    thumb: Luma = shrink(luma_HW, CHECK_SIDE_PX)
    return thumb


def _require_frames(path: str | Path, num_frames: int, tally: Tally) -> None:
    if num_frames >= 2:
        return
    if num_frames == 1:
        raise VideoError("one_frame", f"{path}: one frame; a pair needs two")
    if tally.errors:
        raise VideoError("decode_error", f"{path}: no frame decoded, {tally.errors} errors: {tally.last_error}")
    raise VideoError("no_frames", f"{path}: a video stream without frames")
