"""End a command without a traceback: where Ctrl-C is pressed while its modules are imported, before anything is begun,
where whoever runs it asks it to stop, and where nobody reads its output any more."""

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
TERMINATED = 128 + signal.SIGTERM
"""That of a command that SIGTERM has stopped: 143."""

_NOTICE = b"stopping (SIGTERM); what is finished is kept, the same command resumes\n"


class TerminatedError(KeyboardInterrupt):
    """SIGTERM came: the work ends as after Ctrl-C."""


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM: say so, then raise :class:`TerminatedError` in the main thread.

    Args:
        number: Of the signal.
        frame: Where it came.

    Raises:
        TerminatedError: Always.
    """
    # Ray and Kubernetes send it once and kill some seconds later, perhaps before the work has ended: said at once. To
    # the descriptor, as the stream may be in the middle of a write.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(2, _NOTICE)
    raise TerminatedError


@contextmanager
def raise_on_terminate() -> Iterator[None]:
    """Let SIGTERM inside the block end the work as Ctrl-C does, with a line of its own.

    Does nothing in a thread, or where the process that started this one has another handler.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def keep_terminate_handler() -> Iterator[None]:
    """Keep the handler of :func:`raise_on_terminate` where a library inside the block sets its own."""
    # Another handler is its owner's to keep.
    is_ours = signal.getsignal(signal.SIGTERM) is terminate
    try:
        yield
    finally:
        if is_ours and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)


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
