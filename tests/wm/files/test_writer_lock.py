"""One writer a folder: the second is told who has it, a killed one keeps nobody out."""

import errno
import fcntl
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest

from wm.errors import InputError
from wm.files.writer_lock import LOCK, WriterLock

_WRITER = """
import sys
from wm.files.writer_lock import WriterLock
lock = WriterLock(sys.argv[1], "train")
lock.acquire()
print("ready", flush=True)
sys.stdin.readline()
lock.release()
print("released", flush=True)
sys.stdin.read()
"""


@contextmanager
def writer(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Hold the lock in another process, which releases it after a line of input."""
    command = [sys.executable, "-c", _WRITER, str(folder)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_until_the_first_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = WriterLock(tmp_path, "annotate")
    with writer(tmp_path) as process:
        words = rf"{tmp_path} is being written by train on host \S+, process {process.pid}, since \S+Z; wait for it"
        with pytest.raises(InputError, match=words):
            lock.acquire()
        # Damaged talk is no reason to write.
        content = (tmp_path / LOCK).read_text()
        for text in ("", "{", '{"stage": 1}'):
            (tmp_path / LOCK).write_text(text)
            with pytest.raises(InputError, match="is being written by another process; wait"):
                lock.acquire()
        (tmp_path / LOCK).write_text(content)
        assert capsys.readouterr().err == ""
    lock.acquire(patience_s=60)
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_lock_of_a_file_that_was_removed_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with writer(tmp_path) as process:
        # Opened before the writer removes it, and locked afterwards: a lock of no name.
        real = fcntl.flock
        calls = []

        def flock(descriptor: int, operation: int) -> None:
            if not calls:
                assert process.stdin is not None and process.stdout is not None
                process.stdin.write("\n")
                process.stdin.flush()
                assert process.stdout.readline() == "released\n"
            calls.append(descriptor)
            real(descriptor, operation)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("wm.files.writer_lock.fcntl.flock", flock)
            lock = WriterLock(tmp_path, "annotate")
            lock.acquire()
        assert len(calls) == 2 and '"annotate"' in (tmp_path / LOCK).read_text()
        assert capsys.readouterr().err == ""
        lock.release()


def test_the_lock_moves_within_a_process_and_ends_with_it(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path, "one"), WriterLock(tmp_path / "." / "", "two")
    first.acquire()
    second.acquire()
    assert first.descriptor == -1 and '"two"' in (tmp_path / LOCK).read_text()
    first.release()  # which has nothing to give back
    assert is_locked(tmp_path)
    del second
    assert not is_locked(tmp_path)


def test_another_thread_is_a_writer_like_any_other(tmp_path: Path) -> None:
    first, second = WriterLock(tmp_path, "one"), WriterLock(tmp_path, "two")
    is_taken, may_end = Event(), Event()

    def write() -> None:
        first.acquire()
        is_taken.set()
        may_end.wait()

    thread = Thread(target=write)
    thread.start()
    try:
        is_taken.wait()
        with pytest.raises(InputError, match=rf"is being written by one on host .*, process {os.getpid()}, since"):
            second.acquire()
        assert first.descriptor >= 0 and '"one"' in (tmp_path / LOCK).read_text()
    finally:
        may_end.set()
        thread.join()
    # What a thread that has ended left behind changes hands.
    second.acquire()
    assert first.descriptor == -1 and is_locked(tmp_path)


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    (tmp_path / LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(InputError, match="cannot be written to: Too many levels of symbolic links"):
        WriterLock(tmp_path, "train").acquire()
    assert (tmp_path / "precious").read_text() == "x"


def is_locked(folder: Path) -> bool:
    with (folder / LOCK).open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = WriterLock(tmp_path, "train")
    lock.acquire()
    theirs, ours = socket.socketpair()
    child = os.fork()
    if child == 0:
        # Lives on while the parent lets go.
        ours.close()
        theirs.sendall(b"closed" if lock.descriptor == -1 else b"open")
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    assert ours.recv(16) == b"closed"
    assert is_locked(tmp_path)
    lock.close()
    assert not is_locked(tmp_path)
    ours.close()
    assert os.waitpid(child, 0)[1] == 0


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def test_a_file_system_without_locks_is_written_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("wm.files.writer_lock.fcntl.flock", failing(errno.ENOLCK))
    lock = WriterLock(tmp_path, "train")
    lock.acquire()
    error = capsys.readouterr().err
    assert error == (
        f"note: the file system of {tmp_path} has no locks (No locks available): make sure that no second run writes "
        "there\n"
    )
    lock.release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["open", "ftruncate"])
def test_a_read_only_file_system_is_named_a_full_one_raises(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"wm.files.writer_lock.os.{call}", failing(errno.EROFS))
    with pytest.raises(InputError, match=rf"^out = '{tmp_path}': cannot be written to: Read-only file system$"):
        WriterLock(tmp_path, "train").acquire()
    monkeypatch.setattr(f"wm.files.writer_lock.os.{call}", failing(errno.ENOSPC))
    with pytest.raises(OSError, match="No space left"):
        WriterLock(tmp_path, "train").acquire()
