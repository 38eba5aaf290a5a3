"""Read some columns of a Parquet file of triplets, a few rows at a time. What they mean is not known here."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from wm.errors import InputError, to_line
from wm.records import TRIPLET_SCHEMA
from wm.tables import open_columns


def read_batches(file: Path, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Read a file's columns through a small buffer: a row group may be larger than the memory.

    Args:
        file: Of a table of triplets.
        columns: Their names.
        rows: Of a batch, at most.

    Yields:
        Batches in the order of the file, cast to the table's types.

    Raises:
        InputError: The file is damaged, or a column is of another type.
    """
    try:
        # One thread: workers of a node read at the same time.
        with open_columns(file) as parquet:
            for batch in parquet.iter_batches(rows, columns=list(columns), use_threads=False):
                yield _cast(batch, columns, file)
    # pyarrow's messages have several lines, a user error one.
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {to_line(error)}") from error


def _cast(batch: pa.RecordBatch, columns: Sequence[str], file: Path) -> pa.RecordBatch:
    """Cast columns to the table's types; codes may be wider numbers, which another codec may need."""
    arrays = []
    for name in columns:
        array, expected = batch.column(name), TRIPLET_SCHEMA.field(name).type
        is_list = pa.types.is_list(array.type) or pa.types.is_large_list(array.type)
        is_codes = name in ("source_codes", "target_codes")
        if is_codes and is_list and pa.types.is_unsigned_integer(array.type.value_type):
            expected = array.type
        try:
            arrays.append(array if array.type == expected else array.cast(expected))
        except pa.ArrowException as error:
            raise InputError(f"{file} has {name} as {array.type}, expected {expected}") from error
    return pa.RecordBatch.from_arrays(arrays, names=list(columns))
