"""List a specification's videos: a folder, a glob, a list file, one file, or the same in an object store."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wm.datasets.layouts import LAYOUTS, class_rule, load_layout, recognise_table
from wm.datasets.videos.endings import is_video_name
from wm.datasets.videos.folders import Found, find_videos, is_glob
from wm.datasets.videos.index import VideoIndex
from wm.datasets.videos.list_files import is_list_name, parent_uri, read_list
from wm.datasets.videos.listing import Entry, make_listing
from wm.datasets.videos.tables import local_copy
from wm.errors import InputError
from wm.files.uris import is_remote, local_path, path_in


def list_videos(spec: str, *, layout: str = "auto", annotations: str | None = None) -> pa.Table:
    """List the videos that ``spec`` names: a table of :data:`wm.datasets.videos.listing.LISTING_SCHEMA`, sorted by key.

    ``spec``, local or with a scheme (``file``, ``s3``, ``gs``, ``http``, ``https``):

    - a folder (``s3://bucket/prefix/``): every file below it with a video's ending (:mod:`wm.datasets.videos.endings`),
      broken ones and those behind links too; names that start with a dot are left out. Not over HTTP, which has no
      listing.
    - a glob (``*``, ``?``, ``[``, ``**``): the matching files with a video's suffix.
    - a list file, ``.txt`` (one URI a line, ``#`` starts a comment), ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``
      with ``uri`` and optional ``class_label, start_s, end_s, license``; relative URIs are relative to the list's
      folder. Every row counts, whether something is there or not.
    - any other file: itself.

    Notes (``listing_note`` of :mod:`wm.datasets.videos.listing`): ``duplicates``: entries left out because their key
    was there already; ``unnamed``: videos that are there and that the annotations do not name. ``passed_over_of``
    beside it gives these and whatever else was there and is not listed, counted and with examples. A file whose name is
    no UTF-8 is listed under an escaped one.

    Args:
        spec: What to list.
        layout: How paths imply classes (:func:`wm.datasets.layouts.class_rule`); a class in a list comes first.
        annotations: The data set's own table (Kinetics-700's CSV, a split file of UCF-101, …), recognised by how it
            begins under ``auto``. Its rows are then the listing, and the videos are looked for in ``spec``.

    Raises:
        InputError: Names the specification, or file, line and what was expected.
    """
    if not spec:
        raise InputError("videos is empty; expected a folder, a glob, a list or a video file, or the URI of one")
    # A wrong name is an error before anything is listed.
    if layout != "auto":
        load_layout(layout)
    # ``file://`` and a plain path are one place, and get the same keys.
    if not is_remote(spec):
        spec = local_path(spec)
    # 1. By the data set's own table.
    if annotations:
        return _list_by_table(spec, layout, annotations)
    # 2. By paths: some layouts say nothing there.
    if layout != "auto" and load_layout(layout).class_of is None:
        _find_reader(layout)
        raise InputError(f"dataset_layout = {layout!r} needs annotations: {load_layout(layout).table_example}")
    if _is_list(spec):
        listing = _read_list(spec, layout)
    else:
        videos, rule = _find(spec), class_rule(layout)
        entries = (Entry(uri, key, rule(key)) for uri, key in videos.files)
        listing = make_listing(entries, videos.notes, videos.passed_over)
    _check_classes(listing, spec, layout)
    return listing


def _is_list(spec: str) -> bool:
    return is_list_name(path_in(spec)) and (is_remote(spec) or os.path.isfile(spec))  # noqa: PTH113


def _find(spec: str) -> Found:
    """Find the videos of a specification that is no list."""
    name = path_in(spec).rpartition("/")[2]
    if is_remote(spec):
        # HTTP has no folders: whatever is named there is a file.
        is_file = bool(name) and not is_glob(spec) and (is_video_name(name) or spec.lower().startswith("http"))
        return Found(parent_uri(spec), [(spec, name)]) if is_file else find_videos(spec)
    if os.path.isfile(spec):  # noqa: PTH113 - of a name that is too long, pathlib raises
        return Found(os.path.dirname(spec) or ".", [(spec, Path(spec).name)])  # noqa: PTH120 - as it is written
    if os.path.isdir(spec) or is_glob(spec):  # noqa: PTH112
        return find_videos(spec)
    raise InputError(f"videos = {spec!r:.200}: no such file or folder")


def _read_list(spec: str, layout: str) -> pa.Table:
    with local_copy(spec, "videos") as path:
        return make_listing(read_list(path, spec, class_rule(layout, is_list=True)), {})


def _list_by_table(spec: str, layout: str, annotations: str) -> pa.Table:
    videos = _find_in_list(spec) if _is_list(spec) else _find(spec)
    with local_copy(annotations, "annotations") as path:
        # The table is streamed, the videos are in memory: rows look them up in any order.
        index = VideoIndex(videos)
        entries = _read_annotations(path, annotations, layout, index)
        listing = make_listing(entries, videos.notes, videos.passed_over)
    metadata = {**listing.schema.metadata, "unnamed": str(index.num_unnamed)}
    return listing.replace_schema_metadata(metadata)


def _read_annotations(path: Path, annotations: str, layout: str, index: VideoIndex) -> Iterator[Entry]:
    """Yield the videos that a data set's own table names; then count those that no row took."""
    name = recognise_table(path, "annotations", annotations) if layout == "auto" else layout
    # A table without rows is an error now, not an annotation of nothing later.
    is_empty = True
    for entry in _find_reader(name)(path, annotations, index):
        is_empty = False
        yield entry
    if is_empty:
        raise InputError(f"annotations = {annotations!r} lists no video")
    index.count_unused()


def _find_reader(layout: str) -> Callable[[Path, str, VideoIndex], Iterator[Entry]]:
    """Return a layout's reader of annotations; refuse a layout that has none."""
    reader = load_layout(layout).list_videos
    if reader is None:
        names = [name for name in LAYOUTS if load_layout(name).list_videos]
        raise InputError(f"dataset_layout = {layout!r} takes no annotations; those that do: {', '.join(names)}")
    return reader


def _find_in_list(spec: str) -> Found:
    """Read a list file in which annotated videos are looked for."""
    listing = _read_list(spec, "folder")
    if pc.any(pc.is_valid(listing["start_s"])).as_py() or pc.any(pc.is_valid(listing["end_s"])).as_py():
        raise InputError(
            f"videos = {spec!r} lists segments; with annotations, which bring their own, list complete videos"
        )
    # Keys of a list are relative to its folder, as those of a folder are.
    root = parent_uri(spec) if is_remote(spec) else os.path.dirname(spec) or "."  # noqa: PTH120

    def files() -> Iterator[tuple[str, str]]:
        for batch in listing.select(["uri", "key"]).to_batches():
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    return Found(root, files())


def _check_classes(listing: pa.Table, spec: str, layout: str) -> None:
    """Check that a layout that the user named fits at least one video."""
    if layout in ("auto", "folder") or pc.any(pc.not_equal(listing["class_label"], "")).as_py():
        return
    where = f"none of the {listing.num_rows} videos in {spec!r}"
    raise InputError(f"dataset_layout = {layout!r} fits {where}; expected {load_layout(layout).path_example}")
