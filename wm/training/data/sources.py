"""Tables of triplets as training reads them: which rows, then their columns, in pieces.

Two passes over the files. The first reads ids and status alone and says which rows are used and in which order; the
second streams codes, change and action, a few thousand rows at a time, and checks every row that is used. No image is
read, and what is held in memory at once is ids (some 100 bytes a row) and one piece.

Shape suffixes: F rows of all files in their order, P rows of a piece, N tokens of an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pydantic import Field

from wm.config import Recipe
from wm.errors import InputError
from wm.paths import InputPath
from wm.records import TRIPLET_SCHEMA, checked_files, table_files

COLUMNS = ("triplet_id", "action", "codec", "source_codes", "target_codes", "change")
_LISTS = ("source_codes", "target_codes", "change")
_VALUES_AT_A_TIME = 4_194_304
"""Codes of a piece: 16 MB of them with ``change``, whatever the image's size."""

Array = npt.NDArray[Any]


class Source(Recipe):
    """One table of triplets."""

    RENAMED_KEYS: ClassVar[dict[str, str]] = {"weight": "mix_weight"}

    path: InputPath
    """Folder of triplet Parquet files, or a stage's output folder that holds ``triplets``."""
    mix_weight: float = Field(default=1.0, gt=0.0)
    """How often each row appears in an epoch: 2 twice, 0.5 a random half of the rows, anew each epoch."""
    limit: int = Field(default=0, ge=0)
    """Keep this many rows, drawn once with the recipe's seed; 0: all."""
    selection: InputPath = ""
    """Parquet file or folder with a column ``triplet_id`` (jobs.select writes one): only these rows; empty:
    all."""

    @property
    def folder(self) -> Path:
        """Where the Parquet files are."""
        root = Path(self.path)
        return root / "triplets" if (root / "triplets").is_dir() else root


@dataclass(frozen=True)
class CodecShape:
    """What rows must agree with. ``codec_id`` empty: not known (a folder without weights), and not compared."""

    codec_id: str
    tokens_per_image: int
    num_codes: int

    @property
    def code_type(self) -> np.dtype[Any]:
        """The smallest type of 2 or 4 bytes that holds every code."""
        return np.dtype("<u2" if self.num_codes <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class Chosen:
    """The rows of a source that training uses."""

    files: list[Path]
    rank_F: npt.NDArray[np.int64]  # noqa: N815
    """Of each row of the files: its place among the rows used, which are sorted by ``triplet_id``; -1: not used."""
    is_checked_F: npt.NDArray[np.bool_]  # noqa: N815
    """The rows that must be in order: selected and of status ``ok``, also those that the limit leaves out."""
    num_rows: int
    num_skipped: int
    """Rows left out because their ``status`` is not ``ok``."""


@dataclass(frozen=True)
class Piece:
    """Some of the rows used, in the order of the files."""

    rank_P: npt.NDArray[np.int64]  # noqa: N815
    names: pa.Array
    """Their ``triplet_id``."""
    actions: list[str | None]
    source_PN: Array  # noqa: N815
    target_PN: Array  # noqa: N815
    change_PN: npt.NDArray[np.float32]  # noqa: N815


def choose_rows(source: Source, generator: np.random.Generator) -> Chosen:
    """Select, drop rows that are not ``ok``, sort by ``triplet_id`` and draw the limit; reads no other column.

    Raises :class:`InputError` for a missing folder, another schema, a damaged file, a selection of unknown rows, and
    no usable row.
    """
    files = checked_files(source.folder)
    parts = [batch for file in files for batch in _batches(file, ("triplet_id", "status"), 65_536)]
    table = pa.Table.from_batches(parts, pa.schema([TRIPLET_SCHEMA.field(name) for name in ("triplet_id", "status")]))
    is_selected_F = np.ones(table.num_rows, np.bool_)
    if source.selection:
        is_selected_F = _to_numpy(pc.is_in(table.column("triplet_id"), _selected(table, source)))
    is_ok_F = _to_numpy(pc.fill_null(pc.equal(table.column("status"), "ok"), False))
    is_checked_F = is_selected_F & is_ok_F
    num_skipped = int((is_selected_F & ~is_ok_F).sum())
    if not is_checked_F.any():
        raise InputError(
            f"{source.folder} has no row to train on ({int(is_selected_F.sum())} rows, {num_skipped} not of status "
            "'ok')"
        )
    order = pc.sort_indices(table.select(["triplet_id"]), sort_keys=[("triplet_id", "ascending")]).to_numpy()
    order = order[is_checked_F[order]]
    if 0 < source.limit < len(order):
        order = order[np.sort(generator.choice(len(order), source.limit, replace=False))]
    rank_F = np.full(table.num_rows, -1, np.int64)
    rank_F[order] = np.arange(len(order))
    return Chosen(files, rank_F, is_checked_F, len(order), num_skipped)


def read_pieces(source: Source, chosen: Chosen, codec: CodecShape) -> Iterator[Piece]:
    """Read the rows used, a chunk at a time; raises :class:`InputError`, at the latest at the end, for rows without
    codes, with another codec's, of another length, outside the codebook, and for a ``change`` that is no number from 0
    up."""
    checks = _Checks(source.folder, codec, int(chosen.is_checked_F.sum()))
    rows_at_a_time = max(1, min(4096, _VALUES_AT_A_TIME // codec.tokens_per_image))
    start = 0
    for file in chosen.files:
        for batch in _batches(file, COLUMNS, rows_at_a_time):
            stop = start + batch.num_rows
            is_checked, rank = chosen.is_checked_F[start:stop], chosen.rank_F[start:stop]
            start = stop
            if not is_checked.any() or not checks.fit(batch.filter(pa.array(is_checked))):
                continue
            kept = batch.filter(pa.array(rank >= 0))
            if kept.num_rows:
                yield _piece(kept, rank[rank >= 0], file, codec)
    checks.finish()


@dataclass
class _Checks:
    """What is wrong with a whole column is told with its count, when all rows were seen."""

    folder: Path
    codec: CodecShape
    num_rows: int
    num_bare: int = 0
    codecs: list[str] = field(default_factory=list)
    lengths: dict[str, set[int]] = field(default_factory=lambda: {name: set() for name in _LISTS})

    def fit(self, batch: pa.RecordBatch) -> bool:
        """Note a batch; whether all is well until now."""
        self.num_bare += batch.column("source_codes").null_count
        new = pc.unique(batch.column("codec")).to_pylist()
        self.codecs += [name for name in new if name not in self.codecs]
        for name in _LISTS:
            self.lengths[name] |= set(pc.unique(pc.list_value_length(batch.column(name))).to_pylist())
        return self.num_bare == 0 and self._problem() == ""

    def finish(self) -> None:
        """Raise what was found."""
        if self.num_bare:
            made_with = f"codec {self.codec.codec_id}" if self.codec.codec_id else "the base model's codec"
            raise InputError(
                f"{self.folder}: {self.num_bare} of {self.num_rows} triplets have no image codes; "
                f"make them with jobs.ingest and {made_with}"
            )
        if self._problem():
            raise InputError(self._problem())

    def _problem(self) -> str:
        wanted = self.codec.codec_id or self.codecs[0]
        for found in self.codecs:
            if found != wanted:
                reads = f"the base model reads codec {wanted}" if self.codec.codec_id else f"of codec {wanted} too"
                return (
                    f"{self.folder} holds codes of codec {found}, {reads}; "
                    "make them anew with jobs.ingest and the base model's codec"
                )
        for name, lengths in self.lengths.items():
            for length in sorted(lengths - {self.codec.tokens_per_image}, key=str):
                return (
                    f"{self.folder}: {name} of length {length}, expected {self.codec.tokens_per_image}, the codec's "
                    "tokens per image"
                )
        return ""


def _piece(batch: pa.RecordBatch, rank_P: npt.NDArray[np.int64], file: Path, codec: CodecShape) -> Piece:
    values = {name: _values(batch, name) for name in _LISTS}
    for name in ("source_codes", "target_codes"):
        _need(values[name] < codec.num_codes, values[name], batch, f"{file}: {name}", f"codes below {codec.num_codes}")
    change = values["change"]
    _need(np.isfinite(change) & (change >= 0), change, batch, f"{file}: change", "numbers from 0 up")
    return Piece(
        rank_P,
        batch.column("triplet_id"),
        batch.column("action").to_pylist(),
        values["source_codes"].astype(codec.code_type, copy=False),
        values["target_codes"].astype(codec.code_type, copy=False),
        change,
    )


def _values(batch: pa.RecordBatch, name: str) -> Array:
    flat: Array = batch.column(name).flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(batch.num_rows, -1)


def _need(is_good_PN: Array, values_PN: Array, batch: pa.RecordBatch, what: str, expected: str) -> None:
    if not is_good_PN.all():
        row, place = np.argwhere(~is_good_PN)[0]
        name = batch.column("triplet_id")[int(row)]
        raise InputError(f"{what} of triplet {name} holds {values_PN[row, place]}, expected {expected}")


def _batches(file: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Of one file, read through a small buffer: a row group may be larger than the memory."""
    try:
        with pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as parquet:
            for batch in parquet.iter_batches(rows, columns=list(columns), use_threads=False):
                yield _cast(batch, columns, file)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {' '.join(str(error).split())}") from error


def _cast(batch: pa.RecordBatch, columns: Sequence[str], file: Path) -> pa.RecordBatch:
    """To the table's types; codes may be wider numbers, of which another codec may need them."""
    arrays = []
    for name in columns:
        array, wanted = batch.column(name), TRIPLET_SCHEMA.field(name).type
        if name in ("source_codes", "target_codes") and _is_list_of_integers(array.type):
            wanted = array.type
        try:
            arrays.append(array if array.type == wanted else array.cast(wanted))
        except pa.ArrowException as error:
            raise InputError(f"{file} has {name} as {array.type}, expected {wanted}") from error
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))


def _is_list_of_integers(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind)) and bool(
        pa.types.is_unsigned_integer(kind.value_type)
    )


def _selected(table: pa.Table, source: Source) -> pa.Array:
    """Read the ids of the selection; all of them must be in the table."""
    files = [str(file) for file in table_files(source.selection)]
    if not files:
        raise InputError(f"no Parquet file below selection {source.selection}")
    dataset = pads.dataset(files)
    if "triplet_id" not in dataset.schema.names:
        raise InputError(
            f"{source.selection} lacks the column 'triplet_id'; columns found: {', '.join(dataset.schema.names)}"
        )
    wanted = pc.unique(dataset.to_table(columns=["triplet_id"]).column("triplet_id"))
    unknown = wanted.filter(pc.invert(pc.is_in(wanted, table.column("triplet_id").combine_chunks())))
    if len(unknown):
        raise InputError(
            f"{source.selection} selects {len(unknown)} triplets that {source.path} does not hold, "
            f"{unknown[0]} among them"
        )
    return wanted


def _to_numpy(flags: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    values: npt.NDArray[np.bool_] = flags.to_numpy()
    return values
