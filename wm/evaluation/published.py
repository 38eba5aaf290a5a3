"""Load the numbers that the paper prints, with where each is printed. Knows no result of ours."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from wm.config import read_toml

_FILE = Path(__file__).parent / "published.toml"
_CELL = re.compile(r"(?P<bold>\*?)(?P<value>-?\d+(?:\.(?P<decimals>\d+))?)(?P=bold)(?P<mark>†?)")
NO_CELL = "-"
"""A cell without a number in the paper."""


@dataclass(frozen=True)
class PublishedCell:
    """A printed number: its value, digits after the point, whether it is bold, and the mark behind it."""

    value: float
    digits: int
    is_bold: bool = False
    mark: str = ""


@dataclass(frozen=True)
class PublishedTable:
    """A printed table.

    Attributes:
        key: Its name in ``published.toml``.
        source: Version and number, such as ``ACL, Table 2``.
        title: What it shows.
        columns: Names of the columns.
        rows: Row → column → cell; cells without a number are not there.
    """

    key: str
    source: str
    title: str
    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, PublishedCell]]

    def cell(self, row: str, column: str) -> PublishedCell | None:
        """Return a cell, or None where the paper prints none.

        Args:
            row: Its title.
            column: Its head.

        Returns:
            The number.
        """
        return self.rows.get(row, {}).get(column)


@lru_cache(maxsize=1)
def load_published() -> dict[str, PublishedTable]:
    """Load all printed tables by their keys.

    Raises:
        InputError: The file cannot be read.
        ValueError: A row does not fit its columns.
    """
    return {key: _build_table(key, value) for key, value in read_toml(_FILE).items() if isinstance(value, dict)}


def list_contradictions(key: str) -> tuple[str, ...]:
    """List what the paper's numbers of a table or figure contradict, in the file's order.

    Args:
        key: Such as ``table-2`` or ``figure-7``.
    """
    return tuple(entry["text"] for entry in read_toml(_FILE)["contradictions"] if key in entry["tables"])


def parse_row(text: str, columns: Sequence[str]) -> dict[str, PublishedCell]:
    """Parse a row of the file.

    Args:
        text: Cells separated by blanks: ``*0.29*†`` is bold with a mark, ``-`` is empty.
        columns: Their columns.

    Returns:
        Column → cell.

    Raises:
        ValueError: A cell is not a number, or there are more or fewer cells than columns.
    """
    # A shifted number would be of another column.
    parts = text.split()
    if len(parts) != len(columns):
        raise ValueError(f"{text!r}: {len(parts)} cells for {len(columns)} columns")
    cells = {}
    for column, part in zip(columns, parts, strict=True):
        if part == NO_CELL:
            continue
        # Digits are kept as printed: 4.00 is not 4.
        match = _CELL.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r}: expected a number, as in *0.29*†")
        cells[column] = PublishedCell(
            float(match["value"]), len(match["decimals"] or ""), bool(match["bold"]), match["mark"]
        )
    return cells


def _build_table(key: str, table: Mapping[str, object]) -> PublishedTable:
    # A file of the package, which a test reads in full.
    rows, columns = table["rows"], table["columns"]
    if not isinstance(rows, dict) or not isinstance(columns, list):
        raise ValueError(f"{key}: expected rows and columns")
    return PublishedTable(
        key=key,
        source=str(table["source"]),
        title=str(table["title"]),
        columns=tuple(map(str, columns)),
        rows={str(name): parse_row(str(text), columns) for name, text in rows.items()},
    )
