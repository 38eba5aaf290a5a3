"""Read remote files: ``s3://`` and ``gs://`` (through ``pyarrow.fs``), ``http://`` and ``https://``.

Every read ends within its time limit. Logins and servers are the matter of :mod:`wm.files.clients`.
"""

import io
import queue
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pyarrow as pa

from wm.errors import InputError, to_line
from wm.files.atomic import replace_file
from wm.files.clients import CONNECT_LIMIT_S, get_filesystem
from wm.files.storage_errors import LoginError, StorageError
from wm.files.store_errors import NO_BUCKET, TRANSIENT, explain_refused_login
from wm.files.uris import OBJECT_STORES, is_remote, parse_address, scheme_of

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

FILES_SCHEMA = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64())])
"""Columns of :func:`list_files`: ``path`` below the prefix, size, and time of change (null where unknown)."""

_CHUNK_BYTES = 1 << 20
_PART_BYTES = 8 << 20  # an object store is asked once for every part
_HTTP_PAUSES_S = (0.5, 1.0)
"""Before each further attempt. A list of addresses names many servers, some of which are gone for good."""
_OBJECT_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0)
"""The same of an object store: while its server is started again, no object is missing."""
_BATCH_ROWS = 65536
LIST_THREADS = 16
"""Folders of a bucket that are listed at a time."""


def list_files(prefix: str) -> pa.Table:
    """List every object below an ``s3://`` or ``gs://`` folder, in depth: a table of :data:`FILES_SCHEMA`, unsorted.

    A million objects take one request a thousand; see :func:`collect_objects` for memory.

    Raises:
        StorageError: The folder could not be read; ``missing_file`` if nothing is there.
        InputError: The URI is of another scheme: HTTP has no listing.
    """
    if scheme_of(prefix) not in OBJECT_STORES:
        raise InputError(
            f"{prefix!r:.200} cannot be listed: only s3:// and gs:// folders can; name a file or a list file"
        )
    address = parse_address(prefix)
    root = f"{address.bucket}/{address.key}".rstrip("/")
    try:
        return collect_objects(get_filesystem(address, CONNECT_LIMIT_S), root)
    except OSError as error:
        raise _convert_error(prefix, error) from error


def collect_objects(filesystem: "FileSystem", root: str) -> pa.Table:
    """List the files below a folder of a store.

    The client's own form of a name takes 0.5 KB. So that those of all are never in memory together, folders are listed
    some at a time; a folder with everything directly in it is one.

    Args:
        filesystem: The client.
        root: Path of the folder.

    Returns:
        A table of :data:`FILES_SCHEMA`, in no order.

    Raises:
        OSError: The folder could not be read.
    """
    from pyarrow import fs

    def listed(folder: str) -> tuple[pa.Table, list[str]]:
        infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=folder != root))
        below = [info.path for info in infos if info.type == fs.FileType.Directory]
        return _to_table(infos, root), below

    def listed_in_depth(folder: str) -> pa.Table:
        selector = fs.FileSelector(folder, recursive=True, allow_not_found=folder != root)
        return _to_table(filesystem.get_file_info(selector), root)

    # Other clients may name no folders that hold files only.
    if filesystem.type_name not in ("s3", "local"):
        return listed_in_depth(root)
    tables, folders = [], [root]
    with ThreadPoolExecutor(LIST_THREADS, thread_name_prefix="list") as pool:
        # 1. Down until there are folders enough to share.
        while 0 < len(folders) < LIST_THREADS:
            parts = list(pool.map(listed, folders))
            tables += [table for table, _ in parts]
            folders = [folder for _, below in parts for folder in below]
        # 2. Each with all that is below it.
        tables += pool.map(listed_in_depth, folders)
    return pa.concat_tables(tables) if tables else FILES_SCHEMA.empty_table()


def _to_table(infos: "list[FileInfo]", root: str) -> pa.Table:
    from pyarrow import fs

    batches, rows = [FILES_SCHEMA.empty_table()], []
    # Emptied as it is read: two forms of a million names would not fit.
    while infos:
        info = infos.pop()
        if info.type == fs.FileType.File:
            rows.append((info.path[len(root) + 1 :], info.size, info.mtime_ns))
        if len(rows) == _BATCH_ROWS or (rows and not infos):
            columns = [pa.array(values) for values in zip(*rows, strict=True)]
            batches.append(pa.table(columns, names=FILES_SCHEMA.names).cast(FILES_SCHEMA))
            rows = []
    return pa.concat_tables(batches)


def object_store(uri: str, *, stall_limit_s: float = 60.0) -> "tuple[FileSystem, str]":
    """Open an object store to read and to write.

    Args:
        uri: ``s3://`` or ``gs://`` URI of a file or folder.
        stall_limit_s: Max seconds without an answer to one request.

    Returns:
        The ``pyarrow.fs`` client, and the URI's path in it.

    Raises:
        StorageError: AWS was asked for the region of the bucket, and has no such bucket or did not answer.
    """
    address = parse_address(uri)
    try:
        return get_filesystem(address, stall_limit_s), f"{address.bucket}/{address.key}".rstrip("/")
    except OSError as error:
        raise _convert_error(uri, error) from error


def read_bytes(uri: str, *, time_limit_s: float = 60.0, max_bytes: int = 1 << 30) -> bytes:
    """Read a complete remote file into memory.

    Args:
        uri: ``s3://``, ``gs://``, ``http://`` or ``https://`` URI.
        time_limit_s: Max seconds in all, whatever the server does.
        max_bytes: A larger file is refused.

    Returns:
        Its content.

    Raises:
        StorageError: As :func:`download` raises it.
    """
    sink = io.BytesIO()
    _copy_within(uri, sink, time_limit_s, max_bytes)
    return sink.getvalue()


def download(uri: str, path: str | Path, *, time_limit_s: float = 600.0, max_bytes: int | None = None) -> int:
    """Copy a remote file to a local one, through a temporary file that is then renamed.

    After an error that may pass (429, 5xx, a broken connection) the copy is tried again: of an object store for half a
    minute, which is also waited for where nobody listens; of other servers three times in all.

    Args:
        uri: ``s3://``, ``gs://``, ``http://`` or ``https://`` URI.
        path: The local file; its folder must exist.
        time_limit_s: Max seconds in all, whatever the server does.
        max_bytes: A larger file is refused; None: no limit.

    Returns:
        Size of the file in bytes.

    Raises:
        StorageError: ``missing_file`` (404, no such key), ``unreadable`` (refused, no server, damaged on the way, too
            large), ``time_out``. Of these a :class:`LoginError`, where the store does not let this machine in.
        InputError: The URI is not remote.
        OSError: ``path`` cannot be written.
    """
    with replace_file(Path(path)) as temporary, temporary.open("wb") as sink:
        return _copy_within(uri, sink, time_limit_s, max_bytes)


def _copy_within(uri: str, sink: BinaryIO, time_limit_s: float, max_bytes: int | None) -> int:
    """Copy in a thread that is abandoned when the time is over: no socket option bounds a complete request."""
    if not is_remote(uri):
        raise InputError(f"{uri!r:.200} is no remote URI; expected s3://, gs://, http:// or https://")
    stopped = threading.Event()
    results: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            results.put(_copy(uri, sink, time_limit_s, max_bytes, stopped))
        except BaseException as error:
            results.put(error)

    # A daemon, so that the process can end while a request hangs.
    threading.Thread(target=work, name="wm-download", daemon=True).start()
    try:
        result = results.get(timeout=time_limit_s)
    except queue.Empty:
        raise StorageError("time_out", f"{uri}: not read within {time_limit_s:g} s") from None
    finally:
        stopped.set()
    if isinstance(result, BaseException):
        raise result
    return result


def _copy(uri: str, sink: BinaryIO, time_limit_s: float, max_bytes: int | None, stopped: threading.Event) -> int:
    is_object = scheme_of(uri) in OBJECT_STORES
    end_s = time.monotonic() + time_limit_s
    read, pauses_s = (_iterate_object, _OBJECT_PAUSES_S) if is_object else (_iterate_http, _HTTP_PAUSES_S)
    # After a broken connection the copy begins at the first byte again: servers need not know ranges.
    for pause_s in (*pauses_s, None):
        sink.seek(0)
        sink.truncate()
        size = 0
        try:
            for chunk in read(uri, min(time_limit_s, 30.0)):
                size += len(chunk)
                if max_bytes is not None and size > max_bytes:
                    raise StorageError("unreadable", f"{uri}: larger than {max_bytes:,} bytes")
                # The caller has given up: the file is removed, nothing more is written to it.
                if stopped.is_set():
                    return size
                sink.write(chunk)
            return size
        except StorageError as error:
            # A pause beyond the limit would end as that: the error says more.
            if not error.transient or pause_s is None or time.monotonic() + pause_s > end_s or stopped.wait(pause_s):
                raise
    raise AssertionError("unreachable")


def _iterate_http(uri: str, stall_limit_s: float) -> Iterator[bytes]:
    """Yield the body in chunks. Redirects are followed ten times, to http and https only."""
    import requests
    import urllib3

    limits = (min(stall_limit_s, CONNECT_LIMIT_S), stall_limit_s)
    try:
        with requests.Session() as session:
            session.max_redirects = 10
            with session.get(uri, stream=True, timeout=limits, headers={"Accept-Encoding": "identity"}) as response:
                _check_status(uri, response.status_code)
                while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=True):
                    yield chunk
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise StorageError("time_out", f"{uri}: no answer within {stall_limit_s:g} s") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        # A refused name or address fails again; a broken connection may not.
        transient = isinstance(error, (requests.ConnectionError, urllib3.exceptions.ProtocolError))
        raise StorageError("unreadable", f"{uri}: {to_line(error, 300)}", transient) from error


def _check_status(uri: str, status: int) -> None:
    if status in (404, 410):
        raise StorageError("missing_file", f"{uri}: HTTP status {status}")
    # Too many requests, and a server's own trouble, may pass.
    if status in (408, 425, 429) or status >= 500:
        raise StorageError("unreadable", f"{uri}: HTTP status {status}", transient=True)
    if status != 200:
        raise StorageError("unreadable", f"{uri}: HTTP status {status}")


def _iterate_object(uri: str, stall_limit_s: float) -> Iterator[bytes]:
    try:
        address = parse_address(uri)
    except InputError as error:
        # A row of a list, which costs itself and not the run.
        raise StorageError("unreadable", str(error)) from error
    try:
        client = get_filesystem(address, stall_limit_s)
    except OSError as error:
        raise _convert_error(uri, error) from error
    try:
        with client.open_input_stream(f"{address.bucket}/{address.key}") as stream:
            while chunk := stream.read(_PART_BYTES):
                yield chunk
    except (OSError, pa.ArrowException) as error:
        if refusal := explain_refused_login(uri, error, client):
            raise LoginError("unreadable", refusal) from error
        raise _convert_error(uri, error) from error


def _convert_error(uri: str, error: Exception) -> StorageError:
    """Convert an error of pyarrow, whose kinds of remote errors differ in their words only."""
    text = to_line(error, 300)
    if isinstance(error, FileNotFoundError) or re.search(r"NO_SUCH_KEY|NOT_FOUND", text) or NO_BUCKET.search(text):
        return StorageError("missing_file", f"{uri}: no such object or bucket")
    if re.search(r"curlCode: 28|[Tt]imeout|DEADLINE_EXCEEDED", text):
        return StorageError("time_out", f"{uri}: {text}")
    # Busy, or a connection that broke, or is refused while a server starts again. A host without an address has no name
    # that would be known soon.
    is_transient = bool(TRANSIENT.search(text)) and not re.search(r"curlCode: 6\b", text)
    return StorageError("unreadable", f"{uri}: {text}", is_transient)
