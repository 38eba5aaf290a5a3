"""Define the triplet and reject tables: schemas, ids, validation, and Parquet files written completely or not at all.

Imports nothing else of ``wm`` but its exception. Every stage exchanges these two tables
(rows in = triplets out + rejects out).
"""

import hashlib
import json
import os
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, Required, TypedDict, Unpack, cast

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from wm.errors import InputError

Origin = Literal["human", "idm", "fdm"]
Outcome = Literal["filtered", "failed"]

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])

_TRIPLET_FIELDS: list[tuple[str, pa.DataType]] = [
    ("triplet_id", pa.string()),
    ("dataset", pa.string()),
    ("split", pa.string()),
    ("class_label", pa.string()),
    ("video_uri", pa.string()),
    ("source_frame", pa.int32()),
    ("target_frame", pa.int32()),
    ("source_time_s", pa.float64()),
    ("target_time_s", pa.float64()),
    ("motion", pa.float32()),
    ("source_image", _IMAGE),
    ("target_image", _IMAGE),
    ("codec", pa.string()),
    ("source_codes", pa.list_(pa.uint16())),
    ("target_codes", pa.list_(pa.uint16())),
    ("change", pa.list_(pa.float32())),
    ("action", pa.string()),
    ("action_logprob", pa.float64()),
    ("action_tokens", pa.int32()),
    ("origin", pa.string()),
    ("annotator", pa.string()),
    ("status", pa.string()),
    ("license", pa.string()),
    ("reader", pa.string()),
]


def _hf_metadata(fields: Sequence[tuple[str, pa.DataType]]) -> dict[bytes, bytes]:
    """Build Hugging Face ``datasets`` features, so that ``load_dataset("parquet")`` decodes the two images."""

    def feature(kind: pa.DataType) -> dict[str, object]:
        if kind == _IMAGE:
            return {"_type": "Image"}
        if pa.types.is_list(kind):
            return {"_type": "List", "feature": {"_type": "Value", "dtype": _hf_dtype(kind.value_type)}}
        return {"_type": "Value", "dtype": _hf_dtype(kind)}

    info = {"info": {"features": {name: feature(kind) for name, kind in fields}}}
    return {b"huggingface": json.dumps(info).encode()}


def _hf_dtype(kind: pa.DataType) -> str:
    return {"double": "float64", "float": "float32"}.get(str(kind), str(kind))


TRIPLET_SCHEMA = pa.schema(_TRIPLET_FIELDS, metadata=_hf_metadata(_TRIPLET_FIELDS))
"""One row = (source image, action, target image).

``*_codes``: codebook ids of the image, row-major (not vocabulary ids of a language model).
``change``: squared L2 distance per image token between the pre-quantised features of source and target
(paper section 3.2, recognition model), raw; normalising it is training's choice.
``action_logprob``: sum of log-probabilities of the action's tokens in nats, ``action_tokens`` their count;
both null for human actions. ``motion``: mean optical-flow magnitude at the target key-frame, px/frame.
``origin``: ``human``, ``idm`` or ``fdm``. ``reader``: what decoded the two frames of a video, ``decord`` or
``pyav``. Unknown times, frames and motion are null.
"""

LATER_COLUMNS = frozenset({"reader"})
"""Columns that came after the first data sets were written: null where a file lacks them."""

REJECT_SCHEMA = pa.schema(
    [
        ("reject_id", pa.string()),
        ("dataset", pa.string()),
        ("split", pa.string()),
        ("class_label", pa.string()),
        ("uri", pa.string()),
        ("stage", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
    ]
)
"""One row = what was left out. ``outcome`` is ``filtered`` (fine, but not wanted: did not move enough) or ``failed``
(could not be used: not decodable, file missing). ``reason`` is a short stable slug to count by
(``missing_file``, ``no_video_stream``, ``time_out``); ``detail`` names the thing in words."""


class StoredImage(TypedDict):
    """An image in a row, as Hugging Face ``datasets`` stores one: its file's bytes, and its name or null."""

    bytes: bytes
    path: str | None


class TripletRow(TypedDict, total=False):
    """A row of :data:`TRIPLET_SCHEMA`. One that :func:`triplet_row` has built has every key, null where unknown."""

    triplet_id: str
    dataset: Required[str]
    split: Required[str]
    class_label: str | None
    video_uri: str | None
    source_frame: int | None
    target_frame: int | None
    source_time_s: float | None
    target_time_s: float | None
    motion: float | None
    source_image: Required[StoredImage]
    target_image: Required[StoredImage]
    codec: str | None
    source_codes: list[int] | None
    target_codes: list[int] | None
    change: list[float] | None
    action: Required[str]
    action_logprob: float | None
    action_tokens: int | None
    origin: Required[Origin]
    annotator: str | None
    status: str
    license: str | None
    reader: str | None


class RejectRow(TypedDict):
    """A row of :data:`REJECT_SCHEMA`."""

    reject_id: str
    dataset: str
    split: str
    class_label: str | None
    uri: str
    stage: str
    outcome: Outcome
    reason: str
    detail: str


STAGE_TABLES = {"triplets": TRIPLET_SCHEMA, "rejects": REJECT_SCHEMA}
"""Folders of the tables that every stage with triplets writes, and their schemas."""


def stable_id(*parts: object) -> str:
    """Compute 24 hexadecimal digits that depend on the parts alone: the same row has the same id in every run."""
    text = "\x1f".join("" if part is None else str(part) for part in parts)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def derive_seed(seed: int, *parts: object) -> int:
    """Derive a 63-bit seed from another seed and what names the row that it is for.

    The same in every process, and independent of the seeds of other rows: rows that share one seed share their noise,
    so that a mean over them averages nothing out.

    Args:
        seed: The seed of a run, 0 or more.
        parts: Strings or integers that name the row.

    Returns:
        The first 63 bits of the SHA-256 of ``[seed, *parts]`` as JSON, which fit an ``int64`` column.
    """
    text = json.dumps([seed, *parts], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


SEED_SCHEME = "of the run's seed and the row's id"
"""How rows get their seeds, recorded among a run's inputs: a folder half done in another way is not resumed."""


def row_seeds(seed: int, ids: Iterable[str | None]) -> list[int]:
    """Derive a seed for each row from the run's seed and the row's id.

    A row's seed does not change with the order of the rows, with their number or with how they are split. Only where an
    id occurs again does the row's position among those of the same id count, so that such rows stay independent too.

    Args:
        seed: The seed of the run, 0 or more.
        ids: Ids of the rows; a missing one is an empty string.

    Returns:
        One 63-bit seed a row.
    """
    occurrences: Counter[str] = Counter()
    seeds = []
    for row_id in ids:
        name = row_id or ""
        count = occurrences[name]
        occurrences[name] += 1
        # An id's first row has the seed that it has in a set without doubles.
        seeds.append(derive_seed(seed, name, count) if count else derive_seed(seed, name))
    return seeds


def reject_row(
    *,
    uri: str,
    stage: str,
    outcome: Outcome,
    reason: str,
    detail: str,
    dataset: str = "",
    split: str = "",
    class_label: str | None = "",
) -> RejectRow:
    """Build a row of :data:`REJECT_SCHEMA`.

    Args:
        uri: What was left out: a video, a triplet, an entry of a list.
        stage: The command that left it out.
        outcome: ``filtered`` (usable, but not wanted) or ``failed`` (could not be used).
        reason: A short stable name to count by, such as ``time_out``.
        detail: The reason in words, naming the thing.
        dataset: Name of the data set.
        split: Name of the split.
        class_label: The label of its class.

    Returns:
        The row; its id depends on dataset, uri, stage and reason alone.
    """
    return {
        "reject_id": stable_id(dataset, uri, stage, reason),
        "dataset": dataset,
        "split": split,
        "class_label": class_label,
        "uri": uri,
        "stage": stage,
        "outcome": outcome,
        "reason": reason,
        "detail": detail,
    }


def triplet_row(**columns: Unpack[TripletRow]) -> TripletRow:
    """Build a complete row of :data:`TRIPLET_SCHEMA`.

    Args:
        columns: Values by column; absent ones are null. Without a ``triplet_id`` the row gets one that depends on
            data set, video and frames.

    Returns:
        The row, with every column of the schema in its order.

    Raises:
        InputError: A column is unknown, or the row breaks a promise of the table (see :func:`check_triplet`).
    """
    unknown = sorted(set(columns) - set(TRIPLET_SCHEMA.names))
    if unknown:
        raise InputError(f"unknown triplet column {unknown[0]!r}; the columns are {', '.join(TRIPLET_SCHEMA.names)}")
    row = cast(TripletRow, {name: columns.get(name) for name in TRIPLET_SCHEMA.names})
    row["status"] = row["status"] or "ok"
    if columns.get("triplet_id") is None:
        row["triplet_id"] = stable_id(row["dataset"], row["video_uri"], row["source_frame"], row["target_frame"])
    check_triplet(row)
    return row


def check_triplet(row: TripletRow) -> None:
    """Check that a row keeps the table's promises.

    Args:
        row: A row with every column; its values may be of any type.

    Raises:
        InputError: It does not; the message names the row and the column.
    """
    values: Mapping[str, object] = row

    def fail(column: str, expected: str) -> None:
        raise InputError(f"triplet {row['triplet_id']}: {column} = {values[column]!r:.80}, expected {expected}")

    for column in ("triplet_id", "dataset", "split", "origin"):
        if not values[column]:
            fail(column, "a non-empty string")
    if row["origin"] not in ("human", "idm", "fdm"):
        fail("origin", "human, idm or fdm")
    if not isinstance(row["action"], str) or not row["action"].strip():
        fail("action", "a non-empty string")
    for column, image in (("source_image", row["source_image"]), ("target_image", row["target_image"])):
        if not image or not image.get("bytes"):
            fail(column, "an image with bytes")
    # Codes without their codec, or of two lengths, would train a model on noise.
    lengths = [len(codes) for codes in (row["source_codes"], row["target_codes"], row["change"]) if codes is not None]
    if lengths and (len(lengths) < 3 or len(set(lengths)) != 1):
        fail("change", "source_codes, target_codes and change of one length, or none of them")
    if lengths and not row["codec"]:
        fail("codec", "the id of the codec that made the codes")
    if row["origin"] == "idm" and (row["action_logprob"] is None or not row["action_tokens"]):
        fail("action_logprob", "a likelihood and a token count, because origin is idm")


def write_table(rows: Iterable[Mapping[str, object]], path: Path, schema: pa.Schema) -> int:
    """Write rows as one Parquet file, complete or not at all. Overwrites ``path``.

    Args:
        rows: Values by column; absent ones are null.
        path: The file; its folder is made.
        schema: Columns of the file.

    Returns:
        How many rows were written.

    Raises:
        OSError: The disk is full or may not be written.
    """
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=schema)
    # Small batches end a page in time: else a row group's images share one, and no reader can stream them.
    write_parquet(table, path, row_group_size=1024, is_durable=True, write_batch_size=16)
    return int(table.num_rows)


def write_parquet(
    table: pa.Table, path: Path, *, row_group_size: int, is_durable: bool = False, **options: object
) -> None:
    """Write a table as one Parquet file, to a temporary file that is then renamed. Overwrites ``path``.

    Args:
        table: The rows, maybe none.
        path: The file; its folder is made.
        row_group_size: Rows of a row group at most.
        is_durable: Wait until the disk has the file: or a power cut leaves the name without its content.
        options: Further options of ``pyarrow.parquet.ParquetWriter``.

    Raises:
        OSError: The disk is full or may not be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with pq.ParquetWriter(temporary, table.schema, compression="zstd", **options) as writer:
            # An empty row group would stop Hugging Face's datasets: "BatchSize must be greater".
            if table.num_rows:
                writer.write_table(table, row_group_size)
        # A rename can reach the disk before the content does.
        if is_durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def fill_empty_tables(out: str | Path, schemas: Mapping[str, pa.Schema], name: str) -> None:
    """Give every table without a file one without rows, so that whoever reads the folder finds them all.

    Args:
        out: Output folder of a stage.
        schemas: Folder below ``out`` → the table's schema.
        name: Name of a file without rows, such as ``part-00000.parquet``.
    """
    for table, schema in schemas.items():
        if not any((Path(out) / table).glob("*.parquet")):
            write_table([], Path(out) / table / name, schema)


def triplets_folder(folder: str | Path) -> Path:
    """Return the folder of Parquet triplets: ``triplets`` below a stage's output folder, else the folder itself."""
    inner = Path(folder) / "triplets"
    return inner if inner.is_dir() else Path(folder)


def table_files(folder: str | Path) -> list[Path]:
    """List the finished Parquet files below ``folder`` (or the one file), sorted; hidden names are left out."""
    root = Path(folder)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise InputError(f"no such folder of Parquet files: {root}")
    return sorted(
        file
        for file in root.rglob("*.parquet")
        if not any(part.startswith(".") for part in file.relative_to(root).parts)
    )


def checked_files(folder: str | Path, schema: pa.Schema = TRIPLET_SCHEMA) -> list[Path]:
    """List the files of :func:`table_files` and check their columns; only the ends of the files are read.

    Args:
        folder: A folder or a file.
        schema: Columns that each file must have.

    Returns:
        The files, sorted.

    Raises:
        InputError: There is no file, one cannot be read, or one lacks a column of the schema.
    """
    files = table_files(folder)
    if not files:
        raise InputError(f"no Parquet file below {folder}")
    for file in files:
        try:
            stored = pq.read_schema(file)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{file} is not a readable Parquet file: {' '.join(str(error).split())}") from error
        missing = [name for name in schema.names if name not in stored.names and name not in LATER_COLUMNS]
        if missing:
            raise InputError(f"{file} lacks the column {missing[0]!r}; columns found: {', '.join(stored.names)}")
    return files


def read_table(
    folder: str | Path, schema: pa.Schema = TRIPLET_SCHEMA, columns: Sequence[str] | None = None
) -> pa.Table:
    """Read a data set into memory.

    Args:
        folder: A folder or a file.
        schema: Its schema.
        columns: Columns to read; None: all.

    Returns:
        The rows, in the order of the files' names.

    Raises:
        InputError: There is no file, or one is damaged or of another schema.
    """
    files = checked_files(folder, schema)
    try:
        return pads.dataset([str(file) for file in files], schema=schema).to_table(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{_unreadable(files, schema)}: {' '.join(str(error).split())}") from error


def _unreadable(files: Sequence[Path], schema: pa.Schema) -> str:
    """Describe the file that could not be read, and the reason as far as its schema shows it."""
    for file in files:
        stored = pq.read_schema(file)
        for name in schema.names:
            if name in stored.names and stored.field(name).type != schema.field(name).type:
                return f"{file} has {name} as {stored.field(name).type}, expected {schema.field(name).type}"
        try:
            pads.dataset(str(file), schema=schema).to_table()
        except (pa.ArrowException, OSError):
            return f"{file} is damaged"
    return f"cannot read {files[0].parent}"
