"""Ask an object store: list, read, write and remove objects, again after errors that may pass, each request within a
time limit. Errors name the URI and what to do. Not known here: files of this machine (:mod:`wm.files.copies`).
"""

import queue
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pyarrow as pa

from wm.files.clients import get_boto_client
from wm.files.storage import object_store
from wm.files.storage_errors import StorageError
from wm.files.store_errors import BucketError, explain_error
from wm.files.uris import parse_address

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem
    from pyarrow.parquet import FileMetaData

__all__ = [
    "BucketError",
    "ObjectFacts",
    "attempt",
    "delete_object",
    "explain_error",
    "list_objects",
    "object_store",
    "read_footer",
    "read_object",
    "stat_object",
    "to_facts",
    "write_object",
]

T = TypeVar("T")

PATIENCE_S = 120.0
"""How long a request that fails for a reason that may pass (503, a broken connection) is tried again."""
MIN_LIMIT_S = 10.0
REQUEST_LIMIT_S = 60.0
"""Max seconds of one request, whatever the server does; of an upload, for each 8 MiB."""


class ObjectFacts(NamedTuple):
    """An object: its name below the folder that was listed, size and time of change by the store's clock."""

    name: str
    size_bytes: int
    mtime_ns: int


def list_objects(uri: str, *, missing_ok: bool = False, patience_s: float | None = None) -> list[ObjectFacts]:
    """List the objects below a folder, in depth, sorted by name; of an object one row, named "".

    Args:
        uri: Of a folder or object.
        missing_ok: Return no row where nothing is there, instead of raising.
        patience_s: How long errors that may pass are tried again.

    Raises:
        BucketError: It cannot be listed, or nothing is there.
    """
    from pyarrow import fs

    def work(store: "FileSystem", path: str) -> "list[FileInfo]":
        info = store.get_file_info(path)
        # A bucket that does not exist is reported, whatever is allowed to be missing in it.
        if info.type == fs.FileType.File:
            return [info]
        if info.type == fs.FileType.NotFound and "/" in path and not missing_ok:
            # Nothing there, or no such bucket: the listing of the bucket says which.
            store.get_file_info(fs.FileSelector(path.partition("/")[0], recursive=False))
            raise FileNotFoundError(path)
        selector = fs.FileSelector(path, recursive=True, allow_not_found=missing_ok)
        files = [each for each in store.get_file_info(selector) if each.type == fs.FileType.File]
        # rclone lists some times with a fraction that AWS's SDK cannot read: those objects are asked for by name, or
        # their copies would never count as fresh.
        unclear = [each.path for each in files if not each.mtime_ns]
        clear = [each for each in files if each.mtime_ns]
        return clear + (store.get_file_info(unclear) if unclear else [])

    infos = attempt(uri, "read", work, patience_s)
    address = parse_address(uri)
    root = f"{address.bucket}/{address.key}".rstrip("/")
    return sorted(to_facts(info, info.path[len(root) + 1 :]) for info in infos)


def stat_object(uri: str, *, patience_s: float | None = None) -> ObjectFacts | None:
    """Return an object's size and time, named ""; None if there is none.

    Args:
        uri: Of the object.
        patience_s: As for :func:`attempt`.

    Raises:
        BucketError: The store does not say.
    """
    from pyarrow import fs

    def work(store: "FileSystem", path: str) -> ObjectFacts | None:
        info = store.get_file_info(path)
        return to_facts(info, "") if info.type == fs.FileType.File else None

    return attempt(uri, "read", work, patience_s)


def read_object(uri: str, *, patience_s: float | None = None) -> bytes | None:
    """Read a small object; None if there is none.

    Args:
        uri: Of the object.
        patience_s: As for :func:`attempt`.

    Raises:
        BucketError: It cannot be read.
    """

    def work(store: "FileSystem", path: str) -> bytes:
        with store.open_input_stream(path) as stream:
            return bytes(stream.read())

    try:
        return attempt(uri, "read", work, patience_s)
    except BucketError as error:
        if error.reason == "missing_file":
            return None
        raise


def read_footer(uri: str) -> "FileMetaData":
    """Read the end of a Parquet file in a bucket: its columns and number of rows.

    Args:
        uri: Of the file.

    Raises:
        BucketError: It cannot be read, or is no Parquet file.
    """
    import pyarrow.parquet as pq

    def work(store: "FileSystem", path: str) -> "FileMetaData":
        with store.open_input_file(path) as file:
            return pq.read_metadata(file)

    return attempt(uri, "read", work)


def write_object(uri: str, content: bytes, *, patience_s: float | None = None) -> None:
    """Write a small object.

    Args:
        uri: Of the object.
        content: All of it.
        patience_s: As for :func:`attempt`.

    Raises:
        BucketError: It cannot be written.
    """

    def work(store: "FileSystem", path: str) -> None:
        with store.open_output_stream(path) as stream:
            stream.write(content)

    attempt(uri, "write", work, patience_s)


def delete_object(uri: str, *, patience_s: float | None = None) -> None:
    """Remove an object; nothing if there is none.

    Args:
        uri: Of the object.
        patience_s: As for :func:`attempt`.

    Raises:
        BucketError: It cannot be removed.
    """
    address = parse_address(uri)
    boto = get_boto_client(address) if address.scheme == "s3" else None

    def work(store: "FileSystem", path: str) -> None:
        if boto is not None:
            boto.delete_object(Bucket=address.bucket, Key=address.key)
            return
        try:
            store.delete_file(path)
        except FileNotFoundError:
            return

    attempt(uri, "remove", work, patience_s)


def _with_reason(store: "FileSystem", path: str, error: OSError) -> OSError:
    """Return the error of a listing in place of one that has a status only: answers to HEAD requests have no text."""
    from pyarrow import fs

    if "HeadObject" not in str(error) or not re.search(r"status 400|ACCESS_DENIED", str(error)):
        return error
    try:
        store.get_file_info(fs.FileSelector(path, allow_not_found=True))
    except OSError as reason:
        return reason
    return error


def to_facts(info: "FileInfo", name: str) -> ObjectFacts:
    """Convert pyarrow's facts of an object.

    Args:
        info: The facts.
        name: Of the object, below what was asked for.
    """
    return ObjectFacts(name, info.size or 0, info.mtime_ns or 0)


def attempt(
    uri: str,
    act: str,
    work: "Callable[[FileSystem, str], T]",
    patience_s: float | None = None,
    *,
    limit_s: float | None = None,
) -> T:
    """Call a function of client and path, again after errors that may pass, each time within a limit.

    Args:
        uri: Of the object or folder.
        act: For messages: ``read``, ``write`` or ``remove``.
        work: The function.
        patience_s: How long errors that may pass are tried again; None: :data:`PATIENCE_S`.
        limit_s: Max seconds of one call; None: :data:`REQUEST_LIMIT_S`, or less where patience is short.

    Raises:
        BucketError: It failed.
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    end_s, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return _within(uri, limit_s or min(REQUEST_LIMIT_S, max(patience_s, MIN_LIMIT_S)), act, work)
        except BucketError as error:
            if not error.transient or time.monotonic() + pause_s > end_s:
                raise
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 10.0)


def _within(uri: str, limit_s: float, act: str, work: "Callable[[FileSystem, str], T]") -> T:
    """Call a function in a thread that is abandoned when the time is over: no socket option bounds a request."""
    results: queue.SimpleQueue[tuple[bool, object]] = queue.SimpleQueue()

    def call() -> None:
        try:
            store, path = object_store(uri, stall_limit_s=min(limit_s, REQUEST_LIMIT_S))
            try:
                results.put((True, work(store, path)))
            except OSError as error:
                raise _with_reason(store, path, error) from error
        except BaseException as error:
            results.put((False, error))

    # A daemon, so that the process can end while a request hangs.
    threading.Thread(target=call, name="wm-bucket", daemon=True).start()
    try:
        is_done, value = results.get(timeout=limit_s)
    except queue.Empty:
        raise BucketError(uri, f"no answer within {limit_s:g} s", "time_out", transient=True) from None
    if is_done:
        return value  # type: ignore[return-value]
    assert isinstance(value, BaseException)
    # boto3's are known by their package, which need not be installed.
    if isinstance(value, (OSError, pa.ArrowException)) or type(value).__module__.startswith("botocore"):
        raise explain_error(uri, value, act) from value
    # Of a client that could not be made: AWS, asked for a bucket's region, says whether there is such a bucket.
    if isinstance(value, StorageError) and isinstance(value.__cause__, OSError):
        raise explain_error(uri, value.__cause__, act) from value
    raise value
