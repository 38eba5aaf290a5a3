"""Read tables of triplets for training: select the rows, then stream their columns in chunks.

Two passes over the files. The first reads ids and status alone and selects and orders the rows; the second streams
codes, change and action, a few thousand rows at a time, and checks every selected row. No image is read, and memory
holds ids (some 100 bytes a row) and one chunk at a time.

Shape suffixes: F rows of all files in their order, P rows of a chunk, N tokens of an image.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
from pydantic import Field

from wm.config import Recipe
from wm.errors import InputError
from wm.paths import TablePath
from wm.records import TRIPLET_SCHEMA
from wm.tables import checked_files, local_files, table_files, triplets_folder
from wm.training.data.columns import read_batches

COLUMNS = ("triplet_id", "action", "codec", "source_codes", "target_codes", "change")
_LISTS = ("source_codes", "target_codes", "change")
_CODES_PER_CHUNK = 4_194_304
"""16 MB of them with ``change``, whatever the image's size."""

Codes = npt.NDArray[np.unsignedinteger]
Values = npt.NDArray[np.generic]


class Source(Recipe):
    """One table of triplets."""

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"weight": "mix_weight"}

    path: TablePath
    """Folder of triplet Parquet files, or a stage's output folder that holds ``triplets``."""
    mix_weight: float = Field(default=1.0, gt=0.0)
    """How often each row appears in an epoch: 2 twice, 0.5 a random half of the rows, anew each epoch."""
    limit: int = Field(default=0, ge=0)
    """Keep this many rows, sampled once with the recipe's seed; 0: all."""
    selection: TablePath = ""
    """Parquet file or folder with a column ``triplet_id`` (wm select writes one): only these rows; empty:
    all."""

    @property
    def folder(self) -> Path:
        """Return the folder of the Parquet files."""
        return triplets_folder(self.path)


@dataclass(frozen=True)
class CodecShape:
    """Properties of the codec with which rows must agree."""

    codec_id: str
    """Empty: not known (a folder without weights), and not compared."""
    tokens_per_image: int
    num_codes: int

    @property
    def code_type(self) -> np.dtype[np.unsignedinteger]:
        """Return the smallest type of 2 or 4 bytes that holds every code."""
        return np.dtype("<u2" if self.num_codes <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class RowSelection:
    """The rows of a source that training uses."""

    files: list[Path]
    rank_F: npt.NDArray[np.int64]  # noqa: N815
    """Position of each row among the selected ones, which are sorted by ``triplet_id``; -1: not selected."""
    is_checked_F: npt.NDArray[np.bool_]  # noqa: N815
    """Rows that are checked: selected and of status ``ok``, also those that the limit leaves out."""
    num_rows: int
    num_skipped: int
    """Rows left out because their ``status`` is not ``ok``."""


@dataclass(frozen=True)
class RowChunk:
    """Some of the selected rows, in the order of the files."""

    rank_P: npt.NDArray[np.int64]  # noqa: N815
    names: pa.Array
    """Their ``triplet_id``."""
    actions: list[str | None]
    source_PN: Codes  # noqa: N815
    target_PN: Codes  # noqa: N815
    change_PN: npt.NDArray[np.float32]  # noqa: N815


def select_rows(source: Source, generator: np.random.Generator) -> RowSelection:
    """Select a source's rows of status ``ok``, sort them by ``triplet_id`` and sample the limit.

    Args:
        source: The table; only ids and status are read.
        generator: Samples the limit.

    Returns:
        The selection.

    Raises:
        InputError: A missing folder, another schema, a damaged file, a selection of unknown rows, or no usable row.
    """
    # 1. Which rows are usable.
    files = checked_files(source.folder)
    parts = [batch for file in files for batch in read_batches(file, ("triplet_id", "status"), 65_536)]
    table = pa.Table.from_batches(parts, pa.schema([TRIPLET_SCHEMA.field(name) for name in ("triplet_id", "status")]))
    is_selected_F = np.ones(table.num_rows, np.bool_)
    if source.selection:
        is_selected_F = pc.is_in(table.column("triplet_id"), _read_selection(table, source)).to_numpy()
    is_ok_F = pc.fill_null(pc.equal(table.column("status"), "ok"), False).to_numpy()
    is_checked_F = is_selected_F & is_ok_F
    num_skipped = int((is_selected_F & ~is_ok_F).sum())
    if not is_checked_F.any():
        raise InputError(
            f"{source.folder} has no row to train on ({int(is_selected_F.sum())} rows, {num_skipped} not of status "
            "'ok')"
        )
    # 2. Their order. By id, so that it does not depend on how rows are spread over files.
    order = pc.sort_indices(table.select(["triplet_id"]), sort_keys=[("triplet_id", "ascending")]).to_numpy()
    order = order[is_checked_F[order]]
    if 0 < source.limit < len(order):
        order = order[np.sort(generator.choice(len(order), source.limit, replace=False))]
    rank_F = np.full(table.num_rows, -1, np.int64)
    rank_F[order] = np.arange(len(order))
    return RowSelection(files, rank_F, is_checked_F, len(order), num_skipped)


def read_chunks(source: Source, selection: RowSelection, codec: CodecShape) -> Iterator[RowChunk]:
    """Read the selected rows, a chunk at a time, and check them.

    Args:
        source: The table.
        selection: Its selected rows.
        codec: Of the base model.

    Yields:
        Chunks in the order of the files.

    Raises:
        InputError: Rows without codes, with another codec's, of another length, outside the codebook, or with a
            ``change`` that is negative or not finite; at the latest at the end.
    """
    checks = _ColumnChecks(source.folder, codec, int(selection.is_checked_F.sum()))
    rows_at_a_time = max(1, min(4096, _CODES_PER_CHUNK // codec.tokens_per_image))
    start = 0
    for file in selection.files:
        for batch in read_batches(file, COLUMNS, rows_at_a_time):
            stop = start + batch.num_rows
            is_checked, rank = selection.is_checked_F[start:stop], selection.rank_F[start:stop]
            start = stop
            # After a problem nothing more is yielded, but the rest is still counted for the message.
            if not is_checked.any() or not checks.add(batch.filter(pa.array(is_checked))):
                continue
            rows = batch.filter(pa.array(rank >= 0))
            if rows.num_rows:
                yield _to_chunk(rows, rank[rank >= 0], file, codec)
    checks.finish()


@dataclass
class _ColumnChecks:
    """Checks complete columns; a problem is reported with its count, when all rows were read."""

    folder: Path
    codec: CodecShape
    num_rows: int
    num_without_codes: int = 0
    codecs: list[str] = field(default_factory=list)
    lengths: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in _LISTS})

    def add(self, batch: pa.RecordBatch) -> bool:
        """Add a batch; return whether there is no problem so far."""
        # Null codes: a table that was ingested without a codec.
        self.num_without_codes += batch.column("source_codes").null_count
        new = pc.unique(batch.column("codec")).to_pylist()
        self.codecs += [name for name in new if name not in self.codecs]
        for name in _LISTS:
            self.lengths[name] |= set(pc.unique(pc.list_value_length(batch.column(name))).to_pylist())
        return self.num_without_codes == 0 and self._problem() == ""

    def finish(self) -> None:
        """Raise :class:`InputError` if there was a problem."""
        if self.num_without_codes:
            made_with = f"codec {self.codec.codec_id}" if self.codec.codec_id else "the base model's codec"
            raise InputError(
                f"{self.folder}: {self.num_without_codes} of {self.num_rows} triplets have no image codes; "
                f"make them with wm encode, or with wm ingest and {made_with}"
            )
        if problem := self._problem():
            raise InputError(problem)

    def _problem(self) -> str:
        expected = self.codec.codec_id or self.codecs[0]
        # Codes of two codecs are the same numbers of other meanings: nothing else would show it.
        for codec_id in self.codecs:
            if codec_id != expected:
                reads = f"the base model reads codec {expected}" if self.codec.codec_id else f"of codec {expected} too"
                return (
                    f"{self.folder} holds codes of codec {codec_id}, {reads}; "
                    "make them anew with wm encode, or with wm ingest and the base model's codec"
                )
        # Reported with both lengths, since the wrong codec is the usual reason.
        for name, lengths in self.lengths.items():
            for length in sorted(lengths - {self.codec.tokens_per_image}, key=str):
                return (
                    f"{self.folder}: {name} of length {length}, expected {self.codec.tokens_per_image}, the codec's "
                    "tokens per image"
                )
        return ""


def _to_chunk(batch: pa.RecordBatch, rank_P: npt.NDArray[np.int64], file: Path, codec: CodecShape) -> RowChunk:
    values = {}
    for name in _LISTS:
        flat = batch.column(name).flatten().to_numpy(zero_copy_only=False)
        values[name] = flat.reshape(batch.num_rows, -1)
    # Damaged values would train silently: a code of another image's part, a weight that is negative.
    for name in ("source_codes", "target_codes"):
        is_good_PN = values[name] < codec.num_codes
        _check_values(is_good_PN, values[name], batch, f"{file}: {name}", f"codes below {codec.num_codes}")
    change = values["change"]
    _check_values(np.isfinite(change) & (change >= 0), change, batch, f"{file}: change", "numbers from 0 up")
    return RowChunk(
        rank_P,
        batch.column("triplet_id"),
        batch.column("action").to_pylist(),
        values["source_codes"].astype(codec.code_type, copy=False),
        values["target_codes"].astype(codec.code_type, copy=False),
        change,
    )


def _check_values(
    is_good_PN: npt.NDArray[np.bool_], values_PN: Values, batch: pa.RecordBatch, title: str, expected: str
) -> None:
    if not is_good_PN.all():
        row, token = np.argwhere(~is_good_PN)[0]
        name = batch.column("triplet_id")[int(row)]
        raise InputError(f"{title} of triplet {name} holds {values_PN[row, token]}, expected {expected}")


def _read_selection(table: pa.Table, source: Source) -> pa.Array:
    """Read the ids of the selection, all of which must be in the table."""
    files = [str(file) for file in local_files(table_files(source.selection))]
    if not files:
        raise InputError(f"no Parquet file below selection {source.selection}")
    # Ids alone: a selection may come with all columns of its table.
    dataset = pads.dataset(files)
    if "triplet_id" not in dataset.schema.names:
        raise InputError(
            f"{source.selection} lacks the column 'triplet_id'; columns found: {', '.join(dataset.schema.names)}"
        )
    ids = pc.unique(dataset.to_table(columns=["triplet_id"]).column("triplet_id"))
    # A selection of another table would silently train on nothing, or on the rest.
    unknown = ids.filter(pc.invert(pc.is_in(ids, table.column("triplet_id").combine_chunks())))
    if len(unknown):
        raise InputError(
            f"{source.selection} selects {len(unknown)} triplets that {source.path} does not hold, "
            f"{unknown[0]} among them"
        )
    return ids
