"""Run calls in a child process that can be killed: native decoders crash, hang for ever and eat memory.

One child lives as long as its owner and takes one call at a time, so a call costs a pipe's round trip and
not a process. It is plain ``python`` on :mod:`wm.video.child` rather than ``multiprocessing``'s spawn,
which would import the owner's main module (in a Ray worker: all of Ray).
"""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ParamSpec, TypeVar

from wm.video.errors import VideoError

Args = ParamSpec("Args")
Result = TypeVar("Result")

RESIDENT_LIMIT_MIB = 1024
_START_LIMIT_S = 120.0
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""A pool of threads would take address space and gain nothing."""
_BOOT = "import sys; sys.path[:] = {path!r}; from wm.video.child import main; main({fd}, {mib}, {parent})"


class IsolatedProcess:
    """A child process that runs functions under a time limit; a hang, crash or memory overrun ends only the child."""

    def __init__(self, memory_limit_mib: int = 0, resident_limit_mib: int = RESIDENT_LIMIT_MIB) -> None:
        """Prepare the process; it starts with the first call.

        Args:
            memory_limit_mib: Address space of the child in MiB (RLIMIT_AS); 0 = no limit.
            resident_limit_mib: A child of more resident memory than this after a call is replaced before the next:
                readers and allocators leak.
        """
        self.memory_limit_mib = memory_limit_mib
        self.resident_limit_mib = resident_limit_mib
        self.starts = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        # A file, not a pipe: a child that prints much must not wait for a reader.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the object

    def call(self, limit_s: float, function: Callable[Args, Result], *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Call ``function(*args, **kwargs)`` in the child; function, arguments and result must pickle.

        After a time-out or crash the next call starts a fresh child.

        Args:
            limit_s: Time limit; the child is killed at its end.
            function: A function that the child can import.
            *args: Its arguments.
            **kwargs: Its keyword arguments.

        Raises:
            VideoError: As the function raised it, or with ``time_out``, ``crashed``, ``out_of_memory`` or
                ``unexpected_error`` (any other exception of the function).
            MachineError: As the function raised it.
            OSError: The disk is full.
        """
        pipe = self._start()
        try:
            pipe.send((function, args, kwargs))
            if not pipe.poll(limit_s):
                self.close()
                raise VideoError("time_out", f"no answer within {limit_s:g} s")
            kind, value = pipe.recv()
        except (EOFError, OSError) as error:
            raise VideoError("crashed", self._describe_end()) from error
        except BaseException:
            self.close()  # interrupted: an answer left in the pipe must not meet the next call
            raise
        if kind == "error":
            raise value
        result: Result = value
        return result

    def close(self) -> None:
        """Kill the child, if one runs."""
        # Killed, not asked to end: a decoder that hangs reads no pipe.
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        self._pipe = self._process = None

    def kill(self) -> None:
        """Kill the child from another thread: the call under way, if any, fails with ``crashed``."""
        # The pipe stays open: it belongs to the thread that waits for an answer.
        process = self._process
        if process is not None:
            process.kill()

    def __enter__(self) -> "IsolatedProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()
        self._stderr.close()

    def _start(self) -> Connection:
        """Return the pipe to a child that runs; start one where there is none."""
        process = self._process
        if self._pipe is not None and process is not None and process.poll() is None and self._is_small(process.pid):
            return self._pipe
        # One that ended, or leaks, is replaced.
        self.close()
        self._stderr.seek(0)
        self._stderr.truncate()
        # A socket pair, not stdin: what native code prints must not meet the answers.
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", self._boot_line(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=os.environ | _ONE_THREAD,
            )
        self._pipe = Connection(ours.detach())
        self.starts += 1
        try:
            if self._pipe.poll(_START_LIMIT_S):
                self._pipe.recv()
                return self._pipe
        except (EOFError, OSError):
            pass  # it ended while starting; reported just below with what it printed
        raise RuntimeError(f"the video process did not start: {self._describe_end()}")

    def _is_small(self, pid: int) -> bool:
        return resident_mib(pid) <= self.resident_limit_mib

    def _boot_line(self, fd: int) -> str:
        # The parent's import path: an empty entry means its working folder.
        path = [entry or str(Path.cwd()) for entry in sys.path]
        return _BOOT.format(path=path, fd=fd, mib=self.memory_limit_mib, parent=os.getpid())

    def _describe_end(self) -> str:
        """Describe how the child ended, with the last line it printed; clean up after it."""
        process = self._process
        status = None
        if process is not None:
            # Its pipe closes before its status can be read.
            deadline = time.monotonic() + 2
            while process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            status = process.poll()
        self._stderr.seek(0)
        printed = self._stderr.read()[-2000:].decode(errors="replace").strip().splitlines()
        self.close()
        ended = f"the process ended with status {status}" if status is not None else "the pipe broke"
        return f"{ended}; last words: {printed[-1][:200]}" if printed else ended


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB; 0 where the system does not report it."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
