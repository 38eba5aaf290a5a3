"""Find predictions whose sides have another ratio than those of their targets: image metrics stretch them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.predictions import PREDICTION_SCHEMA, predictions_folder, read_image_bytes
from wm.images import read_size
from wm.tables import read_table

TOLERANCE = 0.03
"""Ratios that differ by less count as equal: editors round sides to multiples of 8 or more."""
_ROWS_AT_A_TIME = 64


@dataclass(frozen=True)
class StretchedImage:
    """A prediction of another aspect ratio than its target.

    Attributes:
        triplet_id: The triplet.
        size_px: Width and height of the prediction.
        target_px: Width and height of the target.
    """

    triplet_id: str
    size_px: tuple[int, int]
    target_px: tuple[int, int]


def find_stretched(folder: str | Path, rows: Sequence[BenchRow]) -> list[StretchedImage]:
    """Find the predictions of full frames that metrics stretch to their targets.

    Args:
        folder: A prediction set of the bench; it may be one that is being written.
        rows: The bench, in the order of its files.

    Returns:
        The predictions, in the order of the files. Those of the square view are none, as they say what they show.

    Raises:
        InputError: A target cannot be read.
    """
    table = read_table(predictions_folder(folder), PREDICTION_SCHEMA, ["triplet_id", "view", "width_px", "height_px"])
    facts = [row for row in table.to_pylist() if row["view"] == "full"]
    predicted_ids = {row["triplet_id"] for row in facts}
    targets = dict(_iterate_sizes([row for row in rows if row.triplet_id in predicted_ids]))
    return [
        StretchedImage(row["triplet_id"], size_px, targets[row["triplet_id"]])
        for row in facts
        if _differs(size_px := (row["width_px"], row["height_px"]), targets[row["triplet_id"]])
    ]


def _differs(size_px: tuple[int, int], target_px: tuple[int, int]) -> bool:
    ratio, expected = size_px[0] / size_px[1], target_px[0] / target_px[1]
    return max(ratio, expected) > (1 + TOLERANCE) * min(ratio, expected)


def _iterate_sizes(rows: Sequence[BenchRow]) -> Iterator[tuple[str, tuple[int, int]]]:
    for file, of_file in groupby(rows, lambda row: row.file):
        listed = list(of_file)
        # A few encoded images at a time are in memory.
        for begin in range(0, len(listed), _ROWS_AT_A_TIME):
            part = listed[begin : begin + _ROWS_AT_A_TIME]
            encoded = read_image_bytes(file, [row.row for row in part], "target_image")
            for row, data in zip(part, encoded, strict=True):
                yield row.triplet_id, read_size(data, f"target_image of triplet {row.triplet_id}")


def describe_stretched(stretched: Sequence[StretchedImage], num_images: int) -> str:
    """Write a warning about stretched images.

    Args:
        stretched: At least one.
        num_images: Images that were looked at.

    Returns:
        One line without an end.
    """
    # One example shows what kind of difference it is: a square, a rotated image, a rounded side.
    first = stretched[0]
    sizes = f"{first.size_px[0]} x {first.size_px[1]} pixels for {first.target_px[0]} x {first.target_px[1]}"
    return (
        f"{len(stretched):,} of {num_images:,} images have another aspect ratio than their targets, by more than "
        f"{TOLERANCE:.0%} ({sizes} of triplet {first.triplet_id} the first): metrics of the full frame stretch them"
    )
