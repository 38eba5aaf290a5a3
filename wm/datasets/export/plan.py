"""Plan which rows go into which part of an export: decided from footers and small columns, without reading an image."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from wm.datasets.export.row_filter import RowFilter
from wm.errors import InputError, to_line
from wm.records import LATER_COLUMNS, TRIPLET_SCHEMA
from wm.tables import table_files, triplets_folder


@dataclass(frozen=True)
class Slice:
    """Rows [start, stop) of a Parquet file; the unwanted ones among them are left out when it is read."""

    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class Part:
    """What one process writes at a time. ``first_row`` counts the exported rows before it, ``rows`` its own."""

    number: int
    first_row: int
    rows: int
    slices: tuple[Slice, ...]


@dataclass(frozen=True)
class Plan:
    """``rows`` were found; of them ``not_selected`` and ``other_split`` are left out. ``num_bytes``: of the images
    exported, estimated; ``max_bytes``: of one part. ``splits`` and ``tasks`` (sorted): of the exported rows, where
    the format asks for them."""

    parts: list[Part]
    files: int
    rows: int
    not_selected: int
    other_split: int
    num_bytes: int
    max_bytes: int
    splits: list[str] = field(default_factory=list)
    tasks: pa.Array | None = None

    @property
    def exported(self) -> int:
        """Rows that are exported."""
        return sum(part.rows for part in self.parts)


def plan_export(
    triplets: str | Path,
    rows: RowFilter,
    *,
    max_bytes: int,
    max_rows: int,
    with_tasks: bool = False,
    on_file: Callable[[int, int], object] = lambda num_read, total: None,
) -> Plan:
    """Cut a data set into parts of about ``max_bytes`` of images and at most ``max_rows`` rows.

    Args:
        triplets: Folder of Parquet files, or the output folder of a stage that holds ``triplets``.
        rows: Which rows are exported.
        max_bytes: Estimated bytes of images of a part.
        max_rows: Rows of a part.
        with_tasks: Also gather the splits and the different actions (their texts stay in memory).
        on_file: Called with the number of files read, and of all.

    Raises:
        InputError: A file has another schema, an id of the selection is absent or occurs twice, or nothing would be
            left.
    """
    files = _triplet_files(triplets)
    # One pass over the footers and small columns; images are not read.
    cutter, tally = _Cutter(max_bytes, max_rows), _Tally(rows, with_tasks)
    for number, file in enumerate(files, 1):
        for first, is_exported, row_bytes in _row_groups(file, tally):
            cutter.add(str(file), first, is_exported, row_bytes)
        on_file(number, len(files))
    # A selection of another data set would export less than it names, in silence.
    tally.check(triplets)
    parts = cutter.finish()
    if not parts:
        raise InputError(f"nothing to export: none of the {tally.rows:,} rows of {triplets} is wanted")
    return Plan(
        parts=parts,
        files=len(files),
        rows=tally.rows,
        not_selected=tally.not_selected,
        other_split=tally.other_split,
        num_bytes=int(cutter.total_bytes),
        max_bytes=max_bytes,
        splits=sorted(tally.splits),
        tasks=pa.array(sorted(tally.tasks), pa.string()) if with_tasks else None,
    )


def _triplet_files(triplets: str | Path) -> list[Path]:
    # A stage's own folder holds rejects and clips too: only its triplets are meant.
    files = table_files(triplets_folder(triplets))
    if not files:
        raise InputError(f"no Parquet file below {triplets}")
    # Parts are written by processes that may work in another folder.
    return [file.absolute() for file in files]


class _Tally:
    """Counts of rows, and which ids of the selection were met."""

    def __init__(self, rows: RowFilter, with_tasks: bool) -> None:
        self.filter = rows
        self.with_tasks = with_tasks
        self.rows = self.not_selected = self.other_split = 0
        self.splits: set[str] = set()
        self.tasks: set[str] = set()
        self._met = np.zeros(0 if rows.ids is None else len(rows.ids), bool)

    @property
    def columns(self) -> list[str]:
        """List the columns that must be read of each row."""
        return list(dict.fromkeys([*self.filter.columns, *(["split", "action"] if self.with_tasks else [])]))

    def add(self, count: int, table: pa.Table | None) -> npt.NDArray[np.bool_]:
        """Count ``count`` rows (``table``: their :attr:`columns`, if any); True for those that are exported."""
        self.rows += count
        if table is None:
            return np.ones(count, bool)
        is_exported = np.ones(count, bool)
        if self.filter.ids is not None:
            # Selection first, split second: a row is counted under one reason only.
            is_exported = self._meet(table.column("triplet_id"))
            self.not_selected += int((~is_exported).sum())
        if self.filter.split is not None:
            mine = np.array([value == self.filter.split for value in table.column("split").to_pylist()], bool)
            self.other_split += int((is_exported & ~mine).sum())
            is_exported &= mine
        if self.with_tasks:
            exported = table.filter(pa.array(is_exported))
            self.splits.update(split or "" for split in exported.column("split").unique().to_pylist())
            self.tasks.update(action or "" for action in exported.column("action").unique().to_pylist())
        return is_exported

    def _meet(self, ids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
        positions = self.filter.positions(ids)
        hits = positions[positions >= 0]
        # An id that occurs twice would be exported twice under one file name.
        if self._met[hits].any() or len(np.unique(hits)) != len(hits):
            twice = next(position for position in hits if self._met[position] or (hits == position).sum() > 1)
            raise InputError(f"triplet_id {self._name(twice)} occurs twice in the triplets; export needs a clean set")
        self._met[hits] = True
        return positions >= 0

    def _name(self, position: int) -> str:
        assert self.filter.ids is not None
        return bytes(self.filter.ids[position]).decode()

    def check(self, triplets: str | Path) -> None:
        """Raise :class:`InputError` if the selection names ids that were not met."""
        # Only after the last file: ids come in any order.
        absent = np.flatnonzero(~self._met)
        if len(absent):
            raise InputError(
                f"{len(absent):,} of the {len(self._met):,} selected ids are not in {triplets}, "
                f"{self._name(absent[0])} for one; the selection is of another data set"
            )


class _Cutter:
    """Gathers wanted rows in order and starts a new part when one is full."""

    def __init__(self, max_bytes: int, max_rows: int) -> None:
        self.max_bytes, self.max_rows = max_bytes, max_rows
        self.total_bytes = 0.0
        self._parts: list[Part] = []
        self._slices: list[Slice] = []
        self._rows, self._bytes, self._first = 0, 0.0, 0

    def add(self, file: str, first: int, is_exported: npt.NDArray[np.bool_], row_bytes: float) -> None:
        """Take the wanted rows of a row group whose first row is number ``first`` of its file."""
        positions = np.flatnonzero(is_exported)
        self.total_bytes += len(positions) * row_bytes
        while len(positions):
            # A part ends at whichever limit comes first; a row larger than a part gets its own.
            capacity = min(self.max_rows - self._rows, int((self.max_bytes - self._bytes) // max(1, row_bytes)))
            if capacity < 1 and self._rows:
                self._close()
                continue
            batch, positions = positions[: max(1, capacity)], positions[max(1, capacity) :]
            self._append(Slice(file, first + int(batch[0]), first + int(batch[-1]) + 1))
            self._rows += len(batch)
            self._bytes += len(batch) * row_bytes

    def _append(self, span: Slice) -> None:
        last = self._slices[-1] if self._slices else None
        if last is not None and last.file == span.file:
            # Rows between the two are unwanted, or they would be in one of them.
            self._slices[-1] = Slice(last.file, last.start, span.stop)
        else:
            self._slices.append(span)

    def _close(self) -> None:
        self._parts.append(Part(len(self._parts), self._first, self._rows, tuple(self._slices)))
        self._first += self._rows
        self._slices, self._rows, self._bytes = [], 0, 0.0

    def finish(self) -> list[Part]:
        """Close the last part and return all parts."""
        if self._rows:
            self._close()
        return self._parts


def _row_groups(file: Path, tally: _Tally) -> Iterable[tuple[int, npt.NDArray[np.bool_], float]]:
    """Yield (number of the first row, mask of the exported rows, image bytes a row) of every row group of a file."""
    try:
        with pq.ParquetFile(file) as opened:
            _check_columns(file, opened.schema_arrow)
            first = 0
            for number in range(opened.num_row_groups):
                group = opened.metadata.row_group(number)
                # Small columns only: images are never read for a plan.
                columns = tally.columns
                table = opened.read_row_group(number, columns=columns) if columns else None
                is_exported = tally.add(group.num_rows, table)
                yield first, is_exported, _image_bytes(group) / max(1, group.num_rows)
                first += group.num_rows
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{file} is not a readable Parquet file: {to_line(error)}") from error


def _check_columns(file: Path, schema: pa.Schema) -> None:
    # Another type would be cast by some readers and refused by others.
    for field_ in TRIPLET_SCHEMA:
        if field_.name not in schema.names:
            if field_.name in LATER_COLUMNS:
                continue
            raise InputError(f"{file} lacks the column {field_.name!r}; columns found: {', '.join(schema.names)}")
        if schema.field(field_.name).type != field_.type:
            raise InputError(f"{file} has {field_.name} as {schema.field(field_.name).type}, expected {field_.type}")


def _image_bytes(group: pq.RowGroupMetaData) -> int:
    # Compressed: images hardly shrink, so that this is about what an export writes.
    columns = [group.column(number) for number in range(group.num_columns)]
    return sum(
        column.total_compressed_size
        for column in columns
        if column.path_in_schema.startswith(("source_image.", "target_image."))
    )
