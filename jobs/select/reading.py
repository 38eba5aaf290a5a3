"""Read the rows of triplets and pairs for ``select``, a few columns and a batch at a time."""

from collections.abc import Iterator, Sequence

import pyarrow as pa

from wm.datasets.changes import CODE_COLUMNS, changed_codes
from wm.datasets.selection.rows import Criteria
from wm.errors import InputError, to_line
from wm.records import TRIPLET_SCHEMA
from wm.tables import open_columns

BATCH_ROWS = 262_144
"""Rows of one read: what a task holds at once (some 60 bytes a row)."""

CODE_BATCH_ROWS = 8_192
"""The same where image codes are read: 4 kB a row with 1,024 codes an image."""


def read_rows(file: str, columns: Sequence[str], criteria: Criteria) -> Iterator[pa.Table]:
    """Iterate over a file's rows as :func:`read_batches` does.

    A column ``changed_codes`` is added where the criteria ask for changes and the file has codes.

    Args:
        file: Parquet file of triplets.
        columns: Columns to read.
        criteria: Whether changes of codes are needed.
    """
    if not criteria.min_changed_codes or not _has_codes(file):
        yield from read_batches(file, columns)
        return
    for batch in read_batches(file, [*columns, *CODE_COLUMNS], CODE_BATCH_ROWS):
        yield batch.select(columns).append_column("changed_codes", changed_codes(batch))


def _has_codes(file: str) -> bool:
    # Codes of another type could not be compared.
    with open_columns(file) as parquet:
        schema = parquet.schema_arrow
    if any(name not in schema.names for name in CODE_COLUMNS):
        return False
    for name in CODE_COLUMNS:
        kind = schema.field(name).type
        is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
        if not is_list or not pa.types.is_integer(kind.value_type):
            raise InputError(f"{file} has {name} as {kind}, expected {TRIPLET_SCHEMA.field(name).type}")
    return True


def read_batches(file: str, columns: Sequence[str], batch_rows: int | None = None) -> Iterator[pa.Table]:
    """Iterate over these columns of a file, ``BATCH_ROWS`` rows at a time unless ``batch_rows`` is given.

    Args:
        file: Parquet file.
        columns: Columns to read.
        batch_rows: Rows of a batch; None: ``BATCH_ROWS``.
    """
    with open_columns(file) as parquet:
        try:
            # Damage shows only when its page is read.
            for batch in parquet.iter_batches(batch_rows or BATCH_ROWS, columns=list(columns)):
                yield pa.Table.from_batches([batch])
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} is damaged: {to_line(error)}") from error
