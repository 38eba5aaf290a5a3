"""Read AURORA's Something-Something set: its instructions, and the videos from which both frames are taken.

The release (McGill-NLP/AURORA) has ``data/something/train.json``, a JSON list of ``{id, instruction, input, output}``,
and no images: their licence forbids it. Source and target are the first and the last frame of Something-Something v2's
``ID.webm``, which users download themselves. The paths in ``input`` and ``output`` name frames that AURORA's own script
would extract, below a folder that differs between its files; so ``id`` alone counts, and where there is none the
folder of ``input``, which is named after it.
"""

from pathlib import Path, PurePosixPath

from wm.datasets.layouts.aurora import check_fields, read_instruction
from wm.datasets.layouts.base import Layout, Problem, VideoSegment, build_segment
from wm.datasets.layouts.something import find_key
from wm.datasets.videos.index import VideoIndex
from wm.datasets.videos.tables import load_json_list
from wm.errors import InputError


def list_segments(path: Path, name: str, videos: VideoIndex) -> list[VideoSegment | Problem]:
    """List the rows in order, each of a complete video; a row with a missing field or a wrong type is a
    :class:`Problem`.

    Args:
        path: The JSON file.
        name: Its name for messages.
        videos: The videos that are there.

    Raises:
        InputError: The file is no JSON list, is empty, or has no usable row at all.
    """
    uris: set[str] = set()
    task = path.parent.name
    rows = [
        _read_row(row, f"{name}#{number}", task, videos, uris) for number, row in enumerate(load_json_list(path, name))
    ]
    problems = [row for row in rows if isinstance(row, Problem)]
    # Not one usable row means another layout, not a data set of rejects.
    if len(problems) == len(rows):
        raise InputError(f"{path}: no usable row; the first: {problems[0].detail}")
    return rows


def _read_row(row: object, uri: str, task: str, videos: VideoIndex, uris: set[str]) -> VideoSegment | Problem:
    if not isinstance(row, dict):
        return Problem(uri, task, "not_a_row", f"{uri}: {row!r:.60}; expected an object")
    # Neither path is looked at: what they name is in no release.
    instruction = read_instruction(row)
    video_id = _find_id(row)
    if problem := check_fields(row, {"instruction": instruction, "id": video_id}, uri, task):
        return problem
    # A name with a folder would find a video that the row does not name.
    if "/" in str(video_id) or "\0" in str(video_id):
        return Problem(uri, task, "bad_field", f"{uri}: id = {video_id!r:.60}; expected a plain name")
    # The row is named by its video: as in Something-Something itself, one video is one row.
    key = find_key(videos, str(video_id).strip())
    return build_segment(VideoSegment(key, task, videos.uri_of(key), str(instruction).strip()), uris)


def _find_id(row: dict[str, object]) -> object:
    """Return the id of a row's video: its own, or the folder of its first frame (``…/ID/first.jpg``)."""
    value = row.get("id")
    # Some copies hold numbers as ids.
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    frame = row.get("input")
    # Without an id the folder of the frames is one: AURORA's script names it after the video.
    if value is None and isinstance(frame, str):
        return PurePosixPath(frame).parent.name or None
    return value


LAYOUT = Layout(list_segments=list_segments)
