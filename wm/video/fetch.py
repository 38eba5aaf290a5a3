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
from wm.video.decode import check_file, frames, grey_luma, stream_start_s
from wm.video.errors import VideoError
from wm.video.geometry import Orientation, to_square_pixels
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
    """The scan's key-frames, in time order, by decord's random access; upright RGB at full size in square pixels.

    Of a whole video decord must count as many frames as the motion pass did; in a segment a frame is found by its
    time. decord knows of a display matrix no more than its angle, and that of some containers only, so its frames are
    laid anew. May hang or crash in native code: call it in a process that can be killed. Raises :class:`VideoError`:
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
    return [
        _prove(path, scan, frame, image, orientation)
        for frame, image, orientation in zip(scan.keyframes, images, scan.orientations, strict=True)
    ]


def _prove(path: str | Path, scan: Scan, frame: int, image: Pixels, orientation: Orientation) -> Pixels:
    """Lay decord's image upright and return it in square pixels, once it equals what the motion pass saw."""
    for turns in dict.fromkeys((orientation.clockwise_turns, 0)):  # that decord made
        upright = np.ascontiguousarray(orientation.apply(np.rot90(image, turns)))
        if same_frame(thumbnail(grey_luma(upright, scan.motion_side_px)), scan.checks[frame]):
            return to_square_pixels(upright, scan.sample_aspect.upright(orientation))
    raise VideoError("frame_mismatch", f"{path}: decord's frame {frame} is another frame, or lies in another way")


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
    with closing(frames(path, start_s=scan.start_s, end_s=scan.end_s)) as decoded:
        for raw in decoded:
            if raw.index not in left:
                continue
            seen = thumbnail(motion_luma(raw, scan.motion_side_px, scan.small_px))
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
    """Close to the expected thumbnail (row 0 of ``check_XHW``), and closer neither to any of its neighbours in time nor
    to itself mirrored or turned.

    Two readers' colour conversions differ by a constant of about one grey level, which is taken off first;
    frames within ``SAME_PICTURE`` of one another are one picture shown twice and cannot be told apart, nor
    need they be.
    """
    if thumb_HW.shape != check_XHW.shape[1:]:
        return False
    rivals_XHW = np.concatenate([check_XHW, _laid_otherwise(check_XHW[0])])
    difference_XHW = rivals_XHW.astype(np.float32) - thumb_HW.astype(np.float32)
    offset = np.clip(difference_XHW[0].mean(), -MAX_OFFSET, MAX_OFFSET)
    distance_X = np.abs(difference_XHW - offset).mean(axis=(1, 2))
    return bool(distance_X[0] <= MAX_DIFFERENCE and distance_X[0] <= distance_X.min() + SAME_PICTURE)


def _laid_otherwise(thumb_HW: Luma) -> Luma:
    """Return the other ways to lay a thumbnail that have its shape: three, or seven of a square one."""
    laid = [thumb_HW, thumb_HW.T] if thumb_HW.shape[0] == thumb_HW.shape[1] else [thumb_HW]
    return np.stack([image[::rows, ::columns] for image in laid for rows in (1, -1) for columns in (1, -1)][1:])
