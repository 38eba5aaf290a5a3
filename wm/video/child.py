"""The inside of :class:`wm.video.isolation.IsolatedProcess`: receive a call, answer it, until the pipe
closes."""

import errno
import os
import resource
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from wm.video.errors import VideoError

_WATCH_S = 1.0
_DAMAGES = ("no_frames", "one_frame", "decode_error", "frame_mismatch")
_NEAR = 0.9
"""A call that fails on bad data, and raised the most memory ever taken to this share of the limit, ran out of it."""


def main(fd: int, memory_limit_mb: int, parent: int) -> None:
    """Serve calls over the socket ``fd``. ``parent``: process id of the owner; this process ends when it
    does."""
    if memory_limit_mb:
        limit = memory_limit_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    pipe = Connection(fd)
    pipe.send("ready")
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        peak_mb = peak_memory_mb() if memory_limit_mb else 0.0
        kind, value = answer(function, args, kwargs)
        if memory_limit_mb and isinstance(value, VideoError) and value.reason in _DAMAGES:
            # Decoders call a refused allocation bad data.
            peaked_mb = peak_memory_mb()
            if peak_mb < peaked_mb and peaked_mb > _NEAR * memory_limit_mb:
                value = VideoError("out_of_memory", f"{peaked_mb:.0f} of {memory_limit_mb} MiB taken; {value.detail}")
        pipe.send((kind, value))


def peak_memory_mb() -> float:
    """The most address space that this process has had, in MiB; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmPeak:")), 0.0)


def answer(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
    """("result", value) or ("error", VideoError), or an OSError where this machine's disk is full: that is not the
    file's fault. Every exception becomes an answer: one file must not stop the rest."""
    try:
        return "result", function(*args, **kwargs)
    except VideoError as error:
        return "error", error
    except MemoryError as error:
        return "error", VideoError("out_of_memory", f"{error or 'memory limit reached'}")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "error", error
        return "error", VideoError("unexpected_error", f"{type(error).__name__}: {error}"[:500])


def _end_with(parent: int) -> None:
    """A decoder that spins hears no signal and reads no pipe; a thread still sees that the owner is gone."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)
