"""Open and read tables that name videos or images: CSV with a header, a JSON list; local or fetched.

Knows no data set: which columns there are is the caller's.
"""

import csv
import json
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from wm.errors import InputError
from wm.files.storage import download
from wm.files.storage_errors import StorageError
from wm.files.uris import is_remote, local_path

Row: TypeAlias = tuple[str, list[str]]
"""Where a row is, in words for a message, and its values in the order of the requested columns."""

_LIMIT_S = 600.0
_LIMIT_BYTES = 4 << 30
_JSON_KEY = re.compile(r'"(\w+)"\s*:')


@contextmanager
def local_copy(uri: str, key: str) -> Iterator[Path]:
    """Open the file behind a path or URI as a local path; a remote one is downloaded and removed afterwards.

    Args:
        uri: Path or URI.
        key: Recipe key that names it, for messages.

    Raises:
        InputError: Begins with ``key`` and names the file.
    """
    if not is_remote(uri):
        path = Path(local_path(uri))
        if not os.path.isfile(path):  # noqa: PTH113 - of a name that is too long, pathlib raises
            raise InputError(f"{key} = {uri!r:.200}: no such file")
        if not os.access(path, os.R_OK):
            raise InputError(f"{key} = {uri!r} may not be read")
        yield path
        return
    # Parsed from disk: a list of millions of rows does not fit into memory twice.
    with tempfile.TemporaryDirectory(prefix="wm-") as folder:
        path = Path(folder, "list")
        try:
            download(uri, path, time_limit_s=_LIMIT_S, max_bytes=_LIMIT_BYTES)
        except StorageError as error:
            raise InputError(f"{key} = {uri!r}: {error.detail}") from error
        yield path


def csv_rows(
    path: Path,
    name: str,
    columns: Sequence[str],
    required: Sequence[str],
    delimiter: str = ",",
    *,
    errors: str = "strict",
) -> Iterator[Row]:
    """Read the rows of a CSV file with a header.

    Args:
        path: The file.
        name: What messages call it.
        columns: Titles of the values of a row.
        required: Titles that must be there, each with a value in every row.
        delimiter: Character between two fields.
        errors: How bytes that are no UTF-8 are decoded; ``surrogateescape`` keeps them in the values (PEP 383).

    Yields:
        Position of a row in words and its values, empty where there is none.

    Raises:
        InputError: A required column or value is missing, or a row is too long or holds a zero byte.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="", errors=errors) as file:
            reader = csv.reader(file, delimiter=delimiter)
            header = [title.strip() for title in next(reader, [])]
            for title in required:
                if title not in header:
                    titles = ", ".join(header)[:200] or "none"
                    raise InputError(f"{name} line 1: no column {title!r}; columns found: {titles}")
            # Columns may be in any order, and there may be more.
            positions = [header.index(title) if title in header else -1 for title in columns]
            required_positions = [(header.index(title), title) for title in required]
            # Each row is checked as it comes: a list of millions is never held.
            for row in reader:
                if not any(row):
                    continue
                where = f"{name} line {reader.line_num}"
                # More fields than titles: an unquoted comma has shifted the values.
                if len(row) > len(header):
                    raise InputError(f"{where}: {len(row)} fields, expected the {len(header)} of the header")
                for position, title in required_positions:
                    if position >= len(row) or not row[position].strip():
                        raise InputError(f"{where}: no value for {title!r}")
                if errors == "strict" and any("\0" in value for value in row):
                    raise InputError(f"{where} holds a zero byte; expected text")
                yield where, [row[position] if 0 <= position < len(row) else "" for position in positions]
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is no list (not UTF-8 text)") from error
    except csv.Error as error:
        raise InputError(f"{name} line {reader.line_num}: {error}; expected comma- or tab-separated values") from error


def csv_titles(head: str) -> set[str]:
    """Return the titles of the first line of a comma-separated table."""
    return {title.strip().strip('"') for title in head.partition("\n")[0].split(",")}


def load_json_list(path: Path, name: str) -> list[object]:
    """Load a non-empty JSON list.

    Args:
        path: The file.
        name: Its name for messages.

    Raises:
        InputError: It is no JSON, no list, or empty.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of too many digits
        raise InputError(f"{name} is not valid JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        length = len(rows) if isinstance(rows, list) else 1
        raise InputError(f"{name} holds {type(rows).__name__} of length {length}; expected a non-empty list of rows")
    return rows


def json_keys(head: str) -> set[str]:
    """Return the keys that occur at the beginning of a JSON list; none of any other text."""
    return set(_JSON_KEY.findall(head)) if head.lstrip().startswith("[") else set()
