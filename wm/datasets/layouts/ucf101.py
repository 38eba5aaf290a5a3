"""Read UCF-101: ``{Class}/v_{Class}_gNN_cNN.avi``, and its split files ``trainlist01.txt``, ``testlist01.txt``."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from wm.datasets.layouts.base import Layout, folder_of
from wm.datasets.videos.index import VideoIndex
from wm.datasets.videos.listing import Entry
from wm.errors import InputError

_NAME = re.compile(r"v_(.+)_g\d\d_c\d\d\.[^.]+")
_LINE = re.compile(r"([^/\s]+)/([^/]+\.\w+?)(?:\s+\d+)?")
_EXAMPLE = "Class/v_Class_g01_c01.avi"


def class_of(parts: Sequence[str]) -> str:
    """Return the folder; without a folder the class in the name."""
    name = _NAME.fullmatch(parts[-1])
    return folder_of(parts) or (name[1] if name else "")


def recognise_path(parts: Sequence[str]) -> str | None:
    """Recognise a name of UCF-101, alone or in its class's folder."""
    # In any case: ``HandstandPushups`` holds ``v_HandStandPushups_…``.
    name, folder = _NAME.fullmatch(parts[-1]), folder_of(parts)
    return folder or name[1] if name and folder.lower() in ("", name[1].lower()) else None


def recognise_table(head: str) -> bool:
    """Recognise a split file by its first line."""
    return _LINE.fullmatch(head.partition("\n")[0].strip()) is not None


def list_videos(path: Path, name: str, videos: VideoIndex) -> Iterator[Entry]:
    """Read lines of ``Class/v_Class_gNN_cNN.avi``, in the files for training with the number of the class."""
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                match = _LINE.fullmatch(line.strip())
                if match is None or "\0" in line:
                    where = f"{name} line {number}: {line.strip()!r:.60}"
                    raise InputError(f"{where}, expected a line such as {_EXAMPLE} 1")
                label, file_name = match.groups()
                keys = videos.find(file_name.rpartition(".")[0])
                official = f"{label}/{file_name}"
                # Of videos of one name, the one in the class's folder is meant.
                keys = [key for key in keys if f"/{key}".endswith(f"/{official}")] or keys or [official]
                for key in keys:
                    yield Entry(videos.uri_of(key), key, label)
    except UnicodeDecodeError as error:
        raise InputError(f"annotations = {name!r} is no list (not UTF-8 text)") from error


LAYOUT = Layout(
    class_of=class_of,
    path_example=_EXAMPLE,
    recognise_path=recognise_path,
    recognise_table=recognise_table,
    table_example=f"lines such as {_EXAMPLE} 1 (UCF-101)",
    list_videos=list_videos,
)
