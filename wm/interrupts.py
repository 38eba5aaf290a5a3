"""End a command without a traceback: where Ctrl-C is pressed while its modules are imported, before anything is begun,
and where nobody reads its output any more."""

import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT
"""Exit status of an interrupted command, as shells have it: 130."""


@contextmanager
def exit_on_interrupt() -> Iterator[None]:
    """Let Ctrl-C inside the block end the process with one line and status 130, without a traceback.

    A ``KeyboardInterrupt`` is not enough for imports: raised within the start of a native module it comes out as an
    error of that module. Does nothing in a thread, or where interrupts are ignored (a command that a script runs in
    the background).
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is signal.SIG_IGN:
        yield
        return
    signal.signal(signal.SIGINT, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def quiet_when_unread() -> Iterator[None]:
    """Exit with status 1 and without a traceback where the reader of standard output has left, as ``head`` does.

    As Python's documentation advises (library, signal, "Note on SIGPIPE"). What is written meanwhile is flushed here,
    so that the interpreter has nothing left to fail on at its end.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # A broken connection of the job's own raises the same: then standard output can still be written.
        if not _is_unread():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _is_unread() -> bool:
    # Not by another flush: an unbuffered stream keeps nothing that could fail again.
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError):  # a notebook's or a test's, which is no file
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _exit(number: int, frame: FrameType | None) -> None:
    # Not by an exception, nor by Python's own end: modules may be half imported.
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
