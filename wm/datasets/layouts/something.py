"""Read Something-Something v2: videos ``ID.webm``, and a JSON list of ``id, label, template, placeholders``.

As released: the folder ``20bn-something-something-v2``, and ``something-something-v2-train.json``, ``-validation.json``
and ``-labels.json`` (class → number; that of the test set holds ids alone). A video's class is its template without
brackets; as a human-labelled triplet its source and target are its first and last frame, its action the label.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from wm.datasets.layouts.base import Layout, Problem, VideoSegment, build_segment, folder_of
from wm.datasets.videos.index import VideoIndex
from wm.datasets.videos.listing import Entry
from wm.datasets.videos.tables import json_keys, load_json_list
from wm.errors import InputError
from wm.files.uris import is_text
from wm.runs import parse_json

FOLDER = "20bn-something-something-v2"
CLASS_LISTS = ("something-something-v2-labels.json", "labels.json")
"""Names of the list of classes; one beside the labels is held against every row."""


class LabelledVideo(NamedTuple):
    """One row of the labels. ``action``: empty where the row has no label."""

    video_id: str
    class_label: str
    action: str


def read_labels(path: Path, name: str) -> list[LabelledVideo | Problem]:
    """Read the rows of ``something-something-v2-train.json`` and the like.

    Args:
        path: The JSON file.
        name: Its name for messages.

    Returns:
        A row each, in order; one without id or template, or of a class that the list of classes lacks, is a
        :class:`Problem`.

    Raises:
        InputError: The file, or the list of classes beside it, is no such JSON.
    """
    classes = _load_classes(path.parent)
    rows = load_json_list(path, name)
    labels = [_read_row(row, f"{name}#{number}", classes) for number, row in enumerate(rows)]
    problems = [label for label in labels if isinstance(label, Problem)]
    # Not one usable row means another layout, not a data set of rejects.
    if len(problems) == len(labels):
        raise InputError(f"{name}: no usable row; the first: {problems[0].detail}")
    return labels


def _load_classes(folder: Path) -> set[str] | None:
    """Load the names of the classes beside the labels; None where there is no list of them."""
    # The release has it beside the labels; a copy of the labels alone is held against nothing.
    path = next((folder / name for name in CLASS_LISTS if (folder / name).is_file()), None)
    if path is None:
        return None
    try:
        classes = parse_json(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(classes, dict):
        raise InputError(f"{path} holds {type(classes).__name__}; expected an object of classes and their numbers")
    return set(classes)


def _read_row(row: object, uri: str, classes: set[str] | None) -> LabelledVideo | Problem:
    if not isinstance(row, dict):
        return Problem(uri, "", "not_a_row", f"{uri}: {row!r:.60}; expected an object")
    # Unknown keys (placeholders) are left alone.
    values: dict[str, str] = {}
    for key in ("id", "template", "label"):
        value = row.get(key)
        # Some copies of the labels hold numbers as ids.
        if key == "id" and isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if value is None and key == "label":
            value = ""  # a class needs none
        if value is None:
            return Problem(uri, "", "missing_field", f"{uri}: no {key!r}; found {', '.join(map(repr, row))[:200]}")
        if not isinstance(value, str) or not is_text(value) or (key != "label" and not value.strip()):
            return Problem(uri, "", "bad_field", f"{uri}: {key} = {value!r:.60}; expected non-empty text")
        values[key] = value.strip()
    if "/" in values["id"] or "\0" in values["id"]:
        return Problem(uri, "", "bad_field", f"{uri}: id = {values['id']!r:.60}; expected a plain name")
    class_label = values["template"].replace("[", "").replace("]", "")
    if classes is not None and class_label not in classes:
        detail = f"{uri}: the template {class_label!r:.80} is none of the {len(classes)} listed classes"
        return Problem(uri, class_label, "unknown_class", detail)
    return LabelledVideo(values["id"], class_label, values["label"])


def find_key(videos: VideoIndex, video_id: str) -> str:
    """Return the key of a video: the released ``.webm`` if it is there, else a converted one, else the former.

    Args:
        videos: The videos that are there.
        video_id: Name of the file, without its ending.
    """
    keys = videos.find(video_id)
    return next((key for key in keys if key.lower().endswith(".webm")), keys[0] if keys else f"{video_id}.webm")


def list_videos(path: Path, name: str, videos: VideoIndex) -> Iterator[Entry]:
    """Read one entry a video; its class is the template.

    Args:
        path: The table.
        name: Its name for messages.
        videos: The videos that are there.
    """
    for label in read_labels(path, name):
        # A listing has no rejects: what is wrong with its table is the user's to mend.
        if isinstance(label, Problem):
            raise InputError(label.detail)
        key = find_key(videos, label.video_id)
        yield Entry(videos.uri_of(key), key, label.class_label)


def list_segments(path: Path, name: str, videos: VideoIndex) -> list[VideoSegment | Problem]:
    """List the labelled videos in the order of the labels.

    Args:
        path: The table.
        name: Its name for messages.
        videos: The videos that are there.
    """
    uris: set[str] = set()
    rows: list[VideoSegment | Problem] = []
    for label in read_labels(path, name):
        if isinstance(label, Problem):
            rows.append(label)
            continue
        # The complete video: source and target are its ends.
        key = find_key(videos, label.video_id)
        row = VideoSegment(key, label.class_label, videos.uri_of(key), label.action)
        rows.append(build_segment(row, uris))
    return rows


def recognise_path(parts: Sequence[str]) -> str | None:
    """Recognise the release's folder, which is no class."""
    return "" if folder_of(parts) == FOLDER else None


LAYOUT = Layout(
    recognise_path=recognise_path,
    recognise_table=lambda head: {"id", "template"} <= json_keys(head),
    table_example="a JSON list of id, template, label (Something-Something v2)",
    list_videos=list_videos,
    list_segments=list_segments,
)
