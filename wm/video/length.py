"""Read how long a video is without decoding it: from its headers, or the time stamps of its packets."""

from pathlib import Path

import av

from wm.video.errors import VideoError
from wm.video.opening import open_video, video_stream


def read_length_s(path: str | Path) -> float:
    """Read a video's length in seconds.

    The stream's own duration comes first, then the file's; some containers (WebM of a browser, raw streams) know
    neither, and their packets are walked over without being decoded.

    Args:
        path: A local file.

    Raises:
        VideoError: The file cannot be opened, has no video, or no packet of it has a time.
    """
    with open_video(path) as container:
        stream = video_stream(container, path)
        # 1. What a header says costs nothing.
        if stream.duration and stream.time_base:
            return float(stream.duration * stream.time_base)
        if container.duration:
            return float(container.duration / av.time_base)
        # 2. Time stamps, without a frame: some hundred times faster than decoding.
        try:
            times_s = [
                float((packet.pts + (packet.duration or 0)) * stream.time_base)
                for packet in container.demux(stream)
                if packet.pts is not None and stream.time_base
            ]
        except av.error.FFmpegError as error:
            raise VideoError("decode_error", f"{path}: {error.strerror}") from error
        if not times_s:
            raise VideoError("no_frames", f"{path}: no packet has a time")
        # A stream that begins late lasts from its own first packet.
        start_s = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
        return max(times_s) - start_s
