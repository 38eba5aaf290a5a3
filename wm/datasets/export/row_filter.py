"""Decide which rows of a data set are exported, by split and by a selection's ids."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.errors import InputError
from wm.tables import read_table


@dataclass(frozen=True)
class RowFilter:
    """Which rows are exported.

    Attributes:
        split: Those of one split; None: of all.
        ids: Those of a selection, sorted bytes, unique; None: all.
    """

    split: str | None = None
    ids: npt.NDArray[np.bytes_] | None = None

    @property
    def columns(self) -> list[str]:
        """List the columns that must be read to decide."""
        return ["triplet_id"] * (self.ids is not None) + ["split"] * (self.split is not None)

    def positions(self, ids: pa.Array) -> npt.NDArray[np.int64]:
        """Return the position of each id in the selection, -1 where it is absent."""
        assert self.ids is not None
        encoded = [(text or "").encode() for text in ids.to_pylist()]
        # A longer id is in no selection; cut to the width it could look like one that is.
        width = self.ids.dtype.itemsize
        queries = np.array([text if len(text) <= width else b"" for text in encoded], dtype=self.ids.dtype)
        nearest = np.searchsorted(self.ids, queries)
        is_hit = self.ids[np.minimum(nearest, len(self.ids) - 1)] == queries
        return np.where(is_hit, nearest, -1).astype(np.int64)

    def wanted(self, table: pa.RecordBatch | pa.Table) -> npt.NDArray[np.bool_]:
        """Mark each row to be exported; ``table`` has :attr:`columns`."""
        # Each criterion takes rows out; without one all are exported.
        keep = np.ones(table.num_rows, bool)
        if self.ids is not None:
            keep &= self.positions(table.column("triplet_id")) >= 0
        if self.split is not None:
            keep &= np.array([value == self.split for value in table.column("split").to_pylist()], bool)
        return keep


def read_selection(folder: str | Path) -> npt.NDArray[np.bytes_]:
    """Load the chosen ids, sorted, of a selection: its folder of Parquet files, or the output folder of wm select."""
    root = Path(folder)
    # Either folder is what a user may mean.
    root = root / "selection" if (root / "selection").is_dir() else root
    ids = read_table(root, SELECTION_SCHEMA, ["triplet_id"]).column("triplet_id").to_pylist()
    if not ids:
        raise InputError(f"selection = {str(folder)!r} holds no row; there would be nothing to export")
    # Sorted, so that one search finds all ids of a batch.
    return np.unique(np.array([text.encode() for text in ids]))
