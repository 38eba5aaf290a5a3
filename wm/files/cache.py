"""Keep local copies of buckets within a limit: those unused for longest go first, those in use stay.

A process that fetched something holds a shared lock on it until it ends; what is locked is not evicted. Files of an
output that is being written on this node, and files of the last minutes, stay too: they may not be published yet.
Not known here: what a copy is of.
"""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from wm.errors import InputError
from wm.files.mirror_paths import CACHE, UNFINISHED, mirror_root

LIMIT: Final = "WM_CACHE_GIB"
"""Variable with the size limit of all local copies on a node in GiB; without it the disk is the limit."""

RECENT_S = 600.0
"""A file that was written or used so shortly ago is not evicted."""
ABANDONED_S = 7 * 86400.0
"""An unfinished output whose mark is as old as this is left over."""

_SPARE_BYTES = 256 << 20
_LOCKS = ".locks"
_held: dict[Path, int] = {}


class _File(NamedTuple):
    used_s: float
    num_bytes: int
    path: Path


def hold(path: Path) -> None:
    """Keep a copy, or what will be one, from being evicted until this process ends.

    Args:
        path: Of the file or folder below the mirror root.
    """
    # One lock for all below: a process that fetches thousands of files must not keep as many files open.
    if path not in _held and not any(parent in _held for parent in path.parents):
        descriptor = _open_lock(path, "hold")
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        _held[path] = descriptor


@contextmanager
def node_lock(path: Path) -> Iterator[None]:
    """Let one process of this node at a time copy what is at a path; others wait for it.

    Args:
        path: Of the file or folder below the mirror root.
    """
    descriptor = _open_lock(path, "copy")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def mark_used(paths: Iterable[Path]) -> None:
    """Set the time of use of copies to now: file systems mounted with noatime do not.

    Args:
        paths: Of the copies; what is gone meanwhile is passed over.
    """
    now_ns = time.time_ns()
    for path in paths:
        with suppress(OSError):
            os.utime(path, ns=(now_ns, path.stat().st_mtime_ns))


def limit_bytes() -> int | None:
    """Return the limit that the environment sets, in bytes; None: there is none.

    Raises:
        InputError: The variable holds no positive number.
    """
    text = os.environ.get(LIMIT, "").strip()
    if not text:
        return None
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < float("inf"):
        raise InputError(f"{LIMIT} = {text!r:.40}; expected a number of GiB, such as 200")
    return int(limit * 2**30)


def make_room(num_bytes: int, name: str, path: Path) -> None:
    """Evict copies so that more fits into limit and disk.

    Args:
        num_bytes: What will be written.
        name: What it is, for messages.
        path: Where it goes; nothing at or below it is evicted.

    Raises:
        InputError: It does not fit.
    """
    root = mirror_root()
    root.mkdir(parents=True, exist_ok=True)
    limit, free = limit_bytes(), shutil.disk_usage(root).free - _SPARE_BYTES
    # A walk over all copies is for those who need the room.
    if limit is None and free >= num_bytes:
        return
    files = _list_files(root)
    total = sum(file.num_bytes for file in files)
    missing = max(num_bytes - free, total + num_bytes - limit if limit is not None else 0)
    if missing > 0:
        missing -= _evict(files, missing, [path, *_paths_in_use(root)])
    if missing > 0:
        bound = f"{LIMIT} = {os.environ.get(LIMIT)}" if limit is not None else f"the disk of {root.parent}"
        raise InputError(
            f"{name} needs {num_bytes / 2**30:,.2f} GiB here, and {bound} lacks {missing / 2**30:,.2f} GiB; raise "
            f"{LIMIT}, or name a larger disk by {CACHE}"
        )


def _evict(files: list[_File], num_bytes: int, in_use: list[Path]) -> int:
    """Remove files that nobody uses, the longest unused first; returns the bytes that are free now."""
    freed, now_s = 0, time.time()
    for file in sorted(files):
        if freed >= num_bytes:
            break
        if now_s - file.used_s < RECENT_S or any(file.path.is_relative_to(path) for path in in_use):
            continue
        with suppress(OSError):
            file.path.unlink()
            freed += file.num_bytes
    return freed


def _list_files(root: Path) -> list[_File]:
    """List all copies; of a file that is gone meanwhile nothing."""
    files = []
    for path in root.rglob("*"):
        if path.relative_to(root).parts[0] == _LOCKS:
            continue
        with suppress(OSError):
            facts = path.stat()
            if path.is_file():
                # ctime: a file that was just put there by a rename has the times of its content.
                files.append(_File(max(facts.st_atime, facts.st_ctime), facts.st_size, path))
    return files


def _paths_in_use(root: Path) -> list[Path]:
    """List the copies that processes of this node hold, and the outputs that are being written here."""
    paths = []
    for lock in (root / _LOCKS).glob("hold-*"):
        descriptor = os.open(lock, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            paths.append(Path(os.read(descriptor, 1 << 16).decode("utf-8", "surrogateescape")))
        finally:
            os.close(descriptor)
    for mark in root.rglob(UNFINISHED):
        with suppress(OSError):
            if time.time() - mark.stat().st_ctime < ABANDONED_S:
                paths.append(mark.parent)
    return paths


def _open_lock(path: Path, kind: str) -> int:
    """Open the lock file of a path, which holds the path."""
    folder = mirror_root() / _LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    text = str(path).encode("utf-8", "surrogateescape")
    lock = folder / f"{kind}-{hashlib.sha256(text).hexdigest()[:24]}"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    if os.fstat(descriptor).st_size == 0:
        os.write(descriptor, text)
        os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor
