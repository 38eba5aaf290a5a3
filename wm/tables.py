"""Read and write tables: Parquet files, written completely or not at all, checked against a schema when read.

Knows no column: schemas are the caller's, that of triplets is the default. Tables in a bucket (see
:mod:`wm.files.mirror`) are listed there, and a file is fetched when it is opened.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from wm.errors import InputError, MissingPathError, to_line
from wm.files.atomic import replace_file
from wm.files.mirror import fetch, list_below, mirrored_path, publish, uri_of
from wm.records import LATER_COLUMNS, TRIPLET_SCHEMA

SOME_THREADS = 16
"""Footers that are read from a bucket at a time."""


def write_table(rows: Iterable[Mapping[str, object]], path: Path, schema: pa.Schema) -> int:
    """Write rows as one Parquet file, complete or not at all. Overwrites ``path``; one of a bucket is published.

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

    One of a bucket is published: what other nodes have written is listed there, and so must this be.

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
    publish(path)


def fill_empty_tables(out: str | Path, schemas: Mapping[str, pa.Schema], name: str) -> None:
    """Give every table without a file one without rows, so that whoever reads the folder finds them all.

    Args:
        out: Output folder of a stage.
        schemas: Folder below ``out`` → the table's schema.
        name: Name of a file without rows, such as ``part-00000.parquet``.
    """
    for table, schema in schemas.items():
        folder = Path(out) / table
        if not has_files(folder) or not table_files(folder):
            write_table([], Path(out) / table / name, schema)


def triplets_folder(folder: str | Path) -> Path:
    """Return the folder of Parquet triplets: ``triplets`` below a stage's output folder, else the folder itself."""
    inner = Path(folder) / "triplets"
    return inner if has_files(inner) else Path(folder)


def has_files(folder: Path) -> bool:
    """Return whether a folder is there.

    Args:
        folder: Of this machine, or one that stands for a folder of a bucket, where it is looked for.
    """
    if uri_of(folder) is None:
        return folder.is_dir()
    names = [facts.name for facts in list_below(folder, missing_ok=True)]
    return bool(names) and names != [""]


def table_files(folder: str | Path) -> list[Path]:
    """List the finished Parquet files below ``folder`` (or the one file), sorted; hidden names are left out.

    Files of a bucket need not be here: :func:`open_parquet` and :func:`local_files` fetch them.
    """
    root = Path(folder)
    uri = uri_of(root)
    if uri is not None:
        root = mirrored_path(uri)
        names = [facts.name for facts in list_below(root)]
        if names == [""]:
            return [root]
        files = [root / name for name in names if name.endswith(".parquet")]
    elif root.is_file():
        return [root]
    elif root.is_dir():
        files = list(root.rglob("*.parquet"))
    else:
        raise MissingPathError(root, "folder of Parquet files")
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(root).parts))


def local_files(files: Sequence[Path]) -> list[Path]:
    """Fetch those files that are in a bucket, for readers that open files by themselves.

    Args:
        files: As :func:`table_files` lists them.

    Returns:
        Where each is on this node.
    """
    return [fetch(file) for file in files]


def open_parquet(file: str | Path) -> pq.ParquetFile:
    """Open a Parquet file to be read in small parts: a row group of images may be large. One of a bucket is fetched.

    Raises:
        InputError: It names the file, which cannot be read.
    """
    # Not held: an open file outlives its name, and is fetched again if it is opened again.
    file = fetch(file, hold=False)
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
    for file, footer in zip(files, read_footers(files), strict=True):
        names = footer.schema.to_arrow_schema().names
        missing = [name for name in schema.names if name not in names and name not in LATER_COLUMNS]
        if missing:
            raise InputError(f"{file} lacks the column {missing[0]!r}; columns found: {', '.join(names)}")
    return files


def open_columns(file: str | Path) -> pq.ParquetFile:
    """Open a Parquet file of which few columns are read: one of a bucket is read there, not fetched.

    Args:
        file: The file.

    Raises:
        InputError: It names the file, which cannot be read.
    """
    uri = uri_of(file)
    if uri is None:
        return open_parquet(file)
    from wm.files.transfer import explain_error, object_store

    try:
        store, path = object_store(uri)
        return pq.ParquetFile(store.open_input_file(path), buffer_size=1 << 20, pre_buffer=True)
    except (pa.ArrowException, OSError) as error:
        raise explain_error(uri, error, "read") from error


def read_footers(files: Sequence[Path]) -> list[pq.FileMetaData]:
    """Read columns and numbers of rows of Parquet files, here or in a bucket, from their ends.

    Args:
        files: All of one place.

    Raises:
        InputError: It names the file that cannot be read.
    """

    def read(file: Path) -> pq.FileMetaData:
        uri = uri_of(file)
        if uri is None:
            with open_parquet(file) as parquet:
                return parquet.metadata
        from wm.files.transfer import read_footer

        return read_footer(uri)

    if not files or uri_of(files[0]) is None:
        return [read(file) for file in files]
    with ThreadPoolExecutor(SOME_THREADS) as pool:
        return list(pool.map(read, files))


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
    if columns is None:
        files = local_files(files)
    try:
        return open_dataset(files, schema).to_table(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{_unreadable(files, schema)}: {to_line(error)}") from error


def open_dataset(files: Sequence[Path], schema: pa.Schema) -> pads.Dataset:
    """Open Parquet files as one data set; of a bucket's files only the columns that are read come over the network.

    Args:
        files: As :func:`checked_files` lists them, or local copies of them.
        schema: Their schema.
    """
    uri = uri_of(files[0])
    if uri is None or all(file.exists() for file in files):
        return pads.dataset([str(file) for file in files], schema=schema)
    from wm.files.transfer import object_store

    store, _ = object_store(uri)
    paths = [object_store(str(uri_of(file)))[1] for file in files]
    return pads.dataset(paths, schema=schema, format="parquet", filesystem=store)


def _unreadable(files: Sequence[Path], schema: pa.Schema) -> str:
    """Describe the file that could not be read, and the reason as far as its schema shows it."""
    for file in files:
        file = fetch(file)  # noqa: PLW2901 - the copy is the same file
        stored = pq.read_schema(file)
        for name in schema.names:
            if name in stored.names and stored.field(name).type != schema.field(name).type:
                return f"{file} has {name} as {stored.field(name).type}, expected {schema.field(name).type}"
        try:
            pads.dataset(str(file), schema=schema).to_table()
        except (pa.ArrowException, OSError):
            return f"{file} is damaged"
    return f"cannot read {files[0].parent}"
