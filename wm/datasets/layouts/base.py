"""Define what a data-set layout is, and the rows of human-labelled sets.

Knows no layout: each is a file of its own beside this one and ends in ``LAYOUT``.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from wm.datasets.videos.index import VideoIndex
from wm.datasets.videos.listing import Entry
from wm.files.uris import escape_path, is_text


@dataclass(frozen=True)
class ImagePair:
    """Two image files and the action between them.

    Attributes:
        uri: Unique name of the row, ``file.json#row``.
        task: Class label.
        source: Path of the first image, relative to the root.
        target: Path of the second one.
        action: The annotator's words.
    """

    uri: str
    task: str
    source: str
    target: str
    action: str


@dataclass(frozen=True)
class StoredPair:
    """Two images that a Parquet file holds itself, and the action between them.

    Attributes:
        uri: Unique name of the row, ``file.parquet#row``.
        task: Class label.
        file: Path of the file.
        row: Number of the row in it.
        columns: Of the source and of the target image.
        action: The annotator's words.
    """

    uri: str
    task: str
    file: str
    row: int
    columns: tuple[str, str]
    action: str


@dataclass(frozen=True)
class VideoSegment:
    """A video, or a segment of one, and the action in it: between its first and its last frame.

    Attributes:
        uri: Unique name, video and segment.
        task: Class label.
        video: Path of the file.
        action: The annotator's words.
        start_s: Begin of the segment in seconds; None: of the file.
        end_s: Its end.
    """

    uri: str
    task: str
    video: str
    action: str
    start_s: float | None = None
    end_s: float | None = None


@dataclass(frozen=True)
class Problem:
    """A row that cannot become a triplet.

    Attributes:
        uri: Name of the row.
        task: Class label, as far as it is known.
        reason: A slug to count by.
        detail: Names the thing in words.
    """

    uri: str
    task: str
    reason: str
    detail: str


LabelledRow: TypeAlias = ImagePair | StoredPair | VideoSegment | Problem


@dataclass(frozen=True)
class Layout:
    """One layout: what it has is a function, what it has not is None.

    Attributes:
        class_of: Maps the parts of a video's path to its class, "" for none.
        path_example: A path that ``class_of`` is made for, for messages.
        recognise_path: Maps the parts of a path that can only be this layout's to its class, any other to None.
        recognise_table: Says whether the data set's own table begins with this text.
        table_example: What that table holds, for messages.
        list_videos: Reads the table (path, name for messages, videos that are there) as entries of a listing.
        list_image_pairs: Reads the table (path, name) as human-labelled pairs of image files.
        list_stored_pairs: Reads the tables (paths, root) as human-labelled pairs of images that they hold themselves.
        list_segments: Reads the table (path, name, videos that are there) as human-labelled videos or segments.
    """

    class_of: Callable[[Sequence[str]], str] | None = None
    path_example: str = ""
    recognise_path: Callable[[Sequence[str]], str | None] | None = None
    recognise_table: Callable[[str], bool] | None = None
    table_example: str = ""
    list_videos: Callable[[Path, str, VideoIndex], Iterator[Entry]] | None = None
    list_image_pairs: Callable[[Path, str], list[ImagePair | Problem]] | None = None
    list_stored_pairs: Callable[[Sequence[Path], Path], list[StoredPair | Problem]] | None = None
    list_segments: Callable[[Path, str, VideoIndex], list[VideoSegment | Problem]] | None = None


def folder_of(parts: Sequence[str]) -> str:
    """Return the folder that a video is in, "" directly below the root."""
    return parts[-2] if len(parts) > 1 else ""


def build_segment(segment: VideoSegment, uris: set[str]) -> VideoSegment | Problem:
    """Check a human-labelled segment.

    Args:
        segment: As the table and the folder give it.
        uris: Names of the segments before it; its own is added.

    Returns:
        The segment, or the reason why it cannot become a triplet.
    """
    # Ids are made of it, so a segment listed twice must not become two triplets.
    if segment.uri in uris:
        return Problem(segment.uri, segment.task, "duplicate", f"{segment.uri} is listed twice")
    uris.add(segment.uri)
    if not is_text(segment.video):
        # No table holds such a name; percent-encoded, its bytes can be had again.
        _, mark, name = segment.uri.partition("#")
        uri = f"{escape_path(segment.video)}{mark}{name}"
        detail = f"{uri}: the file name {os.fsencode(segment.video)!r} is not UTF-8; rename the file"
        return Problem(uri, segment.task, "bad_name", detail)
    if not segment.action:
        detail = f"{segment.uri}: no narration or label, which is the action"
        return Problem(segment.uri, segment.task, "missing_field", detail)
    return segment
