"""Read segments of EPIC-Kitchens-55 and -100: rows of a CSV with time stamps, each a part of a long video."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from wm.datasets.videos.list_files import csv_rows, segment_key
from wm.errors import InputError

COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "verb", "participant_id", "narration_id", "narration")
REQUIRED = COLUMNS[:4]

_TIME = re.compile(r"(\d{1,6}):([0-5]?\d):([0-5]?\d(?:\.\d+)?)")


class Segment(NamedTuple):
    """One narrated action. ``name``: what makes its key its own: EPIC-100's narration id, in EPIC-55 the times."""

    video_id: str
    participant: str
    start_s: float
    end_s: float
    verb: str
    narration: str
    name: str


def read_segments(path: Path, name: str) -> Iterator[Segment]:
    """Read the rows of ``EPIC_100_train.csv``, ``EPIC_train_action_labels.csv`` and the like.

    Args:
        path: The CSV.
        name: What messages call it.

    Raises:
        InputError: Names file, line and what was expected.
    """
    for where, row in csv_rows(path, name, COLUMNS, REQUIRED):
        video_id, start, stop, verb, participant, narration_id, narration = (str(value).strip() for value in row)
        if "/" in video_id or "/" in participant:
            raise InputError(
                f"{where}: video_id = {video_id!r}, participant_id = {participant!r}, expected plain names"
            )
        start_s, end_s = seconds_of(start, where), seconds_of(stop, where)
        if end_s <= start_s:
            raise InputError(f"{where}: stop_timestamp = {stop}, expected later than start_timestamp = {start}")
        own = narration_id or segment_key("", start_s, end_s)[1:]
        yield Segment(video_id, participant or video_id.partition("_")[0], start_s, end_s, verb, narration, own)


def seconds_of(stamp: str, where: str) -> float:
    """Convert ``HH:MM:SS.ss`` to seconds; ``where`` names the row in the message of an :class:`InputError`."""
    match = _TIME.fullmatch(stamp)
    if match is None:
        raise InputError(f"{where}: time stamp {stamp!r:.40}, expected HH:MM:SS.ss")
    return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])


def places(participant: str, video_id: str) -> tuple[str, ...]:
    """List the usual paths of a video below the root, the official one first, without suffix."""
    return f"{participant}/videos/{video_id}", f"{participant}/{video_id}", video_id
