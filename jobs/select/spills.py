"""Store rows on their way between two passes of ``select``: shared out over parts, so that a part is read alone."""

import itertools
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from wm.datasets.selection.rows import Ints, Words
from wm.files.mirror import fetch, publish

SPILL_ROWS = 262_144
"""Rows of one spilled block: what a task holds at once (some 60 bytes a row)."""

_HASH_FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""2**64 divided by the golden ratio: Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4)."""


class SpillWriter:
    """Rows on their way to parts: Arrow files of one record batch a part, so that a part is read from each at once."""

    def __init__(self, folder: Path, num_parts: int, schema: pa.Schema) -> None:
        self._folder, self._num_parts, self._schema = folder, num_parts, schema
        self._held: list[tuple[pa.Table, Ints]] = []
        self._num_held = 0
        self._files: list[str] = []

    def add(self, rows: pa.Table, parts: Ints) -> None:
        """Take rows and the part of each.

        Args:
            rows: Of the store's schema.
            parts: int64, the part of each row.
        """
        if rows.num_rows:
            self._held.append((rows, parts))
            self._num_held += rows.num_rows
        # Written block by block, so that a task's memory is bounded.
        if self._num_held >= SPILL_ROWS:
            self._write()

    def close(self) -> list[str]:
        """Write the remaining rows; return the files written."""
        if self._num_held:
            self._write()
        return self._files

    def _write(self) -> None:
        parts = np.concatenate([parts for _, parts in self._held])
        order = np.argsort(parts, kind="stable")
        # One batch a part: a part is later read from every file without its other rows.
        rows = pa.concat_tables([rows for rows, _ in self._held]).take(pa.array(order)).combine_chunks()
        batch = rows.to_batches()[0]
        bounds = np.searchsorted(parts[order], np.arange(self._num_parts + 1))
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"{uuid.uuid4().hex}.arrow"  # of a task done twice, the first files are read by none
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, self._schema) as writer:
            for start, stop in itertools.pairwise(bounds.tolist()):
                writer.write_batch(batch.slice(start, stop - start))
        publish(path)  # another node may read it
        self._files.append(str(path))
        self._held, self._num_held = [], 0


def read_part(spills: Sequence[str], part: int, schema: pa.Schema) -> pa.Table:
    """Read all rows of one part from the spilled files.

    Args:
        spills: Files of one schema.
        part: Its number.
        schema: Their schema.
    """
    batches = []
    for path in spills:
        # Mapped: of each file one batch is needed, not all of them.
        with pa.memory_map(str(fetch(path, hold=False))) as source:
            batches.append(pa.ipc.open_file(source).get_batch(part))
    return pa.Table.from_batches(batches, schema=schema).combine_chunks()


def assign_parts(words: Sequence[Words], num_parts: int) -> Ints:
    """Assign each row a part that depends on its words alone.

    Args:
        words: Columns of numbers that name a row.
        num_parts: Number of parts.
    """
    mixed = np.zeros(len(words[0]), np.uint64)
    for word in words:
        mixed = (mixed ^ word) * _HASH_FACTOR
        mixed ^= mixed >> np.uint64(32)
    return (mixed % np.uint64(num_parts)).astype(np.int64)
