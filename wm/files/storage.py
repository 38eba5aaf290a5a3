"""Read remote files: ``s3://`` and ``gs://`` (through ``pyarrow.fs``), ``http://`` and ``https://``.

Credentials are the usual ones (environment, profile files, the machine's role); where there are none, access is
anonymous. An S3-compatible server is named in the URI (see :mod:`wm.files.uris`) or by ``AWS_ENDPOINT_URL``.
"""

import io
import os
import queue
import re
import threading
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from wm.errors import InputError
from wm.files.uris import OBJECT_STORES, Place, is_remote, parse_place, scheme_of

__all__ = ["FILES_SCHEMA", "StorageError", "download", "is_remote", "list_files", "object_store", "read_bytes"]

FILES_SCHEMA = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("mtime_ns", pa.int64())])
"""What :func:`list_files` gives: ``path`` below the prefix, size, and time of change (null where unknown)."""

_CHUNK_BYTES = 1 << 20
_PART_BYTES = 8 << 20  # an object store is asked once for every part
_CONNECT_LIMIT_S = 10.0
_ATTEMPTS = 3
_BATCH_ROWS = 65536


class StorageError(Exception):
    """A remote file or folder could not be read. ``reason`` is one of ``wm.video.errors.REASONS``
    (``missing_file``, ``unreadable``, ``time_out``), ``detail`` names the URI in words; ``transient``: the same
    request may well succeed later."""

    def __init__(self, reason: str, detail: str, transient: bool = False) -> None:
        super().__init__(reason, detail, transient)  # all arguments, so that it travels between processes unchanged
        self.reason, self.detail, self.transient = reason, detail, transient

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def list_files(prefix: str) -> pa.Table:
    """List every object below an ``s3://`` or ``gs://`` folder, in depth: a table of :data:`FILES_SCHEMA`, unsorted.

    A million objects take one request a thousand and about 0.5 GB. Raises :class:`StorageError` (``missing_file`` if
    nothing is there); :class:`InputError` for HTTP, which has no listing.
    """
    from pyarrow import fs

    if scheme_of(prefix) not in OBJECT_STORES:
        raise InputError(
            f"{prefix!r:.200} cannot be listed: only s3:// and gs:// folders can; name a file or a list file"
        )
    address = parse_place(prefix)
    root = f"{address.bucket}/{address.key}".rstrip("/")
    try:
        objects = _get_filesystem(address, _CONNECT_LIMIT_S).get_file_info(fs.FileSelector(root, recursive=True))
    except OSError as error:
        raise _convert_error(prefix, error) from error
    batches, rows = [], []
    while objects:  # emptied as it is read: two forms of a million names would not fit
        info = objects.pop()
        if info.type == fs.FileType.File:
            rows.append((info.path[len(root) + 1 :], info.size, info.mtime_ns))
        if len(rows) == _BATCH_ROWS or (rows and not objects):
            columns = [pa.array(values) for values in zip(*rows, strict=True)]
            batches.append(pa.table(columns, names=FILES_SCHEMA.names).cast(FILES_SCHEMA))
            rows = []
    return pa.concat_tables(batches) if batches else FILES_SCHEMA.empty_table()


def object_store(uri: str, *, stall_limit_s: float = 60.0) -> tuple[Any, str]:
    """Return the ``pyarrow.fs`` client of an ``s3://`` or ``gs://`` URI and the path in it, to read and to write."""
    address = parse_place(uri)
    return _get_filesystem(address, stall_limit_s), f"{address.bucket}/{address.key}".rstrip("/")


def read_bytes(uri: str, *, time_limit_s: float = 60.0, max_bytes: int = 1 << 30) -> bytes:
    """Read a complete remote file; raises :class:`StorageError` as :func:`download` does."""
    sink = io.BytesIO()
    _copy_within(uri, sink, time_limit_s, max_bytes)
    return sink.getvalue()


def download(uri: str, path: str | Path, *, time_limit_s: float = 600.0, max_bytes: int | None = None) -> int:
    """Copy a remote file to the local ``path`` (to a temporary file, then renamed); returns its size in bytes.

    Ends within ``time_limit_s`` whatever the server does. Errors that may pass (429, 5xx, a broken connection) are
    tried three times. Raises :class:`StorageError`: ``missing_file`` (404, no such key), ``unreadable`` (refused, no
    server, damaged on the way, larger than ``max_bytes``), ``time_out``; ``OSError`` if ``path`` cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as sink:
            size = _copy_within(uri, sink, time_limit_s, max_bytes)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return size


def _copy_within(uri: str, sink: BinaryIO, time_limit_s: float, max_bytes: int | None) -> int:
    """Copy in a thread that is left behind when the time is over: no socket option bounds a complete request."""
    if not is_remote(uri):
        raise InputError(f"{uri!r:.200} is no remote URI; expected s3://, gs://, http:// or https://")
    stopped = threading.Event()
    answers: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers.put(_copy(uri, sink, time_limit_s, max_bytes, stopped))
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=work, name="wm-download", daemon=True).start()
    try:
        answer = answers.get(timeout=time_limit_s)
    except queue.Empty:
        raise StorageError("time_out", f"{uri}: not read within {time_limit_s:g} s") from None
    finally:
        stopped.set()
    if isinstance(answer, BaseException):
        raise answer
    return answer


def _copy(uri: str, sink: BinaryIO, time_limit_s: float, max_bytes: int | None, stopped: threading.Event) -> int:
    read = _iterate_object if scheme_of(uri) in OBJECT_STORES else _iterate_http
    # A broken connection begins again from nothing: servers need not know ranges.
    for attempt in range(_ATTEMPTS):
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
            if not error.transient or attempt == _ATTEMPTS - 1 or stopped.wait(0.5 * 2**attempt):
                raise
    raise AssertionError("unreachable")


def _iterate_http(uri: str, stall_limit_s: float) -> Iterator[bytes]:
    """Yield the body in chunks. Redirects are followed ten times, to http and https only."""
    import requests
    import urllib3

    limits = (min(stall_limit_s, _CONNECT_LIMIT_S), stall_limit_s)
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
        passing = isinstance(error, (requests.ConnectionError, urllib3.exceptions.ProtocolError))
        raise StorageError("unreadable", f"{uri}: {_to_line(error)}", passing) from error


def _check_status(uri: str, status: int) -> None:
    if status in (404, 410):
        raise StorageError("missing_file", f"{uri}: HTTP status {status}")
    if status in (408, 425, 429) or status >= 500:
        raise StorageError("unreadable", f"{uri}: HTTP status {status}", transient=True)
    if status != 200:
        raise StorageError("unreadable", f"{uri}: HTTP status {status}")


def _iterate_object(uri: str, stall_limit_s: float) -> Iterator[bytes]:
    try:
        address = parse_place(uri)
    except InputError as error:
        # A row of a list, which costs itself and not the run.
        raise StorageError("unreadable", str(error)) from error
    try:
        with _get_filesystem(address, stall_limit_s).open_input_stream(f"{address.bucket}/{address.key}") as stream:
            while chunk := stream.read(_PART_BYTES):
                yield chunk
    except (OSError, pa.ArrowException) as error:
        raise _convert_error(uri, error) from error


def _convert_error(uri: str, error: Exception) -> StorageError:
    """Convert an error of pyarrow, which tells the kinds of remote errors apart by their words only."""
    text = _to_line(error)
    if isinstance(error, FileNotFoundError) or re.search(r"NO_SUCH_(KEY|BUCKET)|NOT_FOUND", text):
        return StorageError("missing_file", f"{uri}: no such object or bucket")
    if re.search(r"curlCode: 28|[Tt]imeout|DEADLINE_EXCEEDED", text):
        return StorageError("time_out", f"{uri}: {text}")
    return StorageError("unreadable", f"{uri}: {text}")


def _get_filesystem(address: Place, stall_limit_s: float) -> Any:
    """Return the client for an address, one for every server, login, bucket and process (threads survive no fork)."""
    options = dict(address.options)
    endpoint = options.get("endpoint_override") or (_s3_endpoint() if address.scheme == "s3" else "")
    endpoint_scheme, _, host = endpoint.rpartition("://")
    scheme = options.get("scheme") or endpoint_scheme or "https"
    has_login = _has_aws_login() if address.scheme == "s3" else _has_google_login()
    anonymous = options.get("anonymous", "").lower() in ("true", "1") or not has_login
    region = options.get("region") or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or ""
    login = (anonymous, os.environ.get("AWS_ACCESS_KEY_ID", ""))
    server = (host.rstrip("/"), scheme, region)
    return _open_filesystem(address.scheme, address.bucket, server, login, stall_limit_s, os.getpid())


@lru_cache(maxsize=64)
def _open_filesystem(
    kind: str, bucket: str, server: tuple[str, str, str], login: tuple[bool, str], stall_limit_s: float, _process: int
) -> Any:
    from datetime import timedelta

    from pyarrow import fs

    address, scheme, region = server
    settings: dict[str, Any] = {"endpoint_override": address, "scheme": scheme} if address else {}
    if kind == "gs":
        limit = timedelta(seconds=max(1.0, stall_limit_s))
        return fs.GcsFileSystem(anonymous=login[0], retry_time_limit=limit, **settings)
    # A bucket's region is asked of AWS once; a server of one's own has none.
    if not region and not address:
        try:
            region = fs.resolve_s3_region(bucket)
        except OSError as error:
            raise _convert_error(f"s3://{bucket}", error) from error
    return fs.S3FileSystem(
        anonymous=login[0],
        region=region or "us-east-1",
        connect_timeout=min(stall_limit_s, _CONNECT_LIMIT_S),
        request_timeout=stall_limit_s,
        **settings,
    )


def _s3_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _has_aws_login() -> bool:
    """Return whether the SDK has somewhere to look; without this it would ask a metadata server that is not there."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_FULL_URI")
    files = (os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials", "~/.aws/config")
    return (
        any(os.environ.get(name) for name in (*names, "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"))
        or any(Path(file).expanduser().is_file() for file in files)
        or _read_board("sys_vendor").startswith("Amazon")
    )


def _has_google_login() -> bool:
    folder = Path(os.environ.get("CLOUDSDK_CONFIG") or "~/.config/gcloud").expanduser()
    return (
        bool(os.environ.get("GOOGLE_APPLICATION_CREDENTIALS"))
        or (folder / "application_default_credentials.json").is_file()
        or _read_board("product_name").startswith("Google")
    )


def _read_board(name: str) -> str:
    """Read what the machine says it is: how the vendors' own libraries tell that a metadata server is there."""
    try:
        return Path("/sys/class/dmi/id", name).read_text().strip()
    except OSError:
        return ""


def _to_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
