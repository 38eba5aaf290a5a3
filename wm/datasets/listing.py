"""The listing of videos: one Arrow row a video or segment, so that millions fit into memory."""

import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from wm.errors import InputError
from wm.uris import is_remote

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

``uri``: how to open it from where the specification was given: a local path, or ``s3://``, ``gs://``, ``http(s)://``.
``key``: its name within the listing (relative to the folder or the glob's fixed part, or as written in the list; a
segment's ends in ``#`` and its times or id), the same wherever the data lie: ids are made of it. ``class_label``: empty
where nothing tells it. ``start_s``, ``end_s``: the segment in seconds of the file's own clock, null = from its
beginning, to its end. ``license``: empty where nothing tells it.
"""

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


def make_listing(entries: Iterator[Entry], notes: Mapping[str, str]) -> pa.Table:
    """The entries as a table of :data:`LISTING_SCHEMA`, sorted by key, each key once (the first one met).

    The schema's metadata hold ``notes`` (read after the entries) and ``duplicates``, how many entries were left out
    because their key was there already. Raises :class:`InputError` on a name that is not UTF-8.
    """
    batches = []
    while batch := list(itertools.islice(entries, _BATCH_ROWS)):
        try:
            values = [pa.array(v, f.type) for v, f in zip(zip(*batch, strict=True), LISTING_SCHEMA, strict=True)]
        except UnicodeEncodeError:
            raise _not_text(batch) from None
        batches.append(pa.Table.from_arrays(values, schema=LISTING_SCHEMA))
    table = pa.concat_tables(batches) if batches else LISTING_SCHEMA.empty_table()
    columns = dict(zip(table.column_names, table.columns, strict=True))
    num_entries = table.num_rows
    del table, batches
    order = _order_of_first(columns["key"])
    sorted_columns = {}
    for name in LISTING_SCHEMA.names:  # column by column, so that no two whole copies stand beside each other
        sorted_columns[name] = columns.pop(name).take(order)
        pa.default_memory_pool().release_unused()
    metadata = {**notes, "duplicates": str(num_entries - len(order))}
    return pa.table(sorted_columns, schema=LISTING_SCHEMA.with_metadata(metadata))


def _order_of_first(keys: pa.ChunkedArray) -> pa.Array:
    """Rows in the order of their keys (by code point, as Python sorts), of equal keys the first one only."""
    order = pc.sort_indices(keys)  # stable
    ordered = keys.take(order)
    if len(ordered) < 2:
        return order
    is_new = pc.not_equal(ordered[1:], ordered[:-1])
    return order.filter(pa.concat_arrays([pa.array([True]), *is_new.chunks]))


def listing_note(listing: pa.Table, name: str) -> str:
    """What the listing tells of itself: ``layout``, ``duplicates`` or ``unnamed`` (see ``list_videos``)."""
    return str((listing.schema.metadata or {}).get(name.encode(), b"").decode())


def listing_digest(listing: pa.Table) -> str:
    """16 hexadecimal digits of what is listed: has the input changed?

    Keys, classes, segments and licences; of local files also size and time of change, looked up now by several threads;
    of remote files what the object store's listing told of them (a file in a list is not asked about).
    """
    digest = hashlib.sha256(listing_note(listing, "versions").encode())
    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        batches = listing.to_batches(max_chunksize=_STAT_ROWS)
        for start in range(0, len(batches), 64):  # a few at a time: their texts are larger than the table
            for part in pool.map(_facts, batches[start : start + 64]):
                digest.update(part)
    return digest.hexdigest()[:16]


def _facts(batch: pa.RecordBatch) -> bytes:
    rows = zip(*(column.to_pylist() for column in batch.columns), strict=True)
    return "".join(f"{row[1:]!r}\x1f{_version(row[0])}\n" for row in rows).encode(errors="surrogateescape")


def _version(uri: str) -> str:
    if "://" in uri and is_remote(uri):
        return "remote"
    try:
        facts = os.stat(uri)  # noqa: PTH116 - a million times
    except (OSError, ValueError):  # ValueError: a zero byte in the name
        return "absent"
    return f"{facts.st_size}\x1f{facts.st_mtime_ns}"


def _not_text(batch: list[Entry]) -> InputError:
    """Names become text columns: bytes that are no UTF-8 are refused at once, not in the middle of a run."""
    texts = (value for entry in batch for value in entry if isinstance(value, str))
    name = next(text for text in texts if any("\ud800" <= character <= "\udfff" for character in text))
    return InputError(f"file name {name.encode(errors='surrogateescape')!r} is not UTF-8; rename the file")
