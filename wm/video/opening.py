"""Open a video file with PyAV: what it is refused for, and its video stream. Decodes nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
from av.container import InputContainer

from wm.video.errors import VideoError


@contextmanager
def open_video(path: str | Path) -> Iterator[InputContainer]:
    """Open a file for as long as the context lasts.

    Raises:
        VideoError: ``missing_file``, ``not_a_file``, ``unreadable``, ``empty_file``, ``not_a_video``.
    """
    name = str(path)
    # FFmpeg opens folders and devices too, and its messages name no file.
    check_file(name)
    try:
        container = av.open(name)
    except av.error.FFmpegError as error:
        raise VideoError("not_a_video", f"{name}: {error.strerror}") from error
    except (ValueError, UnicodeError) as error:
        raise VideoError("not_a_video", f"{name}: {error}") from error
    try:
        yield container
    finally:
        container.close()  # an open container keeps its file descriptor for ever


def check_file(name: str) -> None:
    """Raise :class:`VideoError` unless ``name`` is a readable file with something in it."""
    try:
        exists = Path(name).exists()
    except OSError as error:  # a name that no file can have
        raise VideoError("missing_file", f"{name:.300}: {error.strerror}") from error
    if not exists:
        raise VideoError("missing_file", f"{name}: no such file")
    if not Path(name).is_file():
        raise VideoError("not_a_file", f"{name}: expected a file")
    if not os.access(name, os.R_OK):
        raise VideoError("unreadable", f"{name}: permission denied")
    if Path(name).stat().st_size == 0:
        raise VideoError("empty_file", f"{name}: 0 bytes")


def video_stream(container: InputContainer, path: str | Path) -> av.VideoStream:
    """Return the first video stream.

    Args:
        container: The open file.
        path: Its name for messages.

    Raises:
        VideoError: ``no_video_stream``, or ``decode_error`` where its codec is unknown.
    """
    cover = av.stream.Disposition.attached_pic  # a sound file's cover is a video stream of one image
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        raise VideoError("no_video_stream", f"{path}: no video stream ({len(container.streams)} others)")
    if streams[0].codec_context is None:
        raise VideoError("decode_error", f"{path}: its codec is not known")
    return streams[0]


def stream_start_s(path: str | Path) -> float:
    """Return when the first video stream begins, in the file's own clock."""
    with open_video(path) as container:
        stream = video_stream(container, path)
        return float(stream.start_time * stream.time_base) if stream.start_time is not None else 0.0
