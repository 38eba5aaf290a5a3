"""Read and write tables: Parquet files, written completely or not at all, checked against a schema when read.

Knows no column: schemas are the caller's, that of triplets is the default.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from wm.errors import InputError, to_line
from wm.files.atomic import replace_file
from wm.records import LATER_COLUMNS, TRIPLET_SCHEMA


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
    with replace_file(path) as temporary:
        with pq.ParquetWriter(temporary, table.schema, compression="zstd", **options) as writer:
            # An empty row group would stop Hugging Face's datasets: "BatchSize must be greater".
            if table.num_rows:
                writer.write_table(table, row_group_size)
        # A rename can reach the disk before the content does.
        if is_durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())


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


def open_parquet(file: str | Path) -> pq.ParquetFile:
    """Open a Parquet file to be read in small parts: a row group of images may be large.

    Raises:
        InputError: It names the file, which cannot be read.
    """
    try:
        return pq.ParquetFile(file, buffer_size=1 << 20)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is not a readable Parquet file: {to_line(error)}") from error


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
        with open_parquet(file) as parquet:
            names = parquet.schema_arrow.names
        missing = [name for name in schema.names if name not in names and name not in LATER_COLUMNS]
        if missing:
            raise InputError(f"{file} lacks the column {missing[0]!r}; columns found: {', '.join(names)}")
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
        raise InputError(f"{_unreadable(files, schema)}: {to_line(error)}") from error


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
