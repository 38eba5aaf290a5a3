"""Read the first and the last frame of a segment: what happens between them is what its annotator put into words."""

from dataclasses import dataclass
from pathlib import Path

from wm.images import encode_png
from wm.video.decode import RawFrame, Tally, frames
from wm.video.errors import VideoError
from wm.video.fetch import limit_short_side


@dataclass(frozen=True)
class Ends:
    """Two images as PNG bytes, their times in the file's own clock, and how many frames the segment has."""

    source_png: bytes
    target_png: bytes
    source_time_s: float
    target_time_s: float
    num_frames: int
    errors: int
    """Packets that could not be decoded."""


def segment_ends(path: str | Path, start_s: float | None, end_s: float | None, image_side_px: int) -> Ends:
    """Read the first and the last frame of a segment.

    May hang or crash in native code: call it through :class:`wm.video.isolation.IsolatedProcess`.

    Args:
        path: A local file.
        start_s: Begin of the half-open segment in the file's own clock, within half a frame step; None: of the file.
        end_s: Its end.
        image_side_px: Max short side of the images, 0 = full size.

    Raises:
        VideoError: As :func:`wm.video.decode.frames` does, and ``one_frame``, ``decode_error``.
    """
    tally = Tally()
    first: RawFrame | None = None
    last: RawFrame | None = None
    # Only two decoded frames are in memory, and only they are converted to colour.
    for last in frames(path, tally, start_s=start_s, end_s=end_s):
        first = first or last
    if first is None or last is None:
        raise VideoError("decode_error", f"{path}: no frame could be decoded; the last error: {tally.last_error}")
    if first is last:
        raise VideoError("one_frame", f"{path}: one frame, at {first.time_s:.3f} s; a pair needs two")
    # In the child: pixels of a full-size frame would be megabytes in the pipe.
    source, target = (encode_png(limit_short_side(frame.rgb(), image_side_px)) for frame in (first, last))
    return Ends(source, target, first.time_s, last.time_s, last.index + 1, tally.errors)
