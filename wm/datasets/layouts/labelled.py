"""List the rows of a human-labelled set in whatever layout, and load the images of a pair.

Not known here: how the frames of a video are read.
"""

import os
from collections.abc import MutableMapping
from pathlib import Path

from wm.datasets.layouts import LAYOUTS, load_layout, recognise_table
from wm.datasets.layouts.base import ImagePair, LabelledRow, Problem
from wm.datasets.videos.folders import find_videos
from wm.datasets.videos.index import VideoIndex
from wm.errors import InputError
from wm.images import Pixels, decode_image


def list_labelled(
    root: str | Path, file: str, layout: str = "auto", passed_over: MutableMapping[str, object] | None = None
) -> list[LabelledRow]:
    """List the rows of a human-labelled set; a row that cannot become a triplet is a :class:`Problem`.

    A video that is not there shows when it is read.

    Args:
        root: Folder of the images or videos.
        file: The set's own table, relative to ``root`` or absolute.
        layout: Name of the layout; ``auto``: it is recognised.
        passed_over: Updated with the record of videos that no row names, and of rows without a video
            (:meth:`wm.datasets.videos.passed_over.PassedOver.record`).

    Raises:
        InputError: Root or file is missing, the file is no such table, or the layout has no labelled rows.
    """
    path = Path(root) / file
    if not os.path.isdir(root):  # noqa: PTH112 - of a name that is too long, pathlib raises
        raise InputError(f"no such folder: root = {root!s:.200}")
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"no such file: {path!s:.400} (the data set's own table, relative to root)")
    name = recognise_table(path, "file", file) if layout == "auto" else layout
    reader = load_layout(name)
    if reader.list_image_pairs is not None:
        return [*reader.list_image_pairs(path, file)]
    if reader.list_segments is None:
        labelled = [
            other for other in LAYOUTS if load_layout(other).list_image_pairs or load_layout(other).list_segments
        ]
        raise InputError(f"dataset_layout = {name!r} has no human labels; those that do: {', '.join(labelled)}")
    videos = find_videos(str(root))
    index = VideoIndex(videos)
    rows = reader.list_segments(path, file, index)
    if not rows:
        raise InputError(f"{path} lists no segment")
    index.count_unused()
    if passed_over is not None:
        passed_over.update(videos.passed_over.record())
    return [*rows]


def load_images(root: str | Path, pair: ImagePair) -> tuple[Pixels, Pixels] | Problem:
    """Load both images of a pair; a :class:`Problem` names a file that is missing, outside root or no image."""
    images = []
    for relative in (pair.source, pair.target):
        try:
            # Links are resolved first: a list from elsewhere may name any file of this machine.
            path = (Path(root) / relative).resolve()
            if not path.is_relative_to(Path(root).resolve()):
                return Problem(pair.uri, pair.task, "path_outside_root", f"{relative} leads out of {root}")
            if not path.is_file():
                return Problem(pair.uri, pair.task, "missing_file", f"no such image file: {relative}")
            images.append(decode_image(path.read_bytes(), relative))
        except InputError as error:
            return Problem(pair.uri, pair.task, "not_an_image", str(error))
        except (OSError, ValueError, RuntimeError) as error:
            # A name with a zero byte, a name too long, a loop of links, a file that may not be read.
            return Problem(pair.uri, pair.task, "unreadable_file", f"cannot read {relative[:200]!r}: {error}")
    return images[0], images[1]
