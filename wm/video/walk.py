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
from av.video.reformatter import VideoReformatter

from wm.video.decode import RawFrame, Tally, frames
from wm.video.errors import VideoError
from wm.video.farneback import FlowMeter
from wm.video.geometry import SQUARE_SAMPLES, Orientation, SampleAspect, to_square_luma
from wm.video.luma import num_halvings, shrink, small_size
from wm.video.motion import Luma, MotionKind, MotionMeter, farneback_motion

CHECK_SIDE_PX = 40
CHECK_NEIGHBOURS = 4

BATCH_BYTES = 2**14
"""Brightness that is measured at once. Between two frames the decoder would evict the flow's code and buffers from the
caches; a larger batch would evict its own."""
MAX_THUMBS = 16384
"""Max number of thumbnails in memory at once (2 to 5 kB each): of a longer clip only those of the frames of
most motion are kept."""
MAX_HELD_BYTES = 256 * 2**20
"""Max memory of decoded frames for exact motion. A longer clip is walked again, a few times."""
STANDIN_SHRINK = 4
"""The stand-in for exact motion is Farnebäck's flow at this part of the size."""
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
    meter: MotionMeter = field(default_factory=lambda: MotionMeter("dis"))
    scale: float = 1.0
    """Full-size pixels a pixel of the frames that the meter sees."""
    bounded: bool = False
    """Whether ``motion`` is a stand-in, for which :meth:`measure` has exact values."""
    standin_side_px: int = 0
    """Frames are halved to this side for the stand-in."""
    decoded: list[RawFrame] | None = None
    flow_meter: FlowMeter | None = None
    """Of exact motion; it expands each frame once while frames are measured in order."""
    reformatter: VideoReformatter = field(default_factory=VideoReformatter)
    greys: dict[int, Luma] = field(default_factory=dict)

    def _frames(self, tally: Tally | None = None) -> Generator[RawFrame]:
        return frames(self.path, tally, start_s=self.start_s, end_s=self.end_s)

    def read(self) -> None:
        """Walk over all frames once.

        Raises:
            VideoError: As :func:`wm.video.decode.frames` does, and ``no_frames``, ``one_frame``, ``decode_error``.
            wm.video.device_flow.FlowError: The device of ``flow`` fails.
        """
        lumas: list[Luma] = []
        square_lumas: list[Luma] = []
        orientation: Orientation | None = None
        for raw in self._frames(self.tally):
            if not self.times_s:
                self._set_sizes(raw)
            # Identity suffices: there are eight orientation objects in all.
            if raw.orientation is not orientation:
                # Laid in another way, a frame may have another shape in square pixels.
                self._measure_batch(lumas, square_lumas)
                orientation = raw.orientation
                self.orientation_changes.append((raw.index, orientation))
            luma = motion_luma(raw, self.side_px, self.small_px)
            standin = raw.luma(self.standin_side_px) if self.bounded else luma
            # Flow in square pixels, thumbnails in stored samples: those are compared with other readers' frames.
            lumas.append(luma)
            square_lumas.append(to_square_luma(standin, raw.upright_aspect))
            if self.flow is not None:
                self.flow.add(raw.grey(self.reformatter))
            self.times_s.append(raw.time_s)
            if len(lumas) * luma.size >= BATCH_BYTES:
                self._measure_batch(lumas, square_lumas)
            if self.decoded is not None:
                self._hold(raw, self.decoded)
        self._measure_batch(lumas, square_lumas)
        if self.flow is not None:
            self.motion = self.flow.motion()
        _check_num_frames(self.path, len(self.times_s), self.tally)

    def _measure_batch(self, lumas: list[Luma], square_lumas: list[Luma]) -> None:
        """Measure the next frames as the meter sees them, keep their thumbnails, and empty both lists."""
        if not lumas:
            return
        if self.flow is not None:
            self.motion += [0.0] * len(lumas)  # until the device has measured them
        else:
            lengths = self.meter.measure(square_lumas)
            self.motion += [length * self.scale for length in lengths]
        for index, luma in enumerate(lumas, len(self.steps)):
            thumb, before = thumbnail(luma), self.thumbs.get(index - 1)
            # A sum of integers: the same at any address of the arrays.
            self.steps.append(cv2.norm(thumb, before, cv2.NORM_L1) / thumb.size if before is not None else 0.0)
            self.thumbs[index] = thumb
        lumas.clear()
        square_lumas.clear()
        # Only here are frames dropped, so that memory stays bounded.
        if len(self.thumbs) > MAX_THUMBS:
            self._drop_thumbs()

    def _set_sizes(self, raw: RawFrame) -> None:
        """Set sizes, meter and buffers by the first frame."""
        self.size_px, self.sampled_px = raw.size_px(), raw.sampled_px()
        self.sample_aspect = raw.sample_aspect
        # A clip that need not be halved is measured exactly as it is walked over.
        halvings = num_halvings(*self.sampled_px, self.side_px)
        self.small_px = small_size(*self.sampled_px, self.side_px)
        if self.kind == "dis" or not halvings:
            self.flow = None
        self.bounded = self.kind == "farneback" and halvings > 0 and self.flow is None
        if self.bounded:
            self.decoded, self.flow_meter = [], FlowMeter()
            self.standin_side_px = max(self.sampled_px) // STANDIN_SHRINK
            halvings = num_halvings(*self.sampled_px, self.standin_side_px)
        self.meter, self.scale = MotionMeter(self.kind), float(2**halvings)

    def _hold(self, raw: RawFrame, decoded: list[RawFrame]) -> None:
        """Keep what the search for exact key-frames needs, as far as it fits."""
        decoded.append(raw)
        if len(decoded) * raw.num_bytes > MAX_HELD_BYTES:
            self.decoded = None

    def measure(self, frame_numbers: list[int]) -> list[float]:
        """Measure Farnebäck's flow at full size.

        Args:
            frame_numbers: Frames after the first.

        Returns:
            Motion of each, px/frame.

        Raises:
            VideoError: ``frame_mismatch`` where a second walk gives fewer frames.
        """
        motion: dict[int, float] = {}
        if self.decoded is not None:
            # In their order: neighbours share a frame.
            for number in sorted(frame_numbers):
                before, after = self._grey(self.decoded, number - 1), self._grey(self.decoded, number)
                motion[number] = farneback_motion(before, after, self.flow_meter)
            return [motion[number] for number in frame_numbers]
        # Too long to keep: one more walk, up to the last of the frames.
        last = None
        with closing(self._frames()) as walk:
            for raw in walk:
                if raw.index in frame_numbers and last is not None:
                    before, after = last.grey(self.reformatter), raw.grey(self.reformatter)
                    motion[raw.index] = farneback_motion(before, after, self.flow_meter)
                last = raw
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
            self.greys[frame] = decoded[frame].grey(self.reformatter)
        return self.greys[frame]

    def orientations(self, keyframes: list[int]) -> list[Orientation]:
        """Return the orientation of each key-frame as it is stored."""
        changes = self.orientation_changes[::-1]
        return [next(orientation for begin, orientation in changes if begin <= frame) for frame in keyframes]

    def checks(self, keyframes: list[int]) -> Checks:
        """Build the thumbnails by which each key-frame is recognised when it is read again.

        Raises:
            VideoError: ``frame_mismatch`` where a second walk gives fewer frames.
        """
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
            if not missing <= self.thumbs.keys():
                raise VideoError("frame_mismatch", f"{self.path}: no frame {max(missing)} on second reading")
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
