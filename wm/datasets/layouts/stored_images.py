"""Read images out of Parquet rows one after another, without holding a file's images in memory.

Knows no layout: a row names its file and columns.
"""

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from wm.datasets.layouts.base import Problem, StoredPair
from wm.errors import InputError
from wm.images import Pixels, decode_image
from wm.tables import open_parquet

_BATCH_ROWS = 8
"""Rows read at once: a row may be several MB."""


class StoredImages:
    """The images of stored pairs. Rows in the order of their files are each read once; any other order works too."""

    def __init__(self) -> None:
        self._file: pq.ParquetFile | None = None
        self._path = ""
        self._starts: list[int] = []
        self._group = -1
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._batch: pa.RecordBatch | None = None
        self._first = self._next = 0

    def load(self, pair: StoredPair) -> tuple[Pixels, Pixels] | Problem:
        """Load both images of a row; a :class:`Problem` names an image that is absent or cannot be decoded."""
        try:
            row = self._row(pair)
        except (InputError, pa.ArrowException, OSError, StopIteration) as error:
            # What was read so far is of no use after an error in the middle of a file.
            self.close()
            return Problem(pair.uri, pair.task, "unreadable_file", f"cannot read {pair.uri}: {error}")
        # A broken image is this row's reject; the file is read on.
        images = []
        for column in pair.columns:
            # A row may be null, or an image without bytes that names a file elsewhere.
            data = (row[column] or {}).get("bytes")
            if not data:
                return Problem(pair.uri, pair.task, "missing_file", f"{pair.uri}: {column} holds no image")
            try:
                images.append(decode_image(data, f"{pair.uri} {column}"))
            except InputError as error:
                return Problem(pair.uri, pair.task, "not_an_image", str(error))
        return images[0], images[1]

    def close(self) -> None:
        """Close the open file."""
        if self._file is not None:
            self._file.close()
        self._file, self._path, self._group, self._batch = None, "", -1, None

    def _row(self, pair: StoredPair) -> dict[str, dict[str, bytes] | None]:
        # 1. The file, with the first row of each of its row groups.
        if self._file is None or pair.file != self._path:
            self.close()
            self._file, self._path = open_parquet(pair.file), pair.file
            facts = self._file.metadata
            sizes = [facts.row_group(number).num_rows for number in range(facts.num_row_groups)]
            self._starts = [0, *accumulate(sizes)][:-1]
        # 2. The row group: only a step back within it reads it again.
        group = bisect_right(self._starts, pair.row) - 1
        if group != self._group or pair.row < self._first:
            self._group, self._batch, self._first, self._next = group, None, self._starts[group], self._starts[group]
            self._batches = self._file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=list(pair.columns))
        # 3. The batch in it.
        while self._batch is None or pair.row >= self._next:
            self._batch = next(self._batches)
            self._first, self._next = self._next, self._next + self._batch.num_rows
        row: dict[str, dict[str, bytes] | None] = self._batch.slice(pair.row - self._first, 1).to_pylist()[0]
        return row
