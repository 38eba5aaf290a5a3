"""List the rows that ``ingest`` takes, and load the two images of a row."""

from collections.abc import MutableMapping
from typing import NamedTuple, TypedDict

import numpy as np

from jobs.ingest.recipe import IngestRecipe
from wm.datasets.layouts.base import ImagePair, LabelledRow, Problem, VideoSegment
from wm.datasets.layouts.labelled import list_labelled, load_images
from wm.images import Pixels, decode_image, encode_png
from wm.records import StoredImage
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


def load_row(recipe: IngestRecipe, process: IsolatedProcess, row: LabelledRow) -> LoadedPair | Problem:
    """Load the two images of a row.

    Args:
        recipe: Root of the files, and limits.
        process: Reads videos, whose decoders crash and hang.
        row: A row of the set.

    Returns:
        The images, or a :class:`Problem` if they cannot be read or the row is one.
    """
    if isinstance(row, Problem):
        return row
    return _load_files(recipe, row) if isinstance(row, ImagePair) else _load_ends(recipe, process, row)


def _load_files(recipe: IngestRecipe, pair: ImagePair) -> LoadedPair | Problem:
    images = load_images(recipe.root, pair)
    if isinstance(images, Problem):
        return images
    source, target = images
    return LoadedPair(
        source,
        target,
        {"bytes": encode_png(source), "path": pair.source},
        {"bytes": encode_png(target), "path": pair.target},
        {},
    )


def _load_ends(recipe: IngestRecipe, process: IsolatedProcess, segment: VideoSegment) -> LoadedPair | Problem:
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
    return LoadedPair(
        decode_image(ends.source_png, "frame"),
        decode_image(ends.target_png, "frame"),
        {"bytes": ends.source_png, "path": None},
        {"bytes": ends.target_png, "path": None},
        {
            "video_uri": segment.video,
            "source_frame": 0,
            "target_frame": ends.num_frames - 1,
            "source_time_s": ends.source_time_s,
            "target_time_s": ends.target_time_s,
            "reader": "pyav",
        },
    )
