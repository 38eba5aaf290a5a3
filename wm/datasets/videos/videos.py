"""List a specification's videos: a folder, a glob, a list file, one file, or the same in an object store."""

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from wm.datasets.videos.annotations import Shelf, annotated
from wm.datasets.videos.folders import VIDEO_SUFFIXES, Found, find_videos, is_glob, is_video_name
from wm.datasets.videos.layouts import LAYOUTS, Layout, class_rule
from wm.datasets.videos.list_files import is_list_name, local_copy, parent_uri, read_list
from wm.datasets.videos.listing import LISTING_SCHEMA, Entry, listing_digest, listing_note, make_listing, passed_over_of
from wm.datasets.videos.passed_over import describe
from wm.errors import InputError
from wm.files.uris import is_remote, local_path, path_in

__all__ = [
    "LISTING_SCHEMA",
    "VIDEO_SUFFIXES",
    "Layout",
    "describe",
    "list_videos",
    "listing_digest",
    "listing_note",
    "passed_over_of",
]


def list_videos(spec: str, *, layout: Layout = "auto", annotations: str | None = None) -> pa.Table:
    """List the videos that ``spec`` names: a table of ``LISTING_SCHEMA``, sorted by key, each key once.

    ``spec``, local or with a scheme (``file``, ``s3``, ``gs``, ``http``, ``https``):

    - a folder (``s3://bucket/prefix/``): every file below it with a video's suffix (:data:`VIDEO_SUFFIXES`, any case),
      broken ones and those behind links too; names that start with a dot are left out. Not over HTTP, which has no
      listing.
    - a glob (``*``, ``?``, ``[``, ``**``): the matching files with a video's suffix.
    - a list file, ``.txt`` (one URI a line, ``#`` starts a comment), ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``
      with ``uri`` and optional ``class_label, start_s, end_s, license``; relative URIs are relative to the list's
      folder. Every row counts, whether something is there or not.
    - any other file: itself.

    Notes (:func:`listing_note`): ``duplicates``: entries left out because their key was there already; ``unnamed``:
    videos that are there and that the annotations do not name. :func:`passed_over_of` gives these and whatever else was
    there and is not listed, counted and with examples. A file whose name is no UTF-8 is listed under an escaped one.

    Args:
        spec: What to list.
        layout: How paths imply classes (:func:`wm.datasets.videos.layouts.class_rule`); a class in a list comes first.
        annotations: Kinetics-700's CSV, a split file of UCF-101 or EPIC-Kitchens' segments (which need it), recognised
            by the first line under ``auto``. Its rows are then the listing, and the videos are looked for in ``spec``.

    Raises:
        InputError: Names the specification, or file, line and what was expected.
    """
    if not spec:
        raise InputError("videos is empty; expected a folder, a glob, a list or a video file, or the URI of one")
    if layout not in LAYOUTS:
        raise InputError(f"layout = {layout!r}; expected one of {', '.join(LAYOUTS)}")
    # ``file://`` and a plain path are one place, and get the same keys.
    if not is_remote(spec):
        spec = local_path(spec)
    if annotations:
        return _list_by_table(spec, layout, annotations)
    if layout == "epic":
        raise InputError("layout = 'epic' needs annotations, the CSV of segments such as EPIC_100_train.csv")
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


def _read_list(spec: str, layout: Layout) -> pa.Table:
    with local_copy(spec, "videos") as path:
        return make_listing(read_list(path, spec, class_rule(layout, is_list=True)), {})


def _list_by_table(spec: str, layout: Layout, annotations: str) -> pa.Table:
    videos = _find_in_list(spec) if _is_list(spec) else _find(spec)
    with local_copy(annotations, "annotations") as path:
        shelf = Shelf(videos)
        listing = make_listing(
            _count_unnamed(annotated(layout, path, annotations, shelf), shelf), videos.notes, videos.passed_over
        )
    metadata = {**listing.schema.metadata, "unnamed": str(shelf.num_unnamed)}
    return listing.replace_schema_metadata(metadata)


def _count_unnamed(entries: Iterator[Entry], shelf: Shelf) -> Iterator[Entry]:
    """Pass the entries on; then count the videos that no row took."""
    yield from entries
    shelf.count_left()


def _find_in_list(spec: str) -> Found:
    """Read a list file in which annotated videos are looked for."""
    listing = _read_list(spec, "folder")
    if pc.any(pc.is_valid(listing["start_s"])).as_py() or pc.any(pc.is_valid(listing["end_s"])).as_py():
        raise InputError(
            f"videos = {spec!r} lists segments; with annotations, which bring their own, list whole videos"
        )
    root = parent_uri(spec) if is_remote(spec) else os.path.dirname(spec) or "."  # noqa: PTH120

    def files() -> Iterator[tuple[str, str]]:
        for batch in listing.select(["uri", "key"]).to_batches():
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    return Found(root, files())


def _check_classes(listing: pa.Table, spec: str, layout: Layout) -> None:
    """Check that a layout that the user named fits at least one video."""
    if layout in ("auto", "folder") or pc.any(pc.not_equal(listing["class_label"], "")).as_py():
        return
    shapes = {"ucf101": "Class/v_Class_g01_c01.avi", "kinetics": "class/NAME.mp4 or train/class/NAME.mp4"}
    expected = shapes.get(layout, "training/class/NAME.mp4")
    raise InputError(f"layout = {layout!r} fits none of the {listing.num_rows} videos in {spec!r}; expected {expected}")
