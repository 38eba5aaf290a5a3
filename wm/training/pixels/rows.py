"""Read triplets with their images, a few rows at a time; codes are not read.

Shape suffixes: P rows of a chunk.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from wm.errors import InputError
from wm.tables import read_footers
from wm.training.data.columns import read_batches
from wm.training.data.sources import RowSelection, Source

COLUMNS = ("triplet_id", "action", "source_image", "target_image")
IMAGES = ("source_image", "target_image")
_ROWS_AT_ONCE = 64
"""Of images as large as photographs these are a few hundred MB at most."""


@dataclass(frozen=True)
class ImageChunk:
    """Some of the selected rows, in the order of the files."""

    rank_P: npt.NDArray[np.int64]  # noqa: N815
    """Position of each row among the selected ones."""
    names: list[str]
    """Their ``triplet_id``."""
    actions: list[str]
    """Empty where the table has none."""
    images: list[tuple[bytes, bytes]]
    """Files of source and target."""


def read_images(source: Source, selection: RowSelection) -> Iterator[ImageChunk]:
    """Read the selected rows, and check that each has both images.

    Args:
        source: The table.
        selection: Its selected rows.

    Yields:
        Chunks in the order of the files.

    Raises:
        InputError: Rows without images, with their number; at the latest at the end.
    """
    num_missing, start = 0, 0
    for file in selection.files:
        for batch in read_batches(file, COLUMNS, _ROWS_AT_ONCE):
            stop = start + batch.num_rows
            is_checked, rank = selection.is_checked_F[start:stop], selection.rank_F[start:stop]
            start = stop
            num_missing += int((_is_missing(batch) & is_checked).sum())
            rows = batch.filter(pa.array(rank >= 0))
            # After a problem nothing more is yielded, but the rest is still counted for the message.
            if not num_missing and rows.num_rows:
                yield _to_chunk(rows, rank[rank >= 0])
    if num_missing:
        raise InputError(
            f"{source.folder}: {num_missing} of {int(selection.is_checked_F.sum())} triplets have no source_image or "
            "no target_image, which a base that reads pixels is trained on; make them with wm ingest or wm annotate"
        )


def images_bytes(selection: RowSelection) -> int:
    """Return the bytes that the images of a table's files take there: no less than those of its selected rows.

    Args:
        selection: Names the files.
    """
    # From the ends of the files: no image is read.
    total = 0
    for footer in read_footers(selection.files):
        for group in range(footer.num_row_groups):
            columns = (footer.row_group(group).column(number) for number in range(footer.num_columns))
            total += sum(column.total_uncompressed_size for column in columns if _is_image(column.path_in_schema))
    return total


def _is_image(path: str) -> bool:
    return path.split(".", maxsplit=1)[0] in IMAGES


def _is_missing(batch: pa.RecordBatch) -> npt.NDArray[np.bool_]:
    is_missing = np.zeros(batch.num_rows, np.bool_)
    for name in IMAGES:
        # Null images have null fields; a file of no bytes is none either.
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(batch.column(name), "bytes")), 0)
        is_missing |= lengths.to_numpy(zero_copy_only=False) == 0
    return is_missing


def _to_chunk(batch: pa.RecordBatch, rank_P: npt.NDArray[np.int64]) -> ImageChunk:
    # Bytes alone: names of files say nothing here.
    sides: Sequence[list[bytes]] = [pc.struct_field(batch.column(name), "bytes").to_pylist() for name in IMAGES]
    return ImageChunk(
        rank_P,
        batch.column("triplet_id").to_pylist(),
        [action or "" for action in batch.column("action").to_pylist()],
        list(zip(*sides, strict=True)),
    )
