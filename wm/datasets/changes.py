"""Count the image codes that differ between the source and the target of triplets, column by column.

A pair whose codes are all equal teaches a forward model to copy its source. This module counts such pairs in tables and
files of triplets; what is done with them is the caller's choice.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from wm.records import TRIPLET_SCHEMA
from wm.tables import checked_files, open_dataset

CODE_COLUMNS = ["source_codes", "target_codes"]

_BATCH_ROWS = 4096
"""Rows read at once: with 1,024 codes an image, 16 MB."""


class Changes(NamedTuple):
    """How many triplets there are, in how many of them no code (or too few) change, and how many have no codes."""

    rows: int
    unchanged: int
    without_codes: int


def changed_codes(table: pa.Table) -> pa.Array:
    """Count the codes that differ in each row.

    Args:
        table: Has the columns ``source_codes`` and ``target_codes``, lists of integers of one length a row, or null.

    Returns:
        int32 array with a count a row; null where a row has no codes.
    """
    # Flat values, as a loop over rows of lists takes minutes for a million.
    source, target = (table.column(name).combine_chunks() for name in CODE_COLUMNS)
    source, target = (_one_chunk(column) for column in (source, target))
    lengths = [pc.list_value_length(column) for column in (source, target)]
    has_codes = pc.fill_null(pc.and_(pc.equal(*lengths), pc.greater(lengths[0], 0)), False)
    # Nulls and empty lists hold no values, so the values of the other rows follow each other without gaps.
    source, target = (column.filter(has_codes) for column in (source, target))
    differ = pc.list_flatten(source).to_numpy(False) != pc.list_flatten(target).to_numpy(False)
    counts = np.bincount(pc.list_parent_indices(source).to_numpy(False)[differ], minlength=len(source))
    all_counts = np.zeros(table.num_rows, np.int32)
    has_codes = has_codes.to_numpy(zero_copy_only=False)
    all_counts[has_codes] = counts
    return pa.array(all_counts, mask=~has_codes)


def count_changes(folder: str | Path) -> Changes:
    """Count the triplets of a folder that have no changed code, reading the codes of a few thousand at once.

    Raises:
        InputError: A file is no table of triplets.
    """
    # Every file is checked first: a wrong one is named before any code is read.
    dataset = open_dataset(checked_files(folder, TRIPLET_SCHEMA), TRIPLET_SCHEMA)
    batches = dataset.to_batches(columns=CODE_COLUMNS, batch_size=_BATCH_ROWS)
    return sum_changes(count_rows(changed_codes(pa.Table.from_batches([batch]))) for batch in batches)


def sum_changes(parts: Iterable[Changes]) -> Changes:
    """Add up counts."""
    return Changes(*(sum(column) for column in zip(Changes(0, 0, 0), *parts, strict=True)))


def count_rows(changed: pa.Array | pa.ChunkedArray, min_changed_codes: int = 1) -> Changes:
    """Count the rows of a column that :func:`changed_codes` made.

    Args:
        changed: Number of changed codes a row, null where it is not known.
        min_changed_codes: Rows with fewer count as unchanged.
    """
    return Changes(len(changed), pc.sum(pc.less(changed, min_changed_codes)).as_py() or 0, changed.null_count)


def _one_chunk(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Join the chunks: ``combine_chunks`` of a table without rows gives a chunked array without chunks."""
    if isinstance(column, pa.ChunkedArray):
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    return column
