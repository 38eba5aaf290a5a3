"""Stream the rows of a triplet data set: which are exported, their provenance, their images."""

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal, Required, TypeAlias, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from wm.datasets.export.plan import Part, Plan, Slice
from wm.datasets.export.row_filter import RowFilter
from wm.errors import InputError, to_line
from wm.images import FORMATS, decode_image, encode_png, fit_square
from wm.records import TRIPLET_SCHEMA, TripletRow, hf_dtype, stable_id

ImageColumn: TypeAlias = Literal["source_image", "target_image"]
IMAGES: Final[tuple[ImageColumn, ImageColumn]] = ("source_image", "target_image")

_HEAVY = {*IMAGES, "source_codes", "target_codes", "change"}

PROVENANCE = [name for name in TRIPLET_SCHEMA.names if name not in _HEAVY]
"""Columns that every format keeps: all but the images and what a codec made of them."""

BATCH_ROWS = 16
"""Rows held at once. Beside their images, an export needs the memory of the pages under way: all images of a row group
twice where the file was written in one batch a row group (Parquet then makes one page of them)."""

_SUFFIXES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg", b"BM": "bmp"}

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")


class Moments(TypedDict):
    """Of a numeric feature: frames, values a channel, and by channel mean, sum of squared deviations, min, max."""

    count: int
    values: int
    mean: list[float]
    deviations: list[float]
    min: list[float]
    max: list[float]


class PartFacts(TypedDict, total=False):
    """What is known of a written part: its rows, how many have each licence, and what the formats need at the end:
    kinds of its image files (webdataset), moments by feature (lerobot)."""

    rows: Required[int]
    licenses: Required[dict[str, int]]
    images: list[str]
    stats: dict[str, Moments]


@dataclass(frozen=True)
class Context:
    """What every part of one export shares.

    ``side_px``: images are cut to a square of this side (0 = the stored bytes). ``image_size``: (height, width) that
    every image must have (None = any). ``tasks``: all actions, sorted, where the format numbers them.
    """

    out: str
    rows: RowFilter
    side_px: int = 0
    image_size: tuple[int, int] | None = None
    tasks: pa.Array | None = None


def iterate_rows(part: Part, context: Context) -> Iterator[TripletRow]:
    """Iterate over the exported rows of a part in order: ``PROVENANCE`` and both images (dicts with ``bytes``).

    Args:
        part: Which rows.
        context: What all parts share.

    Raises:
        InputError: Names row and file if id, action or an image is missing, or an id occurs twice in the part.
    """
    ids: set[str] = set()
    for span in part.slices:
        for row in _iterate_slice(span, context.rows):
            # Every format needs both: a name for its files and the text itself.
            for column, text in (("triplet_id", row["triplet_id"]), ("action", row["action"])):
                if not text:
                    raise InputError(f"triplet {row['triplet_id']} in {span.file} has no {column}")
            if row["triplet_id"] in ids:
                raise InputError(f"triplet_id {row['triplet_id']} occurs twice; the second time in {span.file}")
            ids.add(row["triplet_id"])
            for name in IMAGES:
                if not row[name] or not row[name]["bytes"]:
                    raise InputError(f"triplet {row['triplet_id']} in {span.file} has no {name}; export needs both")
            yield row


def _iterate_slice(span: Slice, rows: RowFilter) -> Iterator[TripletRow]:
    try:
        # Without pre_buffer and with a buffer, pages are read as they are needed, not a row group of images at once.
        with pq.ParquetFile(span.file, buffer_size=2**20, pre_buffer=False) as file:
            names = [name for name in [*PROVENANCE, *IMAGES] if name in file.schema_arrow.names]
            # Columns that came later are null in data sets written before.
            missing = dict.fromkeys(set(PROVENANCE) - set(names))
            groups, first = _overlapping_groups(file.metadata, span)
            for batch in file.iter_batches(BATCH_ROWS, row_groups=groups, columns=names):
                begin, end = max(span.start - first, 0), min(span.stop - first, batch.num_rows)
                first += batch.num_rows
                if begin < end:
                    rows_batch = batch.slice(begin, end - begin)
                    for row in rows_batch.filter(pa.array(rows.wanted(rows_batch))).to_pylist():
                        yield cast(TripletRow, row | missing)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{span.file} is damaged: {to_line(error)}") from error


def _overlapping_groups(metadata: pq.FileMetaData, span: Slice) -> tuple[list[int], int]:
    """Find the row groups that hold rows of a slice, and the number of the first one's first row."""
    groups: list[int] = []
    first = row = 0
    for number in range(metadata.num_row_groups):
        # Whatever a slice does not touch is not read from the disk.
        stop = row + metadata.row_group(number).num_rows
        if stop > span.start and row < span.stop:
            first = row if not groups else first
            groups.append(number)
        row = stop
    return groups, first


def image_of(row: TripletRow, name: ImageColumn, context: Context) -> tuple[bytes, str]:
    """Return one image of a row as (bytes, file suffix without a dot): as stored, or a PNG of ``side_px``.

    Args:
        row: A row of :func:`iterate_rows`.
        name: Column of the image.
        context: Side and size that images must have.

    Raises:
        InputError: The bytes are no image, or one of another size.
    """
    data, label = row[name]["bytes"], f"{name} of triplet {row['triplet_id']}"
    if context.side_px:
        return encode_png(fit_square(decode_image(data, label), context.side_px)), "png"
    # By the first bytes: a stored name may contradict the format, or be null.
    suffix = next((suffix for magic, suffix in _SUFFIXES.items() if data.startswith(magic)), "")
    suffix = "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else suffix
    if not suffix:
        raise InputError(f"{label} is no image ({', '.join(FORMATS)})")
    if context.image_size and (size := image_size(data, label)) != context.image_size:
        raise InputError(
            f"{label} has {size[1]} x {size[0]} pixels, the first image {context.image_size[1]} x "
            f"{context.image_size[0]}; this format needs one size: give side_px"
        )
    return data, suffix


def image_size(data: bytes, name: str) -> tuple[int, int]:
    """Read (height, width) from an image's header; no pixel is decoded.

    Args:
        data: The file's bytes.
        name: Its name for messages.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:  # as in wm.images: Pillow has many ways to fail on bad bytes
        raise InputError(f"{name} is no readable image ({', '.join(FORMATS)})") from error


def first_image_size(plan: Plan, context: Context) -> tuple[int, int]:
    """Return (height, width) of the first exported image, which all must have where a layout knows one size only.

    Args:
        plan: What is exported.
        context: Side that images are cut to.
    """
    if context.side_px:
        return context.side_px, context.side_px
    row = next(iterate_rows(plan.parts[0], context))
    return image_size(image_of(row, "source_image", context)[0], f"source_image of triplet {row['triplet_id']}")


def count_licenses(facts: Iterable[PartFacts]) -> Counter[str]:
    """Count rows by licence over all parts."""
    licenses = Counter[str]()
    for fact in facts:
        licenses.update(fact["licenses"])
    return licenses


def file_key(triplet_id: str) -> str:
    """Return a name for files: the id itself if it is a plain one, else a digest of it (dots end a WebDataset key)."""
    return triplet_id if _PLAIN_KEY.fullmatch(triplet_id) else stable_id(triplet_id)


def json_row(row: TripletRow) -> dict[str, object]:
    """Return the provenance of a row for JSON, which knows no NaN and no infinity: they become null."""
    values: Mapping[str, object] = row
    return {
        name: None if isinstance(value := values[name], float) and not math.isfinite(value) else value
        for name in PROVENANCE
    }


def column_dtype(column: str) -> str:
    """Name the type of a triplet's column as the YAML head of a data-set card does, such as ``float64``."""
    return hf_dtype(TRIPLET_SCHEMA.field(column).type)
