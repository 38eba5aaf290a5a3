"""Read EPIC-Kitchens-55 and -100: a CSV of narrated segments with time stamps, beside a folder of long videos.

A segment's class is its verb; as a human-labelled triplet its source and target are its first and last frame, its
action the narration (paper, section 3.1).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wm.datasets.layouts.base import Layout, Problem, VideoSegment, build_segment
from wm.datasets.videos.index import VideoIndex
from wm.datasets.videos.listing import Entry, segment_key
from wm.datasets.videos.tables import csv_rows, csv_titles
from wm.errors import InputError

COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "verb", "participant_id", "narration_id", "narration")
REQUIRED = COLUMNS[:4]

_TIME = re.compile(r"(\d{1,6}):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


class Segment(NamedTuple):
    """One row of the table. ``name`` is unique in its video: EPIC-100's narration id, in EPIC-55 the times."""

    video_id: str
    participant: str
    start_s: float
    end_s: float
    verb: str
    narration: str
    name: str


def read_table(path: Path, name: str) -> Iterator[Segment]:
    """Read the rows of ``EPIC_100_train.csv``, ``EPIC_train_action_labels.csv`` and the like.

    Args:
        path: The CSV.
        name: Its name for messages.

    Raises:
        InputError: Names file, line and what was expected.
    """
    for where, row in csv_rows(path, name, COLUMNS, REQUIRED):
        video_id, start, stop, verb, participant, narration_id, narration = (str(value).strip() for value in row)
        # Both become parts of paths.
        if "/" in video_id or "/" in participant:
            raise InputError(
                f"{where}: video_id = {video_id!r}, participant_id = {participant!r}, expected plain names"
            )
        start_s, end_s = parse_time(start, where), parse_time(stop, where)
        if end_s <= start_s:
            raise InputError(f"{where}: stop_timestamp = {stop}, expected later than start_timestamp = {start}")
        # EPIC-55 has no ids: times are unique in a video.
        segment_name = narration_id or segment_key("", start_s, end_s)[1:]
        participant = participant or video_id.partition("_")[0]
        yield Segment(video_id, participant, start_s, end_s, verb, narration, segment_name)


def parse_time(stamp: str, where: str) -> float:
    """Convert ``HH:MM:SS.ss`` to seconds; ``where`` names the row in the message of an :class:`InputError`.

    Args:
        stamp: The text.
        where: Names the row in messages.
    """
    match = _TIME.fullmatch(stamp)
    if match is None:
        raise InputError(f"{where}: time stamp {stamp!r:.40}, expected HH:MM:SS.ss")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def find_key(videos: VideoIndex, segment: Segment) -> str:
    """Return the key of a segment's video: at one of the usual paths if it is there, else the first of its name, else
    where it should be.

    Args:
        videos: The videos that are there.
        segment: A row of the table.
    """
    # Several downloads keep the same video in different folders.
    keys = videos.find(segment.video_id)
    participant, video_id = segment.participant, segment.video_id
    usual = (f"{participant}/videos/{video_id}", f"{participant}/{video_id}", video_id)
    by_path = {key.rpartition(".")[0].lower(): key for key in reversed(keys)}
    for path in usual:
        if path.lower() in by_path:
            return by_path[path.lower()]
    return keys[0] if keys else f"{usual[0]}.MP4"


def list_videos(path: Path, name: str, videos: VideoIndex) -> Iterator[Entry]:
    """Read one entry a segment; its class is the verb.

    Args:
        path: The table.
        name: Its name for messages.
        videos: The videos that are there.
    """
    for segment in read_table(path, name):
        key = find_key(videos, segment)
        yield Entry(videos.uri_of(key), f"{key}#{segment.name}", segment.verb, segment.start_s, segment.end_s)


def list_segments(path: Path, name: str, videos: VideoIndex) -> list[VideoSegment | Problem]:
    """List the narrated segments, sorted by video and time, so that a shard's segments are of few videos.

    Args:
        path: The table.
        name: Its name for messages.
        videos: The videos that are there.
    """
    # By video, so that each is opened for few shards.
    ordered = sorted(
        read_table(path, name), key=lambda segment: (segment.video_id, segment.start_s, segment.end_s, segment.name)
    )
    uris: set[str] = set()
    rows: list[VideoSegment | Problem] = []
    for segment in ordered:
        key = find_key(videos, segment)
        uri = f"{key}#{segment.name}"
        times = (segment.start_s, segment.end_s)
        row = VideoSegment(uri, segment.verb, videos.uri_of(key), segment.narration, *times)
        rows.append(build_segment(row, uris))
    return rows


LAYOUT = Layout(
    recognise_table=lambda head: set(REQUIRED) <= csv_titles(head),
    table_example=f"the columns {', '.join(REQUIRED)} (EPIC-Kitchens, such as EPIC_100_train.csv)",
    list_videos=list_videos,
    list_segments=list_segments,
)
