"""Decode every frame of a video, or of a segment of it, once and in order (PyAV), with its time.

An error in one packet costs the frames of that packet. The display matrix (rotated, mirrored) is applied, pixels are
made square, studio range is widened to 0..255, deep colour is reduced to 8 bits. Knows nothing of
motion or key-frames.

Why PyAV and not decord: decord converts every frame to RGB, which the motion pass does not need, and gives up on files
of which most frames are good.
"""

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from operator import attrgetter
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from wm.images import Pixels
from wm.video.errors import VideoError
from wm.video.geometry import (
    SQUARE_SAMPLES,
    UPRIGHT,
    Orientation,
    SampleAspect,
    orientation_of,
    sample_aspect,
    square_width,
    to_square_pixels,
)
from wm.video.luma import luma_plane, shrink, widen_range
from wm.video.motion import Luma
from wm.video.opening import open_video, video_stream
from wm.video.segments import TimedFrame, mark_segment

_SEEK_MARGINS = (2, 250)
"""Frames before a segment that are sought: a key-frame next to its begin does not say how long the frame before it is
shown."""
_USUAL_STEP_S = 0.04


@dataclass
class Tally:
    """Errors while frames are read.

    Attributes:
        errors: Packets or reads that failed.
        last_error: Message of the newest.
    """

    errors: int = 0
    last_error: str = ""

    def add(self, error: BaseException) -> None:
        """Count an error and keep its message."""
        self.errors += 1
        self.last_error = str(error)


@dataclass(slots=True)
class RawFrame:
    """One decoded frame.

    Attributes:
        index: Number of the frame from 0, in the segment that is read.
        time_s: Presentation time in the file's own clock (a clip need not start at 0).
        frame: The ``av.VideoFrame`` as it is stored.
        orientation: How to lay it upright.
        sample_aspect: How its pixels are made square.
    """

    index: int
    time_s: float
    frame: av.VideoFrame = field(repr=False)
    orientation: Orientation = UPRIGHT
    sample_aspect: SampleAspect = SQUARE_SAMPLES

    @property
    def num_bytes(self) -> int:
        """Memory of the decoded frame."""
        return sum(plane.buffer_size for plane in self.frame.planes)

    @property
    def upright_aspect(self) -> Fraction:
        """Width over height of a sample of the upright frame."""
        return self.sample_aspect.upright(self.orientation)

    def sampled_px(self) -> tuple[int, int]:
        """Return (height, width) of the upright frame in its stored samples."""
        height, width = self.frame.height, self.frame.width
        return (width, height) if self.orientation.transposed else (height, width)

    def size_px(self) -> tuple[int, int]:
        """Return (height, width) of the upright frame in square pixels."""
        height, width = self.sampled_px()
        return height, square_width(width, self.upright_aspect)

    def rgb(self, reformatter: VideoReformatter | None = None) -> Pixels:
        """Convert to upright full-size colour in square pixels: uint8 RGB (height, width, 3).

        Args:
            reformatter: One for many frames saves most of the time; the pixels are the same.
        """
        frame = self.frame if reformatter is None else reformatter.reformat(self.frame, format="rgb24")
        upright = np.ascontiguousarray(self.orientation.apply(frame.to_ndarray(format="rgb24")))
        return to_square_pixels(upright, self.upright_aspect)

    def grey(self, reformatter: VideoReformatter | None = None) -> Luma:
        """Convert to upright full-size brightness by way of RGB, as OpenCV's own reader and ``cvtColor`` do.

        Where colours are outside RGB's range it is not the luma of the file.

        Args:
            reformatter: As for :meth:`rgb`.
        """
        return np.asarray(cv2.cvtColor(self.rgb(reformatter), cv2.COLOR_RGB2GRAY), dtype=np.uint8)

    def luma(self, side_px: int) -> Luma:
        """Compute upright brightness in stored samples, halved while its long side stays ``side_px`` or more.

        See :func:`shrink`; uint8 (height, width), full range.
        """
        plane, excess_bits, widen = luma_plane(self.frame)
        small = plane
        if self.orientation is not UPRIGHT:
            # Laid after one halving: cheaper, and less than a pixel away from laying the frame itself.
            small = np.array(self.orientation.apply(shrink(small, side_px, max_halvings=1)), order="C")
        small = shrink(small, side_px)
        # Shrunk first: depth and range then cost next to nothing.
        if excess_bits:
            small = (small >> excess_bits).astype(np.uint8)
        if widen:
            return widen_range(small)
        # A copy where nothing was computed: the plane belongs to the frame, which returns to the decoder's pool.
        return np.asarray(small.copy() if small is plane else small, dtype=np.uint8)


def frames(
    path: str | Path, tally: Tally | None = None, *, start_s: float | None = None, end_s: float | None = None
) -> Generator[RawFrame]:
    """Decode the first video stream in one thread. The file is closed when the iterator is.

    The file is sought to a key-frame before ``start_s`` where that leads to a frame in time, and otherwise walked from
    its beginning.

    Args:
        path: A local file.
        tally: Counts the errors after opening; the next packet is tried.
        start_s: Begin of a half-open segment of the file's own clock, within half a frame step
            (:mod:`wm.video.segments`). None: from the file's beginning.
        end_s: Its end. None: to the file's end.

    Yields:
        The frames in order; ``index`` counts from the first of the segment.

    Raises:
        VideoError: ``missing_file``, ``not_a_file``, ``unreadable``, ``empty_file``, ``not_a_video``,
            ``no_video_stream``; ``no_frames`` for an empty segment or one beyond the file's end; ``odd_orientation``.
    """
    tally = tally if tally is not None else Tally()
    begin = -math.inf if start_s is None else start_s
    end = math.inf if end_s is None else end_s
    if not begin < end:
        raise VideoError("no_frames", f"{path}: the segment from {start_s} s to {end_s} s is empty")
    # Each attempt opens the file anew: a demuxer that was sought wrong is not to be trusted.
    for margin in (None,) if start_s is None else (*_SEEK_MARGINS, None):
        with open_video(path) as container:
            stream = video_stream(container, path)
            stream.thread_type = "NONE"  # threads hold frames back and cost more than they bring on one core
            # Without this flag a decoder crops at multiples of 32 bytes, and shows columns that ffmpeg leaves out.
            stream.codec_context.flags |= Flags.unaligned
            attempt = Tally()
            walk = _iterate_timed(container, stream, attempt)
            if margin is not None:
                target_s = begin - margin * (_mean_step_s(stream) or _USUAL_STEP_S)
                seek_walk = _seek(container, stream, walk, begin, target_s)
                if seek_walk is None:
                    continue  # from further back, in the end from the beginning
                walk = seek_walk
            yield from _select(walk, begin, end, path, sample_aspect(stream.sample_aspect_ratio))
            # Only of the attempt that was used: frames that were passed over are not the caller's.
            tally.errors += attempt.errors
            tally.last_error = attempt.last_error or tally.last_error
            return


def _select(
    walk: Iterator[TimedFrame], begin: float, end: float, path: str | Path, aspect: SampleAspect
) -> Iterator[RawFrame]:
    """Give the frames of the segment, numbered, with how they lie."""
    index, time_s = 0, None
    orientation: Orientation | None = None
    # A complete file needs no look ahead: each frame is given before the next one is decoded.
    is_complete = begin == -math.inf and end == math.inf
    for time_s, frame, inside in ((*timed, True) for timed in walk) if is_complete else mark_segment(walk, begin, end):
        # A container's matrix is every frame's; a codec's comes with a key-frame and holds for the frames after it.
        if orientation is None or frame.key_frame:
            try:
                orientation = orientation_of(frame) or orientation or UPRIGHT
            except VideoError as error:
                raise VideoError(error.reason, f"{path}: {error.detail}") from None
        if inside:
            yield RawFrame(index, time_s, frame, orientation, aspect)
            index += 1
    # An empty selection names the frame nearest to it, so that a wrong clock is seen.
    if not index and time_s is not None:
        where = f"the last is at {time_s:.3f} s" if time_s < begin else f"there is one at {time_s:.3f} s"
        raise VideoError("no_frames", f"{path}: no frame from {begin:g} s to {end:g} s; {where}")


def _mean_step_s(stream: av.VideoStream) -> float:
    """Return the mean time between two frames by the header; 0 where it has none."""
    return float(1 / stream.average_rate) if stream.average_rate else 0.0


def _iterate_timed(container: InputContainer, stream: av.VideoStream, tally: Tally) -> Iterator[TimedFrame]:
    """Iterate over frames and their times; one without a time stamp follows at the stream's mean rate."""
    step_s = _mean_step_s(stream)
    time_s, numerator, denominator = -step_s, 0, 0
    stamp_of = _stamp_reader(container)
    for packet in _packets(container, stream, tally):
        try:
            decoded = packet.decode()
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            tally.add(error)
            continue
        for frame in decoded:
            stamp = stamp_of(frame)
            # Read once: it makes a fraction, and multiplying fractions is slow.
            if not denominator and (base := frame.time_base):
                numerator, denominator = base.numerator, base.denominator
            time_s = stamp * numerator / denominator if stamp is not None else time_s + step_s
            yield time_s, frame


def _stamp_reader(container: InputContainer) -> Callable[[av.VideoFrame], int | None]:
    """Return a function that reads when a frame is shown, in its time base.

    AVI stores no such times: those computed for its reordered frames are out of order, and the order of decoding
    gives the right ones, as in ffmpeg.
    """
    return attrgetter("dts" if container.format.name == "avi" else "pts")


def _seek(
    container: InputContainer, stream: av.VideoStream, walk: Iterator[TimedFrame], begin: float, target_s: float
) -> Iterator[TimedFrame] | None:
    """Return the walk from a key-frame at or before ``target_s`` on; None where seeking leads to none (no index, or it
    is wrong), or to none before the segment. What comes before that key-frame is dropped: it may refer to frames that
    were passed over."""
    try:
        container.seek(math.floor(target_s / stream.time_base), stream=stream)
    except (av.error.FFmpegError, OverflowError):
        return None
    for time_s, frame in walk:
        if frame.key_frame:
            following = next(walk, None)
            has_stamp = _stamp_reader(container)(frame) is not None
            # The frame after it too must be in time: then this one is before the segment, see mark_segment.
            in_time = following is not None and time_s < following[0] <= begin
            return chain([(time_s, frame), following], walk) if following and has_stamp and in_time else None
    return None


def _packets(container: InputContainer, stream: av.VideoStream, tally: Tally) -> Iterator[av.Packet]:
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError as error:
        tally.add(error)
