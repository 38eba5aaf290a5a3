"""Fetch the key-frames in full colour, each proven to be the frame that the motion pass saw.

decord seeks, so it is quick on long clips, but on some files it returns other frames without an error and
on others it never returns. PyAV walks from the start and is right; it serves where decord is not.
"""

import re
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from wm.images import Pixels, encode_png
from wm.video.decode import frames
from wm.video.errors import VideoError
from wm.video.facts import FrameFacts, frame_facts
from wm.video.geometry import Orientation, to_square_pixels
from wm.video.luma import grey_luma
from wm.video.motion import Luma
from wm.video.opening import check_file, stream_start_s
from wm.video.scan import Scan
from wm.video.walk import motion_luma, thumbnail

_CLOCK_AND_LINE = re.compile(r"^\[[\d:]+\] \S+: ")
"""Prefix of decord's messages: a clock time, and the line of its source."""

Reader: TypeAlias = Literal["auto", "decord", "pyav"]
READERS: tuple[Reader, ...] = get_args(Reader)
EncodedFrame: TypeAlias = tuple[bytes, FrameFacts]
"""A key-frame as PNG bytes, and its measurements."""

MAX_DIFFERENCE = 3.0
"""Max mean absolute difference of two thumbnails of one frame, in grey levels of 255."""
MAX_OFFSET = 2.0
SAME_IMAGE = 0.1


def fetch_decord(path: str | Path, scan: Scan) -> list[Pixels]:
    """Read the scan's key-frames by decord's random access.

    Of a complete video decord must count as many frames as the motion pass did; in a segment a frame is identified by
    its time. decord knows of a display matrix no more than its angle, and that of some containers only, so its frames
    are laid anew. May hang or crash in native code: call it in a process that can be killed.

    Args:
        path: The local file that was scanned.
        scan: Its key-frames.

    Returns:
        Upright RGB at full size in square pixels, in time order.

    Raises:
        VideoError: ``decode_error``, ``frame_mismatch``.
    """
    import decord

    # A missing or unreadable file has a reason of its own; decord reports one error for all.
    check_file(str(path))
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        images = list(reader.get_batch(_decord_indices(path, reader, scan)).asnumpy())
    except (decord.DECORDError, RuntimeError, AssertionError, IndexError) as error:
        message = _CLOCK_AND_LINE.sub("", str(error).strip().splitlines()[0])
        raise VideoError("decode_error", f"{path}: decord: {message}") from error
    return [
        _lay_and_prove(path, scan, frame, image, orientation)
        for frame, image, orientation in zip(scan.keyframes, images, scan.orientations, strict=True)
    ]


def _lay_and_prove(path: str | Path, scan: Scan, frame: int, image: Pixels, orientation: Orientation) -> Pixels:
    """Lay decord's image upright and return it in square pixels, once it equals what the motion pass saw."""
    # decord turns the frames of some containers by the matrix's angle, and those of others not.
    for turns in dict.fromkeys((orientation.clockwise_turns, 0)):
        upright = np.ascontiguousarray(orientation.apply(np.rot90(image, turns)))
        if same_frame(thumbnail(grey_luma(upright, scan.motion_side_px)), scan.checks[frame]):
            return to_square_pixels(upright, scan.sample_aspect.upright(orientation))
    raise VideoError("frame_mismatch", f"{path}: decord's frame {frame} is another frame, or is laid in another way")


def _decord_indices(path: str | Path, reader: Any, scan: Scan) -> list[int]:
    if scan.start_s is None and scan.end_s is None:
        if len(reader) != scan.num_frames:
            raise VideoError("frame_mismatch", f"{path}: decord counts {len(reader)} frames, {scan.num_frames} decode")
        return scan.keyframes
    # decord numbers the frames of the complete file; only times are common to both.
    begins_s = np.asarray(reader.get_frame_timestamp(np.arange(len(reader))))[:, 0]
    keyframe_times_s = scan.times_s[scan.keyframes] - stream_start_s(path)  # decord's clock starts with the stream
    return [int(index) for index in np.abs(begins_s[None, :] - keyframe_times_s[:, None]).argmin(axis=1)]


def fetch_pyav(path: str | Path, scan: Scan) -> list[Pixels]:
    """Read the same by walking from the start; a frame must equal what the motion pass saw to the last bit.

    Args:
        path: The local file that was scanned.
        scan: Its key-frames.

    Returns:
        Upright RGB at full size in square pixels, in time order.

    Raises:
        VideoError: ``frame_mismatch`` (the file changed meanwhile), and what opening it raises.
    """
    images: dict[int, Pixels] = {}
    remaining = set(scan.keyframes)
    with closing(frames(path, start_s=scan.start_s, end_s=scan.end_s)) as decoded:
        for raw in decoded:
            if raw.index not in remaining:
                continue
            # One decoder twice: any difference means another frame.
            thumb = thumbnail(motion_luma(raw, scan.motion_side_px, scan.small_px))
            if not np.array_equal(thumb, scan.checks[raw.index][0]):
                break
            images[raw.index] = raw.rgb()
            remaining.remove(raw.index)
            if not remaining:
                break
    if remaining:
        raise VideoError("frame_mismatch", f"{path}: frame {min(remaining)} differs on second reading")
    return [images[frame] for frame in scan.keyframes]


def same_frame(thumb_HW: Luma, check_XHW: Luma) -> bool:
    """Return whether a thumbnail shows the expected frame.

    It must be close to the expected thumbnail, and closer neither to any neighbour in time nor to the expected one
    mirrored or turned.

    Two readers' colour conversions differ by a constant of about one grey level, which is taken off first;
    frames within ``SAME_IMAGE`` of one another are one image shown twice and need not be distinguished.

    Args:
        thumb_HW: uint8 thumbnail of the frame that was read.
        check_XHW: uint8 thumbnails of the expected frame (row 0) and of its neighbours in time.
    """
    if thumb_HW.shape != check_XHW.shape[1:]:
        return False
    rivals_XHW = np.concatenate([check_XHW, _lay_otherwise(check_XHW[0])])
    difference_XHW = rivals_XHW.astype(np.float32) - thumb_HW.astype(np.float32)
    # One offset for all rivals, or each would be made as like as it can be.
    offset = np.clip(difference_XHW[0].mean(), -MAX_OFFSET, MAX_OFFSET)
    distance_X = np.abs(difference_XHW - offset).mean(axis=(1, 2))
    return bool(distance_X[0] <= MAX_DIFFERENCE and distance_X[0] <= distance_X.min() + SAME_IMAGE)


def _lay_otherwise(thumb_HW: Luma) -> Luma:
    """Return the other ways to lay a thumbnail that have its shape: three, or seven of a square one."""
    thumbs = [thumb_HW, thumb_HW.T] if thumb_HW.shape[0] == thumb_HW.shape[1] else [thumb_HW]
    return np.stack([thumb[::rows, ::columns] for thumb in thumbs for rows in (1, -1) for columns in (1, -1)][1:])


def fetch_encoded(reader: Literal["decord", "pyav"], path: str, scan: Scan, image_side_px: int) -> list[EncodedFrame]:
    """Fetch PNG bytes and facts of the scan's key-frames, in time order; runs in the child.

    Args:
        reader: Who reads them.
        path: A local file.
        scan: Its key-frames.
        image_side_px: As for :func:`limit_short_side`.
    """
    images = fetch_decord(path, scan) if reader == "decord" else fetch_pyav(path, scan)
    # Encoded here: PNG bytes are smaller than pixels on the way through the pipe.
    limited = [limit_short_side(image, image_side_px) for image in images]
    return [(encode_png(image), frame_facts(image)) for image in limited]


def limit_short_side(pixels_HWC: Pixels, side_px: int) -> Pixels:
    """Shrink an image so that its short side is at most ``side_px``.

    Same filter and rounding as :func:`wm.images.fit_square`, so a codec of this side finds nothing left to scale.

    Args:
        pixels_HWC: uint8 RGB.
        side_px: Max short side; 0 leaves every image as it is.

    Returns:
        The smaller image, or the image itself.
    """
    height, width = pixels_HWC.shape[:2]
    if side_px == 0 or min(height, width) <= side_px:
        return pixels_HWC
    # Rounding must not push the short side below the limit.
    scale = side_px / min(height, width)
    size = (max(side_px, round(width * scale)), max(side_px, round(height * scale)))
    return np.asarray(Image.fromarray(pixels_HWC).resize(size, Image.Resampling.LANCZOS))
