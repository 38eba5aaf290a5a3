"""List the rows that ``ingest`` takes, and load the two images of a row."""

import hashlib
from collections.abc import MutableMapping
from typing import NamedTuple, TypedDict

import numpy as np

from jobs.ingest.recipe import IngestRecipe
from wm.datasets.layouts.base import ImagePair, LabelledRow, Problem, VideoSegment
from wm.datasets.layouts.labelled import find_tables, list_labelled, load_images
from wm.datasets.layouts.stored_images import StoredImages
from wm.files.mirror import to_uri
from wm.images import Pixels, decode_image, encode_png
from wm.records import StoredImage
from wm.runs import digest_of
from wm.video.ends import segment_ends
from wm.video.errors import VideoError
from wm.video.isolation import IsolatedProcess


class VideoColumns(TypedDict, total=False):
    """Columns of a triplet that say which frames of a video it has; none for a pair of image files."""

    video_uri: str
    source_frame: int
    target_frame: int
    source_time_s: float
    target_time_s: float
    reader: str


class LoadedPair(NamedTuple):
    """A row that became two images.

    Attributes:
        source: uint8 RGB (height, width, 3).
        target: The same.
        source_image: The source as the triplet stores it.
        target_image: The target.
        video: Where both are in their video.
    """

    source: Pixels
    target: Pixels
    source_image: StoredImage
    target_image: StoredImage
    video: VideoColumns


def list_rows(recipe: IngestRecipe, passed_over: MutableMapping[str, object] | None = None) -> list[LabelledRow]:
    """List the rows that the recipe takes, in the order of the list; the same in every process.

    Args:
        recipe: Names the set.
        passed_over: As for :func:`wm.datasets.layouts.labelled.list_labelled`.
    """
    rows = list_labelled(recipe.root, recipe.file, recipe.dataset_layout, passed_over)[: recipe.limit]
    if recipe.sample is None or recipe.sample >= len(rows):
        return rows
    # Sorted again, so that a shard's segments stay together and each video is opened once.
    numbers = np.random.default_rng(recipe.seed).choice(len(rows), recipe.sample, replace=False)
    return [rows[number] for number in np.sort(numbers)]


def digest_rows(recipe: IngestRecipe) -> str:
    """Compute the digest of the file, or files, that hold the rows."""
    paths = find_tables(recipe.root, recipe.file)
    if len(paths) == 1:
        return digest_of(paths[0])
    digests = "\n".join(f"{path.name} {digest_of(path)}" for path in paths)
    return hashlib.sha256(digests.encode()).hexdigest()[:16]


def load_row(
    recipe: IngestRecipe, process: IsolatedProcess, row: LabelledRow, stored: StoredImages | None = None
) -> LoadedPair | Problem:
    """Load the two images of a row.

    Args:
        recipe: Root of the files, and limits.
        process: Reads videos, whose decoders crash and hang.
        row: A row of the set.
        stored: Reads images out of Parquet rows; one for many calls reads each of them once.

    Returns:
        The images, or a :class:`Problem` if they cannot be read or the row is one.
    """
    if isinstance(row, Problem):
        return row
    if isinstance(row, VideoSegment):
        return _load_ends(recipe, process, row)
    if isinstance(row, ImagePair):
        return _pair_of(load_images(recipe.root, row), (row.source, row.target))
    return _pair_of(
        (stored or StoredImages()).load(row), (f"{row.uri}/{row.columns[0]}", f"{row.uri}/{row.columns[1]}")
    )


def _pair_of(images: tuple[Pixels, Pixels] | Problem, names: tuple[str, str]) -> LoadedPair | Problem:
    if isinstance(images, Problem):
        return images
    # As PNG, whatever the file's format: every reader of the table decodes it.
    source, target = (
        StoredImage(bytes=encode_png(image), path=name) for image, name in zip(images, names, strict=True)
    )
    return LoadedPair(*images, source, target, {})


def _load_ends(recipe: IngestRecipe, process: IsolatedProcess, segment: VideoSegment) -> LoadedPair | Problem:
    # Only the two frames are converted and returned, whatever the length.
    try:
        ends = process.call(
            recipe.limits.time_limit_s,
            segment_ends,
            segment.video,
            segment.start_s,
            segment.end_s,
            recipe.image_side_px,
        )
    except VideoError as error:
        return Problem(segment.uri, segment.task, error.reason, f"{segment.uri}: {error.detail}")
    # PyAV walks over the segment anyway, so that no other reader is needed.
    return LoadedPair(
        decode_image(ends.source_png, "frame"),
        decode_image(ends.target_png, "frame"),
        {"bytes": ends.source_png, "path": None},
        {"bytes": ends.target_png, "path": None},
        {
            "video_uri": to_uri(segment.video),  # not where this node has its copy
            "source_frame": 0,
            "target_frame": ends.num_frames - 1,
            "source_time_s": ends.source_time_s,
            "target_time_s": ends.target_time_s,
            "reader": "pyav",
        },
    )
