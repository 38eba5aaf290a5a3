"""List the rows of a human-labelled set in whatever layout, and load the images of a pair.

Not known here: how the frames of a video are read.
"""

import os
from collections.abc import MutableMapping
from glob import glob
from pathlib import Path

from wm.datasets.layouts import LAYOUTS, load_layout, recognise_table
from wm.datasets.layouts.base import ImagePair, LabelledRow, Problem
from wm.datasets.videos.folders import find_videos
from wm.datasets.videos.index import VideoIndex
from wm.errors import InputError
from wm.files.mirror import fetch
from wm.images import Pixels, decode_image


def list_labelled(
    root: str | Path, file: str, layout: str = "auto", passed_over: MutableMapping[str, object] | None = None
) -> list[LabelledRow]:
    """List the rows of a human-labelled set; a row that cannot become a triplet is a :class:`Problem`.

    A video that is not there shows when it is read.

    Args:
        root: Folder of the images or videos.
        file: The set's own table, relative to ``root`` or absolute; a glob where the set's rows are in several.
        layout: Name of the layout; ``auto``: it is recognised.
        passed_over: Updated with the record of videos that no row names, and of rows without a video
            (:meth:`wm.datasets.videos.passed_over.PassedOver.record`).

    Raises:
        InputError: Root or file is missing, the file is no such table, or the layout has no labelled rows.
    """
    if not os.path.isdir(root):  # noqa: PTH112 - of a name that is too long, pathlib raises
        raise InputError(f"no such folder: root = {root!s:.200}")
    paths = find_tables(root, file)
    path = paths[0]
    # An explicit layout is not held against the file's beginning: its own reader says what is wrong.
    name = _recognise(path, file) if layout == "auto" else layout
    reader = load_layout(name)
    if reader.list_stored_pairs is not None:
        return [*reader.list_stored_pairs(paths, Path(root))]
    if len(paths) > 1:
        raise InputError(f"file = {file!r} matches {len(paths)} files; dataset_layout = {name!r} reads one table")
    if reader.list_image_pairs is not None:
        return [*reader.list_image_pairs(path, file)]
    if reader.list_segments is None:
        raise InputError(
            f"dataset_layout = {name!r} has no human labels; those that do: {', '.join(_layouts_with_labels())}"
        )
    # Of videos it is known which are there: the others are counted now, and rejected when they are read.
    videos = find_videos(str(root))
    index = VideoIndex(videos)
    rows = reader.list_segments(path, file, index)
    if not rows:
        raise InputError(f"{path} lists no segment")
    index.count_unused()
    if passed_over is not None:
        passed_over.update(videos.passed_over.record())
    return [*rows]


def find_tables(root: str | Path, file: str) -> list[Path]:
    """Find the files that hold a set's rows: one, or those that a glob matches, in the order of their names.

    Args:
        root: Folder of the set.
        file: A file or a glob, relative to ``root`` or absolute; or a file at ``s3://`` or ``gs://``.

    Raises:
        InputError: There is none.
    """
    if "://" in file:
        file = str(fetch(file))
    path = Path(root) / file
    if os.path.isfile(path):  # noqa: PTH113 - of a name that is too long, pathlib raises
        return [path]
    # Sharded tables, data/train-*.parquet. An absolute pattern is its own, and root's name may hold marks of a pattern.
    names = glob(file, root_dir=root, recursive=True)  # noqa: PTH207 - pathlib takes no absolute pattern
    paths = sorted(match for name in names if (match := Path(root) / name).is_file())
    if not paths:
        raise InputError(f"no such file: {path!s:.400} (the data set's own table, relative to root)")
    return paths


def _recognise(path: Path, file: str) -> str:
    """Recognise the layout of a table; a Parquet file is that of the one layout which keeps its images in such."""
    with path.open("rb") as stream:
        is_parquet = stream.read(4) == b"PAR1"
    if is_parquet:
        return next(name for name in LAYOUTS if load_layout(name).list_stored_pairs)
    return recognise_table(path, "file", file)


def _layouts_with_labels() -> list[str]:
    layouts = {name: load_layout(name) for name in LAYOUTS}
    return [
        name
        for name, layout in layouts.items()
        if layout.list_image_pairs or layout.list_stored_pairs or layout.list_segments
    ]


def load_images(root: str | Path, pair: ImagePair) -> tuple[Pixels, Pixels] | Problem:
    """Load both images of a pair; a :class:`Problem` names a file that is missing, outside root or no image.

    Args:
        root: Folder that the paths are relative to.
        pair: Names both files.
    """
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
