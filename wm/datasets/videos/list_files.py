"""Read list files: .txt (one URI a line), .csv, .tsv, .jsonl and .parquet with ``uri`` and optional columns."""

import codecs
import itertools
import math
import os
import posixpath
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from wm.datasets.videos.listing import Entry, segment_key
from wm.datasets.videos.tables import csv_rows
from wm.errors import InputError, to_line
from wm.files.uris import is_name, is_remote, is_text, join_uri, local_path, scheme_of
from wm.runs import parse_json

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".jsonl", ".parquet")
COLUMNS = ("uri", "class_label", "start_s", "end_s", "license")
"""Columns that are read; ``uri`` must be there, others may be missing or empty, more are left alone."""

ESCAPE = "surrogateescape"
"""How names that are no UTF-8 are read (PEP 383): as the file system gives them, so that each row stays."""

Resolver: TypeAlias = Callable[[str], tuple[str, str]]
"""Maps a URI as a list has it to URI and key."""
Row: TypeAlias = tuple[str, Sequence[object]]
"""Where a row is, in words for a message, and its values in the order of :data:`COLUMNS`."""


def is_list_name(uri: str) -> bool:
    """Return whether a name ends as a list file's does."""
    return uri.lower().endswith(LIST_SUFFIXES)


def read_list(path: Path, name: str, label: Callable[[str], str]) -> Iterator[Entry]:
    """Read the entries of a list file.

    Every row counts, whether something is there or not; a local ``uri`` may hold bytes that are no UTF-8, as file
    names do.

    Args:
        path: The list, a local file.
        name: Its path or URI as the user wrote it: relative URIs are relative to its folder.
        label: From a key to the class of an entry without one.

    Raises:
        InputError: Names file, line and what was expected: no ``uri``, times that are no numbers, negative or not in
            order, an unknown scheme, text that is none, an empty list.
    """
    bare = name.split("?", 1)[0] if is_remote(name) else name
    suffix = Path(bare).suffix.lower()
    # 1. Rows of whatever format, as they are read.
    if suffix == ".parquet":
        rows = _parquet_rows(path, name)
    elif suffix == ".jsonl":
        rows = _jsonl_rows(path, name)
    elif suffix == ".txt":
        rows = _txt_rows(path, name)
    else:
        _check_encoding(path, name)
        rows = csv_rows(path, name, COLUMNS, ("uri",), "\t" if suffix == ".tsv" else ",", errors=ESCAPE)
    # 2. Each as an entry; relative URIs are relative to the list.
    resolve = _remote_resolver(name) if is_remote(name) else _local_resolver(local_path(name))
    rows = iter(rows)
    # A generator: an empty list must fail here, before anything is written for it.
    first = next(rows, None)
    if first is None:
        raise InputError(f"videos = {name!r} lists no video; expected one row a video, with its uri")
    for where, values in itertools.chain([first], rows):
        yield _build_entry(where, values, resolve, label)


def _check_encoding(path: Path, name: str) -> None:
    """Refuse UTF-16, whose bytes would be taken for names that are no UTF-8."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise InputError(f"{name} is no list (not UTF-8 text but UTF-16); save it as UTF-8")


def _txt_rows(path: Path, name: str) -> Iterator[Row]:
    _check_encoding(path, name)
    with path.open(encoding="utf-8-sig", errors=ESCAPE) as file:
        for number, line in enumerate(file, 1):
            # A line is all URI: it may hold commas and blanks.
            text = line.strip()
            if text and not text.startswith("#"):
                yield f"{name} line {number}", (text, "", None, None, "")


def _jsonl_rows(path: Path, name: str) -> Iterator[Row]:
    _check_encoding(path, name)
    with path.open(encoding="utf-8-sig", errors=ESCAPE) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{name} line {number}"
            # A wrong line is named by its number, not by an offset in the file.
            row = parse_json(line, where)
            if not isinstance(row, dict):
                raise InputError(f"{where}: {line.strip()!r:.60}; expected an object with uri")
            yield where, [row.get(title) for title in COLUMNS]


def _parquet_rows(path: Path, name: str) -> Iterator[Row]:
    try:
        with pq.ParquetFile(path) as file:
            titles = file.schema_arrow.names
            if "uri" not in titles:
                raise InputError(f"{name}: no column 'uri'; columns found: {', '.join(titles)[:200]}")
            number = 0
            for batch in file.iter_batches(columns=[title for title in COLUMNS if title in titles]):
                # Batch by batch: a list of millions of rows does not fit into memory as Python objects.
                empty = [None] * batch.num_rows
                columns = [_to_values(batch, title, name) if title in titles else empty for title in COLUMNS]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield f"{name} row {number}", values
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{name} is not a readable Parquet file: {to_line(error)}") from error


def _to_values(batch: pa.RecordBatch, title: str, name: str) -> list[object]:
    column, kind = batch.column(title), pa.float64() if title in ("start_s", "end_s") else pa.string()
    if pa.types.is_boolean(column.type):
        raise InputError(f"{name}: column {title!r} holds bool, expected {kind}")
    try:
        values = column.cast(kind)
        values.validate(full=True)  # a file may call text what is no UTF-8
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        if kind == pa.string() and "UTF8" in str(error):
            return [value if value is None else value.decode("utf-8", ESCAPE) for value in _to_bytes(column)]
        raise InputError(f"{name}: column {title!r} holds {column.type}, expected {kind}") from None
    # pandas writes a missing number as NaN when it keeps its types.
    if kind == pa.float64():
        values = pc.if_else(pc.is_nan(values), pa.scalar(None, kind), values)
    return list(values.to_pylist())


def _to_bytes(column: pa.Array) -> list[bytes | None]:
    """Return the bytes of a column of text or bytes."""
    large = pa.types.is_large_string(column.type) or pa.types.is_large_binary(column.type)
    values: list[bytes | None] = column.cast(pa.large_binary() if large else pa.binary()).to_pylist()
    return values


def _check_text(where: str, title: str, text: str, is_local: bool = False) -> None:
    """Refuse what no table can hold: a zero byte, and in all but local names what is no Unicode text."""
    if "\0" in text:
        raise InputError(f"{where}: {title} = {text!r:.60} holds a zero byte; expected text")
    if is_text(text) or (is_local and is_name(text)):
        return
    raise InputError(f"{where}: {title} = {text!r:.60} is no Unicode text; expected UTF-8 without lone surrogates")


def _build_entry(where: str, row: Sequence[object], resolve: Resolver, label: Callable[[str], str]) -> Entry:
    values = dict(zip(COLUMNS, row, strict=True))
    # 1. Texts.
    address, class_label, licence = (_to_text(values[name], name, where) for name in ("uri", "class_label", "license"))
    if not address.strip():
        raise InputError(f"{where}: no value for 'uri'")
    _check_text(where, "class_label", class_label)
    _check_text(where, "license", licence)
    try:
        uri, key = resolve(address.strip())
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    for text in (address.strip(), uri):  # as it is written first; %00 shows in the path only
        _check_text(where, "uri", text, is_local=not is_remote(uri))
    # A class in the list comes before what the path says.
    class_label = class_label.strip() or label(key)
    # 2. Times.
    start_s, end_s = (_to_seconds(values[name], name, where) for name in ("start_s", "end_s"))
    if start_s is None and end_s is None:
        return Entry(uri, key, class_label, None, None, licence)
    if end_s is not None and end_s <= (start_s or 0.0):
        raise InputError(f"{where}: end_s = {end_s:g}, expected more than start_s = {start_s or 0.0:g}")
    return Entry(uri, segment_key(key, start_s, end_s), class_label, start_s, end_s, licence)


def _to_text(value: object, title: str, where: str) -> str:
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: {title} = {value!r:.60}, expected text")
    return value or ""


def _to_seconds(value: object, title: str, where: str) -> float | None:
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        seconds = math.nan if isinstance(value, bool) or not isinstance(value, int | float | str) else float(value)
    except (ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise InputError(f"{where}: {title} = {value!r:.60}, expected seconds, 0 or more")
    return seconds + 0.0  # -0.0 becomes 0.0: a segment has one key


def _local_resolver(name: str) -> Resolver:
    folder = os.path.dirname(name)  # noqa: PTH120 - joined a million times; pathlib costs ten times as much

    def resolve(address: str) -> tuple[str, str]:
        if "://" in address and scheme_of(address):
            if is_remote(address):
                return address, address
            address = local_path(address)
        # Normalised only where it can change anything: this runs once a row of millions.
        if "./" in address or "//" in address:
            address = posixpath.normpath(address)
        return os.path.join(folder, address), address  # noqa: PTH118

    return resolve


def _remote_resolver(name: str) -> Resolver:
    # A list from elsewhere may not name files of this machine.
    folder = parent_uri(name)

    def resolve(address: str) -> tuple[str, str]:
        if "://" in address and scheme_of(address):
            if not is_remote(address):
                raise InputError(f"{address!r:.200} is local; a remote list may name remote files only")
            return address, address
        # It would be joined to the bucket, or be a file of this machine.
        if address.startswith("/"):
            raise InputError(f"{address!r:.200} is an absolute path; a remote list may name URIs and relative paths")
        return join_uri(folder, address), address

    return resolve


def parent_uri(uri: str) -> str:
    """Return the folder of a remote file; an object store's options are kept, an HTTP query is not."""
    if scheme_of(uri) in ("http", "https"):
        return join_uri(uri.split("?", 1)[0].split("#", 1)[0].rpartition("/")[0], "")
    return join_uri(uri, "..")
