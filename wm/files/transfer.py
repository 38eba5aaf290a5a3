"""Move single objects between a store and this machine: in parts, again after errors that may pass, each request within
a time limit. Errors name the URI and what to do. Not known here: where local copies are (:mod:`wm.files.mirror`).
"""

import os
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import pyarrow as pa
from tqdm import tqdm

from wm.errors import InputError, to_line
from wm.files.atomic import temporary_path
from wm.files.clients import get_boto_client, has_login
from wm.files.storage import StorageError, object_store
from wm.files.uris import parse_address, scheme_of

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem
    from pyarrow.parquet import FileMetaData

T = TypeVar("T")

PATIENCE_S = 120.0
"""How long a request that fails for a reason that may pass (503, a broken connection) is tried again."""
REQUEST_LIMIT_S = 60.0
"""Max seconds of one request, whatever the server does; of an upload, for each 8 MiB."""

_PART_BYTES = 8 << 20
_SHOWN_BYTES = 1 << 30
_TRANSIENT = re.compile(
    r"SLOW_DOWN|SlowDown|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|INTERNAL_ERROR|InternalError|REQUEST_TIMEOUT|THROTTLING|"
    r"NETWORK_CONNECTION|curlCode|UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|[Tt]imeout|[Tt]imed out|"
    r"(HTTP (status|response code|error code)[: ]*|HTTP )(429|5\d\d)|Connection (reset|refused)|incomplete"
)


class ObjectFacts(NamedTuple):
    """An object: its name below the folder that was listed, size and time of change by the store's clock."""

    name: str
    size_bytes: int
    mtime_ns: int


class BucketError(InputError):
    """An object store refuses, lacks or does not deliver something."""

    def __init__(self, uri: str, detail: str, reason: str = "unreadable", transient: bool = False) -> None:
        """Build the error.

        Args:
            uri: Of the object or folder.
            detail: What happened, and what to do.
            reason: ``missing_file``, ``unreadable`` or ``time_out``, as for :class:`wm.files.storage.StorageError`.
            transient: The same request may well succeed later.
        """
        super().__init__(uri, detail, reason, transient)  # all arguments, so that it travels between processes
        self.uri, self.detail, self.reason, self.transient = uri, detail, reason, transient

    def __str__(self) -> str:
        return f"{self.uri}: {self.detail}"


_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"\b411\b|MissingContentLength",
        "the server takes no upload without its length; set AWS_REQUEST_CHECKSUM_CALCULATION=when_required",
    ),
    (r"EXPIRED|[Ee]xpired|invalid_grant", "the credentials have expired on {host}; renew them"),
    (
        r"INVALID_ACCESS_KEY|InvalidAccessKey|SIGNATURE|INVALID_CLIENT_TOKEN|UNRECOGNIZED_CLIENT|UNAUTHENTICATED|"
        r"\b401\b|InvalidToken",
        "the store does not accept the credentials of {host}; check {login}",
    ),
    (
        r"PermanentRedirect|PERMANENT_REDIRECT|AuthorizationHeaderMalformed|IllegalLocationConstraint|\b301\b",
        "the bucket is in another region; set AWS_REGION, or add ?region=NAME to the URI",
    ),
    (r"ACCESS_DENIED|AccessDenied|PERMISSION_DENIED|\b403\b|[Ff]orbidden", "the store refuses this to {host}: {login}"),
)


def explain_error(uri: str, error: BaseException, act: str) -> BucketError:
    """Convert an error of pyarrow, whose kinds of remote errors differ in their words only.

    Args:
        uri: Of the object or folder.
        error: As pyarrow raised it.
        act: What was tried: ``read``, ``write`` or ``remove``.
    """
    text = to_line(error, 300)
    scheme, bucket = scheme_of(uri), parse_address(uri).bucket
    if re.search(r"NO_SUCH_BUCKET|NoSuchBucket|[Bb]ucket.{0,80}(not found|does not exist)", text) or (
        act == "write" and (isinstance(error, FileNotFoundError) or re.search(r"NOT_FOUND|RESOURCE_NOT_FOUND", text))
    ):
        return BucketError(
            uri, f"no such bucket ({bucket}); make it first, or check its name and server", "missing_file"
        )
    if isinstance(error, FileNotFoundError) or re.search(r"NO_SUCH_KEY|NOT_FOUND", text):
        return BucketError(uri, "no such object or folder", "missing_file")
    # Without a login requests are not signed: whatever the store answers, that is the reason.
    login = (
        "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        if scheme == "s3"
        else "GOOGLE_APPLICATION_CREDENTIALS"
    )
    rights = f"these credentials may not {act} here" if has_login(scheme) else f"no credentials found; set {login}"
    for pattern, hint in _HINTS:
        if re.search(pattern, text):
            words = rights if "refuses" in hint else login
            return BucketError(uri, f"{hint.format(host=socket.gethostname(), login=words)} ({text})")
    is_transient = bool(_TRANSIENT.search(text))
    if re.search(r"curlCode: (6|7)\b|Could ?n.t (connect|resolve)|Connection refused", text):
        return BucketError(
            uri, f"no connection to its server; check AWS_ENDPOINT_URL and network ({text})", "unreadable", True
        )
    if re.search(r"curlCode: 28|[Tt]imeout|[Tt]imed out|DEADLINE_EXCEEDED", text):
        return BucketError(uri, f"no answer in time ({text})", "time_out", True)
    return BucketError(uri, f"cannot {act} it: {text}", transient=is_transient)


def list_objects(uri: str, *, missing_ok: bool = False, patience_s: float = PATIENCE_S) -> list[ObjectFacts]:
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
        return [each for each in store.get_file_info(selector) if each.type == fs.FileType.File]

    infos = _attempt(uri, "read", work, patience_s)
    address = parse_address(uri)
    root = f"{address.bucket}/{address.key}".rstrip("/")
    return sorted(_facts(info, info.path[len(root) + 1 :]) for info in infos)


def stat_object(uri: str, *, patience_s: float = PATIENCE_S) -> ObjectFacts | None:
    """Return an object's size and time, named ""; None if there is none.

    Raises:
        BucketError: The store does not say.
    """
    from pyarrow import fs

    def work(store: "FileSystem", path: str) -> ObjectFacts | None:
        info = store.get_file_info(path)
        return _facts(info, "") if info.type == fs.FileType.File else None

    return _attempt(uri, "read", work, patience_s)


def read_object(uri: str, *, patience_s: float = PATIENCE_S) -> bytes | None:
    """Read a small object; None if there is none.

    Raises:
        BucketError: It cannot be read.
    """

    def work(store: "FileSystem", path: str) -> bytes:
        with store.open_input_stream(path) as stream:
            return bytes(stream.read())

    try:
        return _attempt(uri, "read", work, patience_s)
    except BucketError as error:
        if error.reason == "missing_file":
            return None
        raise


def read_footer(uri: str) -> "FileMetaData":
    """Read the end of a Parquet file in a bucket: its columns and number of rows.

    Raises:
        BucketError: It cannot be read, or is no Parquet file.
    """
    import pyarrow.parquet as pq

    def work(store: "FileSystem", path: str) -> "FileMetaData":
        with store.open_input_file(path) as file:
            return pq.read_metadata(file)

    return _attempt(uri, "read", work, PATIENCE_S)


def write_object(uri: str, content: bytes, *, patience_s: float = PATIENCE_S) -> None:
    """Write a small object.

    Raises:
        BucketError: It cannot be written.
    """

    def work(store: "FileSystem", path: str) -> None:
        with store.open_output_stream(path) as stream:
            stream.write(content)

    _attempt(uri, "write", work, patience_s)


def delete_object(uri: str, *, patience_s: float = PATIENCE_S) -> None:
    """Remove an object; nothing if there is none.

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

    _attempt(uri, "remove", work, patience_s)


def upload_object(path: Path, uri: str) -> ObjectFacts:
    """Upload a local file; the object appears when it is complete.

    Args:
        path: The file.
        uri: Of the object.

    Returns:
        The object's size and time.

    Raises:
        BucketError: It cannot be written, or has not the file's size afterwards.
        OSError: The file cannot be read.
    """
    num_bytes = path.stat().st_size
    # Mapped before a stream is opened: a file that cannot be read must not end as half an object.
    content = pa.memory_map(str(path)) if num_bytes else pa.BufferReader(b"")

    def work(store: "FileSystem", key: str) -> ObjectFacts:
        content.seek(0)
        with store.open_output_stream(key) as stream:
            while chunk := content.read_buffer(_PART_BYTES):
                stream.write(chunk)
                if chunk.size < _PART_BYTES:
                    break
        return _facts(store.get_file_info(key), "")

    limit_s = REQUEST_LIMIT_S * (1 + num_bytes / _PART_BYTES)
    facts = _attempt(uri, "write", work, PATIENCE_S, limit_s)
    if facts.size_bytes != num_bytes:
        delete_object(uri)
        raise BucketError(
            uri, f"has {facts.size_bytes:,} bytes after the upload of {num_bytes:,}; run the command again"
        )
    return facts


def download_object(uri: str, path: Path, facts: ObjectFacts, advance: Callable[[int], object]) -> None:
    """Copy an object to a file, which appears when it is complete, with the object's time of change.

    Args:
        uri: Of the object.
        path: The file; its folder is made.
        facts: Size and time as listed; where the object has changed since, the copy has today's.
        advance: Called with the bytes that have come.

    Raises:
        BucketError: It cannot be read.
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        # Parts of two versions must not be mixed: the object is looked at again afterwards.
        while True:
            with temporary.open("wb") as sink:
                for start in range(0, facts.size_bytes, _PART_BYTES):
                    part = _read_part(uri, start, min(_PART_BYTES, facts.size_bytes - start))
                    sink.write(part)
                    advance(len(part))
            latest = stat_object(uri)
            if latest is None:
                raise BucketError(uri, "was removed while it was read", "missing_file")
            if (latest.size_bytes, latest.mtime_ns // 10**9) == (facts.size_bytes, facts.mtime_ns // 10**9):
                break
            facts = latest
        os.utime(temporary, ns=(time.time_ns(), facts.mtime_ns))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _read_part(uri: str, start: int, size: int) -> bytes:
    def work(store: "FileSystem", key: str) -> bytes:
        with store.open_input_file(key) as file:
            part = bytes(file.read_at(size, start))
        if len(part) != size:
            raise OSError(f"incomplete: {len(part):,} of {size:,} bytes at {start:,}")
        return part

    return _attempt(uri, "read", work, PATIENCE_S)


@contextmanager
def progress(num_bytes: int, uri: str) -> Iterator[Callable[[int], object]]:
    """Show a bar for a download of more than 1 GiB; yields what is called with the bytes that have come."""
    interval_s = 0.5 if sys.stderr.isatty() else 10.0
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "desc": uri}
    with tqdm(total=num_bytes, mininterval=interval_s, disable=num_bytes < _SHOWN_BYTES, **options) as bar:
        yield bar.update


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


def _facts(info: "FileInfo", name: str) -> ObjectFacts:
    return ObjectFacts(name, info.size or 0, info.mtime_ns or 0)


def _attempt(
    uri: str, act: str, work: "Callable[[FileSystem, str], T]", patience_s: float, limit_s: float | None = None
) -> T:
    """Call a function of client and path, again after errors that may pass, each time within a limit."""
    end_s, pause_s = time.monotonic() + patience_s, 0.5
    while True:
        try:
            return _within(uri, limit_s or min(REQUEST_LIMIT_S, max(patience_s, 1.0)), act, work)
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
    # boto3's are known by their package, which need not be installed.
    if isinstance(value, (OSError, pa.ArrowException)) or type(value).__module__.startswith("botocore"):
        raise explain_error(uri, value, act) from value
    if isinstance(value, StorageError):
        raise BucketError(uri, value.detail, value.reason, transient=True) from value
    assert isinstance(value, BaseException)
    raise value
