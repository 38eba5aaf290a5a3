"""Build the listing of videos: one Arrow row a video or segment, so that millions fit into memory."""

import hashlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from wm.datasets.videos.passed_over import PassedOver
from wm.files.uris import escape_path, escape_text, is_remote, is_text, local_path

LISTING_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("key", pa.string()),
        ("class_label", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("license", pa.string()),
    ]
)
"""One row = one video, or one segment of one; it need not be readable.

``uri``: how to open it from where the specification was given: a local path, or ``s3://``, ``gs://``, ``http(s)://``;
``file://`` where the path is no UTF-8, percent-encoded, for a video that is to become a reject.
``key``: its name within the listing (relative to the folder or the glob's fixed part, or as written in the list; a
segment's ends in ``#`` and its times or id), the same wherever the data lie: ids are made of it. ``class_label``: empty
where it is not known. ``start_s``, ``end_s``: the segment in seconds of the file's own clock, null = from its
beginning, to its end. ``license``: empty where it is not known.
"""

PASSED_OVER = "passed_over"
_BATCH_ROWS = 16384
_STAT_ROWS = 2048
_STAT_THREADS = 8


class Entry(NamedTuple):
    """One row of :data:`LISTING_SCHEMA`."""

    uri: str
    key: str
    class_label: str = ""
    start_s: float | None = None
    end_s: float | None = None
    license: str = ""


def segment_key(key: str, start_s: float | None, end_s: float | None) -> str:
    """Return ``key#start-end`` with the times in full, so that no two segments share one.

    Args:
        key: Of the video.
        start_s: Begin in seconds; None: of the file.
        end_s: Its end.
    """
    return f"{key}#{'' if start_s is None else repr(start_s)}-{'' if end_s is None else repr(end_s)}"


def make_listing(entries: Iterator[Entry], notes: Mapping[str, str], passed_over: PassedOver | None = None) -> pa.Table:
    """Build a table of :data:`LISTING_SCHEMA` from entries, sorted by key, each key once (the first entry counts).

    The schema's metadata hold ``notes`` and ``passed_over`` (both read after the entries), and ``duplicates``, how many
    entries were left out because their key was there already. An entry whose file name is no UTF-8 stays, its name
    escaped: see :func:`_escape_entry`.

    Args:
        entries: In any order.
        notes: Texts for the metadata.
        passed_over: What the caller has passed over so far.
    """
    passed_over = passed_over or PassedOver()
    batches = []
    while batch := list(itertools.islice(entries, _BATCH_ROWS)):
        try:
            values = [pa.array(v, f.type) for v, f in zip(zip(*batch, strict=True), LISTING_SCHEMA, strict=True)]
        # Rare, so every entry is tried as it is first: looking at a million names costs seconds.
        except UnicodeEncodeError:
            batch = [_escape_entry(entry, passed_over) for entry in batch]
            values = [pa.array(v, f.type) for v, f in zip(zip(*batch, strict=True), LISTING_SCHEMA, strict=True)]
        batches.append(pa.Table.from_arrays(values, schema=LISTING_SCHEMA))
    table = pa.concat_tables(batches) if batches else LISTING_SCHEMA.empty_table()
    columns = dict(zip(table.column_names, table.columns, strict=True))
    num_entries = table.num_rows
    # The sorted copy is built from the columns one by one; nothing else may hold them.
    del table, batches
    order = _order_of_first(columns["key"])
    # A key makes ids: two rows of one key would become triplets of one id.
    if num_entries > len(order):
        passed_over.add("duplicates", _first_twice(columns["key"]), num_entries - len(order))
    sorted_columns = {}
    for name in LISTING_SCHEMA.names:  # column by column, so that no two complete copies exist at once
        sorted_columns[name] = columns.pop(name).take(order)
        pa.default_memory_pool().release_unused()
    metadata = {**notes, "duplicates": str(num_entries - len(order)), PASSED_OVER: passed_over.dumps()}
    return pa.table(sorted_columns, schema=LISTING_SCHEMA.with_metadata(metadata))


def _order_of_first(keys: pa.ChunkedArray) -> pa.Array:
    """Return the rows in the order of their keys (by code point, as Python sorts), of equal keys the first one only."""
    order = pc.sort_indices(keys)  # stable
    ordered = keys.take(order)
    if len(ordered) < 2:
        return order
    is_new = pc.not_equal(ordered[1:], ordered[:-1])
    return order.filter(pa.concat_arrays([pa.array([True]), *is_new.chunks]))


def _first_twice(keys: pa.ChunkedArray) -> str:
    """Return the first key, in alphabetical order, that occurs twice."""
    ordered = keys.take(pc.sort_indices(keys))
    twice = ordered[1:].filter(pc.equal(ordered[1:], ordered[:-1]))
    return str(twice[0].as_py())


def passed_over_of(listing: pa.Table) -> dict[str, Any]:
    """Return what the listing passed over: the record of :class:`wm.datasets.videos.passed_over.PassedOver`."""
    return dict(json.loads(listing_note(listing, PASSED_OVER) or "{}"))


def listing_note(listing: pa.Table, name: str) -> str:
    """Return a note of the listing, such as ``duplicates`` or ``unnamed`` (see ``list_videos``); "" if it has none.

    Args:
        listing: Of :func:`make_listing`.
        name: Of the note.
    """
    return str((listing.schema.metadata or {}).get(name.encode(), b"").decode())


def listing_digest(listing: pa.Table) -> str:
    """Compute 16 hexadecimal digits of what is listed, to detect that the input has changed.

    Keys, classes, segments and licences; of local files also size and time of change, looked up now by several threads;
    of remote files what the object store's listing said of them (a file in a list is not asked about).
    """
    digest = hashlib.sha256(listing_note(listing, "versions").encode())
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        batches = listing.to_batches(max_chunksize=_STAT_ROWS)
        for start in range(0, len(batches), 64):  # a few at a time: their texts are larger than the table
            for part in pool.map(_describe_batch, batches[start : start + 64]):
                digest.update(part)
    return digest.hexdigest()[:16]


def _describe_batch(batch: pa.RecordBatch) -> bytes:
    # The URI only says where a file is; its version says what is in it.
    rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
    return "".join(f"{row[1:]!r}\x1f{_read_version(row[0])}\n" for row in rows).encode(errors="surrogateescape")


def _read_version(uri: str) -> str:
    if "://" in uri:
        # A request for each of a million files would take hours; the store's listing has given size and time.
        if is_remote(uri):
            return "remote"
        uri = local_path(uri)
    try:
        facts = os.stat(uri)  # noqa: PTH116 - a million times
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return "absent"
    return f"{facts.st_size}\x1f{facts.st_mtime_ns}"


def _escape_entry(entry: Entry, passed_over: PassedOver) -> Entry:
    r"""Return an entry whose texts are Unicode: tables, JSON and logs hold nothing else.

    The video is not opened under its own name: it becomes a reject, ``bad_name``
    (:func:`wm.video.errors.check_name`). Its ``uri`` is the file's URI with the bytes percent-encoded, its ``key`` is
    written as Python writes bytes, which no other key below a folder looks like.
    """
    if is_text(entry.uri) and is_text(entry.key) and is_text(entry.class_label):
        return entry
    # It stays a row, so that nothing vanishes without a reject.
    passed_over.add("not_unicode", entry.key)
    return entry._replace(
        uri=escape_path(entry.uri),
        key=entry.key if is_text(entry.key) else repr(os.fsencode(entry.key)),
        class_label=escape_text(entry.class_label),
    )
