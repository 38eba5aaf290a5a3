"""List videos by a data set's own table: Kinetics-700's CSV, UCF-101's split files, EPIC-Kitchens' segments.

The table decides what is listed: a row whose video is not there stays, under the path where it should lie, and becomes
a reject when it is read; a video that no row names is left out and counted.
"""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

from wm.datasets.pairs.epic import REQUIRED, Segment, places, read_segments
from wm.datasets.videos.folders import Found
from wm.datasets.videos.layouts import Layout
from wm.datasets.videos.list_files import csv_rows
from wm.datasets.videos.listing import Entry
from wm.errors import InputError
from wm.files.uris import ends_in

KINETICS = ("label", "youtube_id", "time_start", "time_end")
_UCF_LINE = re.compile(r"([^/\s]+)/([^/]+\.\w+?)(?:\s+\d+)?")


class Shelf:
    """The videos that are there, by name."""

    def __init__(self, videos: Found) -> None:
        """Index what was found: some 300 bytes a video."""
        self.num_unnamed = 0
        self._head, self._tail = ends_in(videos.root)
        self._odd: dict[str, str] = {}
        self._keys: dict[str, str | list[str]] = {}
        for uri, key in videos.files:
            self.num_unnamed += 1
            # Tables name videos without folder and suffix, and downloads differ in case.
            stem = key.rpartition("/")[2].rpartition(".")[0].lower()
            # Most names occur once: a string alone, as a list for each costs 60 bytes a video.
            keys = self._keys.setdefault(stem, key)
            if keys is not key:
                self._keys[stem] = [*keys, key] if isinstance(keys, list) else [keys, key]
            # Videos of a list file lie anywhere; of a folder the URI follows from the key.
            if uri != self._head + key + self._tail:
                self._odd[key] = uri
        self._asked: set[str] = set()
        self._used: set[str] = set()
        self._passed_over = videos.passed_over

    def uri(self, key: str) -> str:
        """Return how to open the video of this key, whether it is there or not; the video is then a listed one."""
        self._used.add(key)
        return self._odd.get(key) or self._head + key + self._tail

    def ask(self, stem: str) -> list[str]:
        """Return the sorted keys of the videos of this name (no folder, no suffix; any case) and count them."""
        keys = self._keys_of(stem.lower())
        if not keys:
            self._passed_over.add("absent", stem)
        if keys and stem.lower() not in self._asked:
            self._asked.add(stem.lower())
            self.num_unnamed -= len(keys)
        return keys

    def count_left(self) -> None:
        """Count the videos that were not asked for, and those of one name of which another one was taken."""
        for stem in self._keys:
            kind = "same_name" if stem in self._asked else "unnamed"
            for key in self._keys_of(stem):
                if key not in self._used:
                    self._passed_over.add(kind, key)

    def _keys_of(self, stem: str) -> list[str]:
        keys = self._keys.get(stem, [])
        return [keys] if isinstance(keys, str) else sorted(keys)


def annotated(layout: Layout, path: Path, name: str, shelf: Shelf) -> Iterator[Entry]:
    """List the videos that a data set's table names.

    Args:
        layout: Kind of table; ``auto``: by its first line.
        path: The table.
        name: What messages call it.
        shelf: The videos that are there.

    Raises:
        InputError: Names file, line and what was expected.
    """
    readers = {"kinetics": _kinetics, "ucf101": _ucf101, "epic": _epic}
    kind = recognise(path, name) if layout == "auto" else layout
    if kind not in readers:
        raise InputError(f"layout = {layout!r} takes no annotations; those that do: {', '.join(readers)}")
    entries = readers[kind](path, name, shelf)
    # A table without rows is an error now, not an annotation of nothing later.
    first = next(entries, None)
    if first is None:
        raise InputError(f"annotations = {name!r} lists no video")
    return itertools.chain([first], entries)


def recognise(path: Path, name: str) -> Layout:
    """Recognise the layout whose table this is by its first line."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            line = file.readline(65536)
    except UnicodeDecodeError as error:
        raise InputError(f"annotations = {name!r} is no table (not UTF-8 text)") from error
    titles = {title.strip().strip('"') for title in line.split(",")}
    if set(REQUIRED) <= titles:
        return "epic"
    if set(KINETICS) <= titles:
        return "kinetics"
    if _UCF_LINE.fullmatch(line.strip()):
        return "ucf101"
    raise InputError(
        f"annotations = {name!r}: first line {line.strip()!r:.80} is none that is known; expected the columns "
        f"{', '.join(KINETICS)} (Kinetics) or {', '.join(REQUIRED)} (EPIC-Kitchens), or lines such as "
        "Class/v_Class_g01_c01.avi 1 (UCF-101)"
    )


def _kinetics(path: Path, name: str, shelf: Shelf) -> Iterator[Entry]:
    """Read ``label, youtube_id, time_start, time_end[, split]``: clips named ``{youtube_id}_{start:06d}_{end:06d}``."""
    for where, row in csv_rows(path, name, (*KINETICS, "split"), KINETICS):
        label, video, *times, split = (str(value).strip() for value in row)
        if "/" in video:
            raise InputError(f"{where}: youtube_id = {video!r:.60}, expected a plain name")
        start, end = (_whole_seconds(text, where) for text in times)
        if end <= start:
            raise InputError(f"{where}: time_end = {end}, expected more than time_start = {start}")
        stem = f"{video}_{start:06d}_{end:06d}"
        keys = shelf.ask(stem)
        # The same clip may be in the folders of several splits; the row names its own.
        of_split = [key for key in keys if split and split in key.split("/")[:-1]]
        for key in of_split or keys or [f"{stem}.mp4"]:
            yield Entry(shelf.uri(key), key, label)


def _whole_seconds(text: str, where: str) -> int:
    try:
        seconds = float(text)
        if seconds.is_integer() and 0 <= seconds < 1e6:
            return int(seconds)
    except ValueError:
        pass
    raise InputError(f"{where}: time {text!r:.40}, expected whole seconds, 0 or more")


def _ucf101(path: Path, name: str, shelf: Shelf) -> Iterator[Entry]:
    """Lines of trainlist01.txt and testlist01.txt: ``Class/v_Class_gNN_cNN.avi``, in the former with a number."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                match = _UCF_LINE.fullmatch(line.strip())
                if match is None or "\0" in line:
                    position = f"{name} line {number}: {line.strip()!r:.60}"
                    raise InputError(f"{position}, expected a line such as Class/v_Class_g01_c01.avi 1")
                label, file_name = match.groups()
                keys = shelf.ask(file_name.rpartition(".")[0])
                official = f"{label}/{file_name}"
                # Of videos of one name, the one in the class's folder is meant.
                keys = [key for key in keys if f"/{key}".endswith(f"/{official}")] or keys or [official]
                for key in keys:
                    yield Entry(shelf.uri(key), key, label)
    except UnicodeDecodeError as error:
        raise InputError(f"annotations = {name!r} is no list (not UTF-8 text)") from error


def _epic(path: Path, name: str, shelf: Shelf) -> Iterator[Entry]:
    """One entry a segment; its class is the verb."""
    for segment in read_segments(path, name):
        key = epic_key(shelf, segment)
        yield Entry(shelf.uri(key), f"{key}#{segment.name}", segment.verb, segment.start_s, segment.end_s)


def epic_key(shelf: Shelf, segment: Segment) -> str:
    """Return the key of a segment's video: at one of the usual paths if it is there, else the first of its name, else
    where it should be."""
    keys = shelf.ask(segment.video_id)
    usual = places(segment.participant, segment.video_id)
    by_place = {key.rpartition(".")[0].lower(): key for key in reversed(keys)}
    for path in usual:
        if path.lower() in by_place:
            return by_place[path.lower()]
    return keys[0] if keys else f"{usual[0]}.MP4"
