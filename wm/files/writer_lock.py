"""Let one process at a time write into a folder of a disk, or of a file system that several machines share.

The kernel's ``flock`` ends with the process, however that ends, so that a killed writer keeps nobody out. Linux passes
it on to NFS servers (nfs(5), ``local_lock``). The locked file says who has it. Outputs in buckets have
:mod:`wm.files.lease` instead. Not known here: what is written.
"""

import errno
import fcntl
import json
import os
import socket
import sys
import time
import weakref
from pathlib import Path
from threading import current_thread
from typing import Final, TypedDict

from wm.errors import InputError

LOCK: Final = ".lock"
"""Name of the file in the folder; gone when its writer has let go, empty talk after a killed one."""

_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""Of a file system without locks, or whose lock server does not run (flock(2), nfs(5))."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
_POLL_S: Final = 0.2
_MAX_TRIES: Final = 20


class Writer(TypedDict):
    """Who writes into an output."""

    stage: str
    host: str
    pid: int
    since: str


def this_writer(stage: str) -> Writer:
    """Describe this process as a writer that begins now.

    Args:
        stage: Name of the command.
    """
    since = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"stage": stage, "host": socket.gethostname(), "pid": os.getpid(), "since": since}


def describe_writer(writer: Writer) -> str:
    """Return a writer in words, for messages."""
    return f"{writer['stage']} on host {writer['host']}, process {writer['pid']}, since {writer['since']}"


class WriterLock:
    """The right of a thread to write into one folder, until it is released, collected, or the process ends."""

    def __init__(self, folder: str | Path, stage: str) -> None:
        """Prepare it; nothing is written yet.

        Args:
            folder: Must exist when the lock is acquired.
            stage: Name of the command, for messages.
        """
        self._folder = Path(folder)
        self._path = self._folder / LOCK
        self._stage = stage
        self._finalizer: weakref.finalize[[int], WriterLock] | None = None
        self._thread = current_thread()
        self.descriptor = -1
        """Of the locked file while it is locked: a process that inherits it keeps the lock until both have ended."""

    def acquire(self, patience_s: float = 0.0) -> None:
        """Take the right to write.

        A run that raised in this very thread, or in one that has ended, may have left its own: that changes hands.

        Args:
            patience_s: How long another writer is waited for, with a notice.

        Raises:
            InputError: Another process or thread has it, which the message names, or the folder cannot be written.
            OSError: The disk is full.
        """
        key = os.path.realpath(self._folder)
        # Of another thread that lives it is a writer's like any other: flock keeps open files apart, not processes.
        if (earlier := _held.get(key)) is not None and not earlier._is_of_another_thread():
            earlier.close()
        # Asked in turns: a wait within flock could not be bounded, nor say for whom it waits.
        end_s = time.monotonic() + patience_s
        is_announced = False
        while (writer := self._try()) is not None:
            if time.monotonic() >= end_s:
                raise InputError(f"{self._folder} is being written by {writer}; wait for it, or end it first")
            if not is_announced:
                notice = f"{self._folder} is being written by {writer}; waiting up to {patience_s:g} s for its end"
                print(f"{self._stage}: {notice}", file=sys.stderr, flush=True)
                is_announced = True
            time.sleep(_POLL_S)
        _held[key], self._thread = self, current_thread()

    def _is_of_another_thread(self) -> bool:
        return self._thread is not current_thread() and self._thread.is_alive()

    def release(self) -> None:
        """Give the right back, and remove the file; nothing if this process does not have it."""
        if self.descriptor < 0:
            return
        # While it is still locked: a process that opened it meanwhile sees that it is gone, and makes another.
        if _is_same_file(self.descriptor, self._path):
            self._path.unlink(missing_ok=True)
        self.close()

    def _try(self) -> str | None:
        """Lock the file; returns the writer that has it, in words, or None where this process has it now."""
        # The file may be removed by its writer between the two calls: then the lock is one of no name.
        for _ in range(_MAX_TRIES):
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                try:
                    return _read_writer(descriptor)
                finally:
                    os.close(descriptor)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    os.close(descriptor)
                    raise self._explain(error) from error
                print(
                    f"note: the file system of {self._folder} has no locks ({error.strerror}): make sure that no "
                    "second run writes there",
                    file=sys.stderr,
                )
            if _is_same_file(descriptor, self._path):
                break
            os.close(descriptor)
        else:
            return "another process"
        self._keep(descriptor)
        return None

    def _open(self) -> int:
        try:
            # For writing: NFS refuses an exclusive lock of what is open for reading alone.
            # A link is not followed: what it leads to would be emptied.
            return os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise self._explain(error) from error

    def _explain(self, error: OSError) -> OSError | InputError:
        # A full disk is no mistake of the recipe: it is reported as such.
        if error.errno in _FULL:
            return error
        return InputError(f"out = {str(self._folder)!r}: cannot be written to: {error.strerror}")

    def _keep(self, descriptor: int) -> None:
        """Note who writes, and let the lock end with this object."""
        content = json.dumps(this_writer(self._stage)).encode()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, content, 0)
            # Other machines of a shared file system see what was flushed.
            os.fsync(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise self._explain(error) from error
        # Bound to this object, so that the lock of a run that raised ends with it.
        self.descriptor = descriptor
        self._finalizer = weakref.finalize(self, os.close, descriptor)

    def close(self) -> None:
        """Give the right back and leave the file: processes that inherited the descriptor keep the lock."""
        if self._finalizer is not None:
            self._finalizer()
        self.descriptor = -1


_held: "weakref.WeakValueDictionary[str, WriterLock]" = weakref.WeakValueDictionary()
"""Of this process, by folder."""


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _read_writer(descriptor: int) -> str:
    try:
        return describe_writer(json.loads(os.pread(descriptor, 65_536, 0)))
    except (ValueError, KeyError, TypeError):
        return "another process"  # which has not said yet who it is


def _let_go_after_fork() -> None:
    """Close the locks in a forked process, which is not the writer; its parent keeps them."""
    # A copy: locks may be collected meanwhile.
    for lock in list(_held.values()):
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go_after_fork)
