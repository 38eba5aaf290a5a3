"""Fetch what a path below the mirror root stands for, an object or folder of a bucket, and publish what is there.

``s3://bucket/runs/a`` is ``$WM_CACHE/wm-buckets/s3/bucket/runs/a``, and back, without a registry: workers on other
nodes get paths and call :func:`fetch` before they read, :func:`publish` after they wrote. The bucket is the truth, a
local copy may go at any time. A copy carries size and time of change of its object: that it is fresh needs no other
record. Not known here: who may write (:mod:`wm.files.lease`), how bytes travel (:mod:`wm.files.transfer`).
"""

import os
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, TypeVar

from wm.errors import InputError
from wm.files.mirror_paths import (
    CACHE,
    UNFINISHED,
    WRITERS,
    is_own,
    mirror_root,
    mirrored_path,
    on_this_node,
    shown,
    to_path,
    to_uri,
    uri_of,
)
from wm.files.uris import OBJECT_STORES, ObjectAddress, parse_address, scheme_of

if TYPE_CHECKING:
    from wm.files.transfer import ObjectFacts

__all__ = [
    "CACHE",
    "UNFINISHED",
    "WRITERS",
    "fetch",
    "is_own",
    "list_below",
    "mirror_root",
    "mirrored_path",
    "on_this_node",
    "publish",
    "remove",
    "shown",
    "to_path",
    "to_uri",
    "uri_of",
]

T = TypeVar("T")

SMALL_FILE_THREADS = 24
"""Small objects that are copied at a time: each is three requests that wait. Arrow's S3 client has 25 connections."""

_NUM_THREADS = 8
_SMALL_BYTES = 1 << 20


def list_below(path: str | Path, *, missing_ok: bool = False) -> "list[ObjectFacts]":
    """List the objects below a folder of a bucket as it is now, sorted by name; of a file one row, named "".

    Args:
        path: A path that stands for them, or a URI.
        missing_ok: Return no row where nothing is there, instead of raising.

    Raises:
        BucketError: The bucket cannot be listed; ``missing_file`` if nothing is there.
    """
    from wm.files.transfer import list_objects

    return [facts for facts in list_objects(_uri(path), missing_ok=missing_ok) if not is_own(facts.name)]


def fetch(path: str | Path, *, leave: Sequence[str] = (), prune: bool | None = None, hold: bool = True) -> Path:
    """Make the local copy of a file or folder what the bucket has now; any other path is returned as it is.

    Only what has changed is copied, under a lock, so that processes of a node copy once. A path that was made on a node
    with another root is answered with this node's.

    Args:
        path: A local path, or a URI of an object store.
        leave: Names of files (shell patterns) that are not copied: whoever reads them fetches each. Their folders are
            made, old copies of them removed.
        prune: Remove local files that the bucket lacks; None: unless the folder is in an output that is being written.
        hold: Keep the copy from being evicted until this process ends; False for what is read once.

    Returns:
        The local path.

    Raises:
        BucketError: Nothing is there, or it cannot be read; the message has the URI.
        InputError: Disk or cache limit do not suffice.
    """
    if not isinstance(path, Path) and "://" in path and scheme_of(path) in OBJECT_STORES:
        path = mirrored_path(path)
    uri = uri_of(path)
    if uri is None:
        return Path(path)
    from wm.files import cache

    local = mirrored_path(uri)
    objects = list_below(uri)
    is_file = [facts.name for facts in objects] == [""]
    skipped = [facts for facts in objects if not is_file and _matches(facts.name, leave)]
    to_copy = [facts for facts in objects if is_file or not _matches(facts.name, leave)]
    if hold:
        is_in_folder = is_file and local.parent.parent.parent != mirror_root()
        cache.hold(local.parent if is_in_folder else local)
    # 1. What has changed, once a node.
    if any(not _is_fresh(local / facts.name, facts) for facts in to_copy):
        with cache.node_lock(local):
            _copy_changed(uri, local, [facts for facts in to_copy if not _is_fresh(local / facts.name, facts)])
    # 2. Of what is left out the folders, which readers look for; no old copy is taken for today's.
    for facts in skipped:
        (local / facts.name).parent.mkdir(parents=True, exist_ok=True)
        if not _is_fresh(local / facts.name, facts):
            (local / facts.name).unlink(missing_ok=True)
    if not is_file:
        local.mkdir(parents=True, exist_ok=True)
        _prune(uri, local, {facts.name for facts in objects}, prune)
    cache.mark_used(local / facts.name for facts in to_copy)
    return local


def publish(path: str | Path) -> None:
    """Upload a finished file under its final name, or a folder's files that are not in the bucket yet.

    An object is visible when it is complete, never before. Does nothing for a path that stands for no object, nor for a
    file that is there already.

    Args:
        path: The file or folder; it stays where it is, as the local copy.

    Raises:
        BucketError: The bucket cannot be written; the message has the URI.
    """
    uri = uri_of(path)
    if uri is None:
        return
    from wm.files import transfer

    local = Path(path)
    if not local.is_dir():
        facts = transfer.stat_object(uri)
        if facts is None or not _is_fresh(local, facts):
            _upload(local, uri)
        return
    present = {facts.name: facts for facts in transfer.list_objects(uri, missing_ok=True)}
    names = [name for name in _names_below(local) if not is_own(name)]
    changed = [name for name in names if name not in present or not _is_fresh(local / name, present[name])]
    _in_threads(lambda name: _upload(local / name, f"{_child(uri, name)}"), changed)


def remove(path: str | Path) -> None:
    """Remove a file or folder, in the bucket too if the path is of one; nothing if there is nothing.

    Args:
        path: Of the file or folder.

    Raises:
        BucketError: It cannot be removed.
    """
    uri = uri_of(path)
    local = Path(path)
    # The bucket first: what is removed here only would come back.
    if uri is not None:
        from wm.files import transfer

        _in_threads(
            lambda facts: transfer.delete_object(_child(uri, facts.name)),
            transfer.list_objects(uri, missing_ok=True),
        )
    if local.is_dir() and not local.is_symlink():
        shutil.rmtree(local)
    else:
        local.unlink(missing_ok=True)


def _uri(path: str | Path) -> str:
    uri = uri_of(path) or str(path)
    if scheme_of(uri) not in OBJECT_STORES:
        raise InputError(f"{uri!r:.200} is in no bucket; expected s3://bucket/key or gs://bucket/key")
    return uri


def _child(uri: str, name: str) -> str:
    """Build the URI of an object below a folder; names are keys as they are."""
    if not name:
        return uri
    address = parse_address(uri)
    key = f"{address.key.rstrip('/')}/{name}".lstrip("/")
    return ObjectAddress(address.scheme, address.bucket, key, address.options).uri


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name.rpartition("/")[2], pattern) for pattern in patterns)


def _is_fresh(path: Path, facts: "ObjectFacts") -> bool:
    """Return whether a local file is the copy of an object."""
    try:
        stat = path.stat()
    except OSError:
        return False
    # S3 lists full seconds, whatever it answers to other requests.
    is_same_time = stat.st_mtime_ns // 10**9 == facts.mtime_ns // 10**9
    return path.is_file() and stat.st_size == facts.size_bytes and is_same_time


def _copy_changed(uri: str, local: Path, changed: "list[ObjectFacts]") -> None:
    """Download objects below a URI to their places, some at a time."""
    from wm.files import cache
    from wm.files.copies import download_object, progress

    if not changed:
        return
    num_bytes = sum(facts.size_bytes for facts in changed)
    # A file where there is a folder now, or the other way round, is an old copy of something else.
    for path in (*reversed([parent for parent in local.parents if mirror_root() in parent.parents]), local):
        if path.is_file() and (path != local or changed[0].name):
            path.unlink()
    cache.make_room(num_bytes, uri, local)
    with progress(num_bytes, uri) as advance:
        _in_threads(
            lambda facts: download_object(_child(uri, facts.name), local / facts.name, facts, advance),
            changed,
            SMALL_FILE_THREADS if num_bytes < _SMALL_BYTES * len(changed) else _NUM_THREADS,
        )


def _prune(uri: str, local: Path, names: set[str], prune: bool | None) -> None:
    extras = [name for name in _names_below(local) if name not in names and not is_own(name)]
    if not extras or prune is False:
        return
    # Of an output that is being written, here or on another node, files are there before they are published.
    if prune is None:
        # So too of stages below, of which one may be working while another one reads all of their folders.
        extras = [name for name in extras if not _is_below_mark(names, name)]
        if not extras or _is_being_written(uri):
            return
    for name in extras:
        (local / name).unlink(missing_ok=True)


def _is_below_mark(names: set[str], name: str) -> bool:
    """Return whether a file is in an output that is being written, among the names that the bucket has."""
    # Not by a local mark, which may be the copy of one that is gone.
    return any(str(parent / UNFINISHED) in names for parent in PurePath(name).parents)


def _is_being_written(uri: str) -> bool:
    from wm.files.transfer import stat_object

    address = parse_address(uri)
    parts = address.key.split("/")
    folders = ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return any(
        stat_object(ObjectAddress(address.scheme, address.bucket, f"{folder}/{UNFINISHED}", address.options).uri)
        for folder in folders
    )


def _names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _upload(local: Path, uri: str) -> None:
    from wm.files.copies import upload_object

    while True:
        before = local.stat()
        facts = upload_object(local, uri)
        after = local.stat()
        # A file that was replaced meanwhile is another content.
        if (before.st_ino, before.st_size, before.st_mtime_ns) == (after.st_ino, after.st_size, after.st_mtime_ns):
            os.utime(local, ns=(time.time_ns(), facts.mtime_ns))
            return


def _in_threads(work: "Callable[[T], object]", items: Iterable[T], num_threads: int = _NUM_THREADS) -> None:
    """Call a function of each item, some at a time; the first error is raised, and what has not begun is left."""
    items = list(items)
    if len(items) <= 1:
        for item in items:
            work(item)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="wm-bucket") as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
