"""Read Kinetics-700: ``{train,val,…}/{class}/FILE`` or ``{class}/FILE``, and its CSV of labels."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from wm.datasets.layouts.base import Layout, folder_of
from wm.datasets.videos.index import VideoIndex
from wm.datasets.videos.listing import Entry
from wm.datasets.videos.tables import csv_rows, csv_titles
from wm.errors import InputError

COLUMNS = ("label", "youtube_id", "time_start", "time_end")

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})
_NAME = re.compile(r".{11}_\d{6}_\d{6}\.[^.]+")


def class_of(parts: Sequence[str]) -> str:
    """Return the folder, unless it is a split's."""
    folder = folder_of(parts)
    return "" if folder.lower() in _SPLITS else folder


def recognise_path(parts: Sequence[str]) -> str | None:
    """Recognise a folder in a split's folder, and a name of Kinetics in a split's folder itself, without a class."""
    # A folder in a split's folder is a class, whatever its name.
    if len(parts) > 2 and parts[-3].lower() in _SPLITS:
        return parts[-2] or None
    return "" if len(parts) == 2 and parts[0].lower() in _SPLITS and _NAME.fullmatch(parts[1]) else None


def list_videos(path: Path, name: str, videos: VideoIndex) -> Iterator[Entry]:
    """Read ``label, youtube_id, time_start, time_end[, split]``: clips named ``{youtube_id}_{start:06d}_{end:06d}``.

    Args:
        path: The table.
        name: Its name for messages.
        videos: The videos that are there.
    """
    for where, row in csv_rows(path, name, (*COLUMNS, "split"), COLUMNS):
        label, video, *times, split = (str(value).strip() for value in row)
        if "/" in video:
            raise InputError(f"{where}: youtube_id = {video!r:.60}, expected a plain name")
        start, end = (_parse_seconds(text, where) for text in times)
        if end <= start:
            raise InputError(f"{where}: time_end = {end}, expected more than time_start = {start}")
        # As the usual downloaders name the clips.
        stem = f"{video}_{start:06d}_{end:06d}"
        keys = videos.find(stem)
        # The same clip may be in the folders of several splits; the row names its own.
        of_split = [key for key in keys if split and split in key.split("/")[:-1]]
        for key in of_split or keys or [f"{stem}.mp4"]:
            yield Entry(videos.uri_of(key), key, label)


def _parse_seconds(text: str, where: str) -> int:
    # Some tables write 5 as 5.0.
    try:
        seconds = float(text)
        if seconds.is_integer() and 0 <= seconds < 1e6:
            return int(seconds)
    except ValueError:
        pass
    raise InputError(f"{where}: time {text!r:.40}, expected a whole number of seconds, 0 or more")


LAYOUT = Layout(
    class_of=class_of,
    path_example="class/NAME.mp4 or train/class/NAME.mp4",
    recognise_path=recognise_path,
    recognise_table=lambda head: set(COLUMNS) <= csv_titles(head),
    table_example=f"the columns {', '.join(COLUMNS)} (Kinetics)",
    list_videos=list_videos,
)
