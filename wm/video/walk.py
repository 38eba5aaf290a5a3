"""Walk over a clip's frames once in bounded memory, and again for frames that were not kept.

Does not choose key-frames: :mod:`wm.video.scan` does.
"""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt

from wm.video.decode import RawFrame, Tally, frames
from wm.video.errors import VideoError
from wm.video.geometry import SQUARE_SAMPLES, Orientation, SampleAspect, to_square_luma
from wm.video.luma import num_halvings, shrink, small_size
from wm.video.motion import Luma, MotionKind, MotionMeter, farneback_motion

CHECK_SIDE_PX = 40
CHECK_NEIGHBOURS = 4

MAX_THUMBS = 16384
"""Max number of thumbnails in memory at once (2 to 5 kB each): of a longer clip only those of the frames of
most motion are kept."""
MAX_HELD_BYTES = 256 * 2**20
"""Max memory of decoded frames for exact motion. A longer clip is walked again, a few times."""
MAX_QUARTER_BYTES = 128 * 2**20
"""Max memory of brightness at a quarter of the size, for exact motion; a longer clip is measured without it."""
MAX_GREYS = 16
"""Max number of full-size frames in memory for measuring."""
WALK_BATCH = 32
"""Min number of frames to measure in such a walk."""

Checks: TypeAlias = dict[int, npt.NDArray[np.uint8]]
"""Key-frame → uint8 thumbnails of itself (row 0) and of its neighbours in time, shape (1 + neighbours,
h, w)."""


class Flow(Protocol):
    """A meter of Farnebäck's flow that is given every frame at full size."""

    def add(self, grey_HW: Luma) -> None:
        """Take the next frame's brightness."""

    def motion(self) -> list[float]:
        """Return the motion of each frame so far, px/frame."""


@dataclass
class Walk:
    """Everything that is measured while a clip is walked over."""

    path: str | Path
    kind: MotionKind
    side_px: int
    max_candidates: int
    """The key-frames are among as many frames of most motion (:class:`wm.video.keyframes.KeyframeRule`)."""
    start_s: float | None = None
    end_s: float | None = None
    flow: Flow | None = None
    """Measures every frame of a clip that would else be searched; None for ``dis``, and on the CPU."""
    tally: Tally = field(default_factory=Tally)
    size_px: tuple[int, int] = (0, 0)
    """(height, width) of the first frame, upright and in square pixels."""
    sampled_px: tuple[int, int] = (0, 0)
    """The same in the file's samples."""
    small_px: tuple[int, int] = (0, 0)
    sample_aspect: SampleAspect = SQUARE_SAMPLES
    orientation_changes: list[tuple[int, Orientation]] = field(default_factory=list)
    """Frames from which on the video has another orientation, the first frame included."""
    times_s: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    """px/frame of the full-size frame."""
    steps: list[float] = field(default_factory=list)
    """Mean absolute difference of thumbnails to the frame before, in grey levels."""
    thumbs: dict[int, Luma] = field(default_factory=dict)
    bounded: bool = False
    """Whether ``motion`` is a stand-in, for which :meth:`measure` has exact values."""
    decoded: list[RawFrame] | None = None
    quarters: list[Luma] | None = None
    greys: dict[int, Luma] = field(default_factory=dict)

    def _frames(self, tally: Tally | None = None) -> Generator[RawFrame]:
        return frames(self.path, tally, start_s=self.start_s, end_s=self.end_s)

    def read(self) -> None:
        """Walk over all frames once.

        Raises:
            VideoError: As :func:`wm.video.decode.frames` does, and ``no_frames``, ``one_frame``, ``decode_error``.
            wm.video.device_flow.FlowError: The device of ``flow`` fails.
        """
        meter, scale = MotionMeter("dis"), 1.0
        before: Luma | None = None
        orientation: Orientation | None = None
        for raw in self._frames(self.tally):
            if not self.times_s:
                scale = self._set_sizes(raw)
                meter = MotionMeter("dis" if self.bounded else self.kind)
            # Identity suffices: there are eight orientation objects in all.
            if raw.orientation is not orientation:
                orientation = raw.orientation
                self.orientation_changes.append((raw.index, orientation))
            # Flow in square pixels, thumbnails in stored samples: those are compared with other readers' frames.
            luma = motion_luma(raw, self.side_px, self.small_px)
            thumb = thumbnail(luma)
            if self.flow is not None:
                self.flow.add(raw.grey())
                self.motion.append(0.0)  # until its batch is measured
            else:
                self.motion.append(meter.next(to_square_luma(luma, raw.upright_aspect)) * scale)
            # A sum of integers: the same at any address of the arrays.
            self.steps.append(cv2.norm(thumb, before, cv2.NORM_L1) / thumb.size if before is not None else 0.0)
            self.thumbs[raw.index] = before = thumb
            self.times_s.append(raw.time_s)
            # Only here are frames dropped, so that memory stays bounded.
            if len(self.thumbs) > MAX_THUMBS:
                self._drop_thumbs()
            if self.bounded:
                self._keep(raw)
        if self.flow is not None:
            self.motion = self.flow.motion()
        _check_num_frames(self.path, len(self.times_s), self.tally)

    def _set_sizes(self, raw: RawFrame) -> float:
        """Set sizes and buffers by the first frame; return the scale of the motion pass."""
        self.size_px, self.sampled_px = raw.size_px(), raw.sampled_px()
        self.sample_aspect = raw.sample_aspect
        # A clip that need not be halved is measured exactly as it is walked over.
        halvings = num_halvings(*self.sampled_px, self.side_px)
        self.small_px = small_size(*self.sampled_px, self.side_px)
        if self.kind == "dis" or not halvings:
            self.flow = None
        self.bounded = self.kind == "farneback" and halvings > 0 and self.flow is None
        self.decoded = [] if self.bounded else None
        # At two halvings a quarter of the size is what the motion pass sees anyway.
        self.quarters = [] if self.bounded and halvings > 2 else None
        return float(2**halvings)

    def _keep(self, raw: RawFrame) -> None:
        """Keep what the search for exact key-frames needs, as far as it fits."""
        if self.decoded is not None:
            self.decoded.append(raw)
            if len(self.decoded) * raw.num_bytes > MAX_HELD_BYTES:
                self.decoded = None
        # Small frames may fit where full ones do not.
        if self.quarters is not None:
            quarter = raw.luma(max(self.sampled_px) // 4)
            self.quarters.append(to_square_luma(quarter, raw.upright_aspect))
            if len(self.quarters) * self.quarters[-1].size > MAX_QUARTER_BYTES:
                self.quarters = None

    def refine(self, frame_numbers: list[int]) -> list[float]:
        """Measure Farnebäck's flow at a quarter of the size.

        Args:
            frame_numbers: Frames after the first.

        Returns:
            Motion of each, px/frame of the full size.
        """
        quarters = self.quarters or []
        return [4 * _motion(quarters[number - 1], quarters[number]) for number in frame_numbers]

    def measure(self, frame_numbers: list[int]) -> list[float]:
        """Measure Farnebäck's flow at full size.

        Args:
            frame_numbers: Frames after the first.

        Returns:
            Motion of each, px/frame.

        Raises:
            VideoError: ``frame_mismatch`` where a second walk gives fewer frames.
        """
        if self.decoded is not None:
            decoded = self.decoded
            return [_motion(self._grey(decoded, number - 1), self._grey(decoded, number)) for number in frame_numbers]
        # Too long to keep: one more walk, up to the last of the frames.
        motion: dict[int, float] = {}
        before = None
        with closing(self._frames()) as walk:
            for raw in walk:
                if raw.index in frame_numbers and before is not None:
                    motion[raw.index] = _motion(before.grey(), raw.grey())
                before = raw
                if len(motion) == len(frame_numbers):
                    break
        if len(motion) < len(frame_numbers):
            counts = f"{len(motion)} of {len(frame_numbers)} frames"
            raise VideoError("frame_mismatch", f"{self.path}: {counts} on second reading")
        return [motion[number] for number in frame_numbers]

    def _grey(self, decoded: list[RawFrame], frame: int) -> Luma:
        """Return the full-size brightness of a frame. A few are cached: neighbours are measured together."""
        # The oldest is dropped: the search moves on and rarely returns.
        if frame not in self.greys:
            if len(self.greys) == MAX_GREYS:
                del self.greys[next(iter(self.greys))]
            self.greys[frame] = decoded[frame].grey()
        return self.greys[frame]

    def orientations(self, keyframes: list[int]) -> list[Orientation]:
        """Return the orientation of each key-frame as it is stored."""
        changes = self.orientation_changes[::-1]
        return [next(orientation for begin, orientation in changes if begin <= frame) for frame in keyframes]

    def checks(self, keyframes: list[int]) -> Checks:
        """Build the thumbnails by which each key-frame is recognised when it is read again."""
        near = {frame: self._near(frame) for frame in keyframes}
        missing = {index for indices in near.values() for index in indices} - self.thumbs.keys()
        # Thumbnails that were dropped cost one more walk.
        if missing:
            with closing(self._frames()) as walk:
                for raw in walk:
                    if raw.index in missing:
                        self.thumbs[raw.index] = thumbnail(motion_luma(raw, self.side_px, self.small_px))
                        if raw.index == max(missing):
                            break
        return {frame: np.stack([self.thumbs[index] for index in near[frame]]) for frame in keyframes}

    def _near(self, frame: int) -> list[int]:
        """Return the numbers of the frame itself and of its neighbours in time."""
        near = range(max(0, frame - CHECK_NEIGHBOURS), min(len(self.times_s), frame + CHECK_NEIGHBOURS + 1))
        return [frame, *(index for index in near if index != frame)]

    def _drop_thumbs(self) -> None:
        """Keep only the thumbnails of frames that may still be chosen, their neighbours', and the newest."""
        if self.flow is not None:
            self.motion = self.flow.motion()
        # Sorted as the key-frame rule sorts, so that a candidate keeps its thumbnails.
        candidates = np.argsort(-np.asarray(self.motion), kind="stable")[: self.max_candidates]
        keep = {index for frame in candidates.tolist() for index in self._near(frame)}
        newest = len(self.motion) - 1 - CHECK_NEIGHBOURS
        self.thumbs = {index: thumb for index, thumb in self.thumbs.items() if index in keep or index >= newest}


def _motion(before: Luma, after: Luma) -> float:
    return farneback_motion(before, after) if before.shape == after.shape else 0.0


def motion_luma(raw: RawFrame, motion_side_px: int, size_px: tuple[int, int]) -> Luma:
    """Compute a frame's brightness as the motion pass sees it.

    Args:
        raw: The frame.
        motion_side_px: Frames are halved while their long side stays this or more.
        size_px: (height, width) of the first frame's, to which frames of another size are scaled.

    Returns:
        uint8 brightness in stored samples.
    """
    luma = raw.luma(motion_side_px)
    if luma.shape != size_px:
        return np.asarray(cv2.resize(luma, size_px[::-1], interpolation=cv2.INTER_AREA), dtype=np.uint8)
    return luma


def thumbnail(luma_HW: Luma) -> Luma:
    """Shrink brightness so far that it can be kept for every frame: long side below twice ``CHECK_SIDE_PX``."""
    thumb: Luma = shrink(luma_HW, CHECK_SIDE_PX)
    return thumb


def _check_num_frames(path: str | Path, num_frames: int, tally: Tally) -> None:
    if num_frames >= 2:
        return
    if num_frames == 1:
        raise VideoError("one_frame", f"{path}: one frame; a pair needs two")
    # Damage and emptiness are different reasons.
    if tally.errors:
        raise VideoError("decode_error", f"{path}: no frame decoded, {tally.errors} errors: {tally.last_error}")
    raise VideoError("no_frames", f"{path}: a video stream without frames")
