"""Name why a video gave no key-frames, as a slug to count by and a sentence to read."""

import os
from typing import Final

from wm.files.uris import is_remote, is_text, local_path

REASONS: Final = {
    "missing_file": "nothing is there, or the link leads nowhere",
    "not_a_file": "a folder or a device, not a file",
    "bad_name": "a file name that is no UTF-8 text, which no table can hold",
    "unreadable": "the operating system refuses to read it",
    "empty_file": "zero bytes",
    "not_a_video": "no container format that is known",
    "no_video_stream": "only sound, or nothing at all",
    "no_frames": "a video stream without a frame",
    "one_frame": "a single frame: no pair can be made of it",
    "odd_orientation": "its display matrix turns it by no multiple of 90 degrees",
    "decode_error": "a video stream of which no frame could be decoded",
    "frame_mismatch": "a chosen frame could not be read again as it was first seen",
    "time_out": "took longer than its time limit",
    "crashed": "ended the process that read it",
    "out_of_memory": "needed more memory than its process may have",
    "unexpected_error": "an error that no reader announces",
}
"""Every ``reason`` of a failed video."""


class VideoError(Exception):
    """A video could not be used.

    Attributes:
        reason: A key of :data:`REASONS`.
        detail: The file and the cause in words.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}; expected one of {', '.join(REASONS)}")
        super().__init__(reason, detail)  # both arguments, so that it travels between processes complete
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class MachineError(RuntimeError):
    """This machine is at fault, not the video: a bucket's store does not let it in."""


def check_name(uri: str) -> None:
    """Refuse a local file whose name is no UTF-8: it would have another name in every table.

    Args:
        uri: As a listing names it: a path, a remote URI, or the ``file://`` URI of such a name.

    Raises:
        VideoError: ``bad_name``, with the bytes of the name.
    """
    if "://" not in uri or is_remote(uri):
        return
    path = local_path(uri)
    if not is_text(path):
        raise VideoError("bad_name", f"{uri}: the file name {os.fsencode(path)!r} is not UTF-8; rename the file")
