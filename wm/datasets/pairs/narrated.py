"""List human-labelled segments of long videos (EPIC-Kitchens-55 and -100): rows of a CSV beside a folder of videos.

A segment's source and target are its first and last frame, its action the narration (paper, section 3.1).
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm.datasets.pairs.aurora import Problem
from wm.datasets.pairs.epic import Segment, read_segments
from wm.datasets.videos.annotations import Shelf, epic_key
from wm.datasets.videos.folders import find_videos
from wm.errors import InputError
from wm.files.uris import escape_path, is_text


@dataclass(frozen=True)
class Narrated:
    """A segment with its action. ``uri``: video and segment, unique; ``video``: path of the file; times in seconds."""

    uri: str
    task: str
    video: str
    action: str
    start_s: float
    end_s: float


def list_narrated(root: str | Path, file: str, passed_over: dict[str, Any] | None = None) -> list[Narrated | Problem]:
    """List the segments of a CSV, sorted by video and time, so that a shard's segments are of few videos.

    A segment without narration, of a video whose name is no UTF-8, or listed twice, is a :class:`Problem`; a video
    that is not there shows when it is read.

    Args:
        root: Folder of the videos.
        file: The CSV, relative to ``root`` or absolute.
        passed_over: Updated with the record of videos that no segment names, and of segments without a video
            (:meth:`wm.datasets.videos.passed_over.PassedOver.record`).

    Raises:
        InputError: Root or file is missing, or the file is no such table.
    """
    path = Path(root) / file
    if not os.path.isdir(root):  # noqa: PTH112 - of a name that is too long, pathlib raises
        raise InputError(f"no such folder: root = {root!s:.200}")
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"no such file: {path!s:.400} (EPIC-Kitchens: a CSV such as EPIC_100_train.csv)")
    videos = find_videos(str(root))
    shelf = Shelf(videos)
    segments = sorted(read_segments(path, file), key=lambda one: (one.video_id, one.start_s, one.end_s, one.name))
    if not segments:
        raise InputError(f"{path} lists no segment")
    met: set[str] = set()
    entries = [_entry(shelf, segment, met) for segment in segments]
    shelf.count_left()
    if passed_over is not None:
        passed_over.update(videos.passed_over.record())
    return entries


def _entry(shelf: Shelf, segment: Segment, met: set[str]) -> Narrated | Problem:
    key = epic_key(shelf, segment)
    # Ids are made of it, so a segment listed twice must not become two triplets.
    uri = f"{key}#{segment.name}"
    if uri in met:
        return Problem(uri, segment.verb, "duplicate", f"{uri} is listed twice")
    met.add(uri)
    video = shelf.uri(key)
    if not is_text(video):
        # No table holds such a name; percent-encoded, its bytes can be had again.
        uri = f"{escape_path(video)}#{segment.name}"
        detail = f"{uri}: the file name {os.fsencode(video)!r} is not UTF-8; rename the file"
        return Problem(uri, segment.verb, "bad_name", detail)
    if not segment.narration:
        return Problem(uri, segment.verb, "missing_field", f"{uri}: no narration, which is the action")
    return Narrated(uri, segment.verb, video, segment.narration, segment.start_s, segment.end_s)
