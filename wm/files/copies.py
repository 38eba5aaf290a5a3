"""Copy single files to and from an object store: in parts, complete or not at all, with the object's time of change.

Not known here: which file belongs where (:mod:`wm.files.mirror`).
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from tqdm import tqdm

from wm.files.atomic import temporary_path
from wm.files.store_errors import BucketError
from wm.files.transfer import REQUEST_LIMIT_S, ObjectFacts, attempt, delete_object, stat_object, to_facts

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

_PART_BYTES = 8 << 20
_SHOWN_BYTES = 1 << 30


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
        return to_facts(store.get_file_info(key), "")

    limit_s = REQUEST_LIMIT_S * (1 + num_bytes / _PART_BYTES)
    facts = attempt(uri, "write", work, limit_s=limit_s)
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
                    size = min(_PART_BYTES, facts.size_bytes - start)
                    part = _read_part(uri, start, size, is_all=size == facts.size_bytes)
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


def _read_part(uri: str, start: int, size: int, *, is_all: bool) -> bytes:
    def work(store: "FileSystem", key: str) -> bytes:
        # A small object is one request; Google's client lets no other thread run while it opens one for random reads.
        if is_all:
            with store.open_input_stream(key) as stream:
                part = bytes(stream.read(size))
        else:
            with store.open_input_file(key) as file:
                part = bytes(file.read_at(size, start))
        if len(part) != size:
            raise OSError(f"incomplete: {len(part):,} of {size:,} bytes at {start:,}")
        return part

    return attempt(uri, "read", work)


@contextmanager
def progress(num_bytes: int, uri: str) -> Iterator[Callable[[int], object]]:
    """Show a bar for a download of more than 1 GiB.

    Args:
        num_bytes: Of the download.
        uri: What is downloaded.

    Yields:
        What is called with the bytes that have come.
    """
    interval_s = 0.5 if sys.stderr.isatty() else 10.0
    options = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "desc": uri}
    with tqdm(total=num_bytes, mininterval=interval_s, disable=num_bytes < _SHOWN_BYTES, **options) as bar:
        yield bar.update
