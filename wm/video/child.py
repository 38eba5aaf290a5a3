"""Serve the calls of :class:`wm.video.isolation.IsolatedProcess` in its child, until the pipe closes.

Knows neither time limits nor restarts: those are the parent's.
"""

import errno
import os
import resource
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from wm.video.errors import MachineError, VideoError

_WATCH_S = 1.0
_DAMAGES = ("no_frames", "one_frame", "decode_error", "frame_mismatch")
_PEAK_SHARE = 0.9
"""Share of the memory limit: a call that fails on bad data, and raised the peak beyond it, ran out of memory."""


def main(fd: int, memory_limit_mib: int, parent: int) -> None:
    """Serve calls over a socket.

    Args:
        fd: File descriptor of the socket.
        memory_limit_mib: Max address space in MiB, 0 = none.
        parent: Process id of the owner; this process ends with it.
    """
    if memory_limit_mib:
        limit = memory_limit_mib * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()
    pipe = Connection(fd)
    pipe.send("ready")
    # The pipe's end is the only way to stop.
    while True:
        try:
            function, args, kwargs = pipe.recv()
        except (EOFError, OSError):
            return
        # The peak never falls: only its growth can be this call's.
        peak_mb = peak_memory_mib() if memory_limit_mib else 0.0
        kind, value = answer(function, args, kwargs)
        if memory_limit_mib and isinstance(value, VideoError) and value.reason in _DAMAGES:
            # Decoders report a refused allocation as bad data.
            peaked_mb = peak_memory_mib()
            if peak_mb < peaked_mb and peaked_mb > _PEAK_SHARE * memory_limit_mib:
                value = VideoError("out_of_memory", f"{peaked_mb:.0f} of {memory_limit_mib} MiB taken; {value.detail}")
        pipe.send((kind, value))


def peak_memory_mib() -> float:
    """Return the peak address space of this process in MiB; 0 where the system does not report it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmPeak:")), 0.0)


def answer(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
    """Call a function and turn every exception into an answer: one file must not stop the rest.

    Args:
        function: What to call.
        args: Its arguments.
        kwargs: Its keyword arguments.

    Returns:
        ("result", value) or ("error", VideoError); ("error", OSError) where this machine's disk is full and ("error",
        MachineError), which are not the file's fault.
    """
    try:
        return "result", function(*args, **kwargs)
    except (VideoError, MachineError) as error:
        return "error", error
    except MemoryError as error:
        # The limit of address space, in Python's own code.
        return "error", VideoError("out_of_memory", f"{error or 'memory limit reached'}")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "error", error
        return "error", VideoError("unexpected_error", f"{type(error).__name__}: {error}"[:500])


def _exit_with(parent: int) -> None:
    """Exit once the owner has ended: a decoder that spins handles no signal and reads no pipe, but a thread runs."""
    while os.getppid() == parent:
        time.sleep(_WATCH_S)
    os._exit(1)
