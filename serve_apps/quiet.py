"""Keep what Ray says of itself off the terminal of a server, whose output is the server's own lines.

Ray prints in two ways that no setting turns off: threads of its own pass on messages of its node ("(raylet) Task …
failed. There are infinite retries remaining"), also where a replica was stopped on purpose; and its native code writes
lines of a form of its own to standard error while a session ends. The session's log files have both.
"""

import io
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

RAY_THREADS = ("ray_listen_error_messages", "ray_print_logs")
_NATIVE_LINE = re.compile(
    rb"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [DIWEFC] \d+ \d+\]|(\x1b\[[0-9;]*m)*\((raylet|gcs_server|autoscaler)\b"
)


class _WithoutRayThreads:
    """A text stream that passes on what any thread writes but those of :data:`RAY_THREADS`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        # As if it had been written: Ray's thread expects a length.
        if threading.current_thread().name in RAY_THREADS:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def without_ray_threads() -> Iterator[None]:
    """Drop what Ray's own threads print to standard output and error inside the block."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (_WithoutRayThreads(stream) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


@contextmanager
def quiet_end() -> Iterator[None]:
    """Hide what Ray prints while a session ends; errors of the server's own are printed after the block.

    Standard output is dropped: the server says nothing there meanwhile, while Ray's main thread prints what its other
    ones have gathered. Standard error is held back at the file descriptor, as native code knows nothing of
    ``sys.stderr``, and written in the end but for Ray's own lines.
    """
    sys.stderr.flush()
    # Ray's native code writes to the descriptor itself.
    terminal = os.dup(2)
    with tempfile.TemporaryFile() as buffer, redirect_stdout(io.StringIO()):
        os.dup2(buffer.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(terminal, 2)
            os.close(terminal)
            buffer.seek(0)
            # Errors of our own, such as a traceback, must not be lost.
            for line in buffer:
                if not is_rays(line):
                    os.write(2, line)


def is_rays(line: bytes) -> bool:
    """Return whether a line has the form of Ray's native log, or of a message of its node."""
    return _NATIVE_LINE.match(line) is not None
