"""The few chosen frames in full colour, each proven to be the frame that the motion pass saw.

decord seeks, so it is quick on long clips, but on some files it returns other frames without an error and
on others it never returns. PyAV walks from the start and is right; it serves where decord is not.
"""

import re
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from wm.images import Pixels
from wm.video.decode import check_file, frames, grey_luma, small_size, stream_start_s
from wm.video.errors import VideoError
from wm.video.motion import Luma
from wm.video.scan import Scan
from wm.video.walk import motion_luma, thumbnail

_CLOCK_AND_PLACE = re.compile(r"^\[[\d:]+\] \S+: ")
"""What decord's messages begin with: when, and where its source lay when it was built."""

Reader: TypeAlias = Literal["auto", "decord", "pyav"]
READERS: tuple[Reader, ...] = get_args(Reader)

MAX_DIFFERENCE = 3.0
"""Mean absolute difference of two thumbnails, in grey levels of 255, up to which they may show one frame."""
MAX_OFFSET = 2.0
SAME_PICTURE = 0.1


def fetch_decord(path: str | Path, scan: Scan) -> list[Pixels]:
    """The scan's key-frames, in time order, by decord's random access; upright RGB at full size.

    Of a whole video decord must count as many frames as the motion pass did; in a segment a frame is found by its
    time. May hang or crash in native code: call it in a process that can be killed. Raises :class:`VideoError`:
    ``decode_error``, ``frame_mismatch``.
    """
    import decord

    check_file(str(path))
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        images = list(reader.get_batch(_decord_indices(path, reader, scan)).asnumpy())
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        told = _CLOCK_AND_PLACE.sub("", str(error).strip().splitlines()[0])
        raise VideoError("decode_error", f"{path}: decord: {told}") from error
    for frame, image in zip(scan.keyframes, images, strict=True):
        if not same_frame(thumbnail(grey_luma(image, scan.motion_side_px)), scan.checks[frame]):
            raise VideoError("frame_mismatch", f"{path}: decord's frame {frame} is another frame")
    return images


def _decord_indices(path: str | Path, reader: Any, scan: Scan) -> list[int]:
    if scan.start_s is None and scan.end_s is None:
        if len(reader) != scan.num_frames:
            raise VideoError("frame_mismatch", f"{path}: decord counts {len(reader)} frames, {scan.num_frames} decode")
        return scan.keyframes
    begins_s = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))))[:, 0]
    wanted_s = scan.times_s[scan.keyframes] - stream_start_s(path)  # decord's clock starts with the stream
    return [int(index) for index in np.abs(begins_s[None, :] - wanted_s[:, None]).argmin(axis=1)]


def fetch_pyav(path: str | Path, scan: Scan) -> list[Pixels]:
    """The same by walking from the start; a frame must equal what the motion pass saw to the last bit.

    Raises :class:`VideoError`: ``frame_mismatch`` (the file changed meanwhile), and what opening it raises.
    """
    found: dict[int, Pixels] = {}
    left = set(scan.keyframes)
    small_px = small_size(*scan.size_px, scan.motion_side_px)
    with closing(frames(path, start_s=scan.start_s, end_s=scan.end_s)) as decoded:
        for raw in decoded:
            if raw.index not in left:
                continue
            seen = thumbnail(motion_luma(raw, scan.motion_side_px, small_px))
            if not np.array_equal(seen, scan.checks[raw.index][0]):
                break
            found[raw.index] = raw.rgb()
            left.remove(raw.index)
            if not left:
                break
    if left:
        raise VideoError("frame_mismatch", f"{path}: frame {min(left)} differs on second reading")
    return [found[frame] for frame in scan.keyframes]


def same_frame(thumb_HW: Luma, check_XHW: Luma) -> bool:
    """Close to the expected thumbnail (row 0 of ``check_XHW``), and to none of its neighbours in time
    closer.

    Two readers' colour conversions differ by a constant of about one grey level, which is taken off first;
    frames within ``SAME_PICTURE`` of one another are one picture shown twice and cannot be told apart, nor
    need they be.
    """
    if thumb_HW.shape != check_XHW.shape[1:]:
        return False
    difference_XHW = check_XHW.astype(np.float32) - thumb_HW.astype(np.float32)
    offset = np.clip(difference_XHW[0].mean(), -MAX_OFFSET, MAX_OFFSET)
    distance_X = np.abs(difference_XHW - offset).mean(axis=(1, 2))
    return bool(distance_X[0] <= MAX_DIFFERENCE and distance_X[0] <= distance_X.min() + SAME_PICTURE)
