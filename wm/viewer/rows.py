"""Read the rows of the page block by block in the order of the files, with the clip and the scores of each."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NotRequired, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from wm.errors import InputError, to_line
from wm.records import TRIPLET_SCHEMA
from wm.tables import open_parquet
from wm.viewer.sample import Pick, add_missing, read_batches
from wm.viewer.source import Source


class ImageCell(TypedDict):
    """An image as a table holds it. A path alone is not followed: it may name any file."""

    bytes: bytes | None
    path: str | None


class IndexRow(TypedDict):
    """What cards and filters need of a triplet; null where the data set does not say it."""

    triplet_id: str | None
    action: str | None
    class_label: str | None
    origin: str | None
    reader: str | None
    license: str | None
    video_uri: str | None
    source_time_s: float | None
    target_time_s: float | None
    motion: float | None
    action_logprob: float | None
    action_tokens: int | None


class TripletCells(IndexRow):
    """The columns of a triplet but its codes; the images are deleted once they are encoded."""

    dataset: str | None
    split: str | None
    source_frame: int | None
    target_frame: int | None
    source_image: NotRequired[ImageCell | None]
    target_image: NotRequired[ImageCell | None]
    codec: str | None
    change: list[float] | None
    annotator: str | None
    status: str | None


class ClipCells(TypedDict):
    """The columns of a clip: its segment of the video in seconds, its motion by frame and its key-frames."""

    key: str | None
    uri: str
    start_s: float | None
    end_s: float | None
    num_frames: int | None
    keyframes: list[int] | None
    times_s: list[float] | None
    motion: list[float] | None
    fallback: str | None
    frame_s: float | None
    orientation: str | None
    sample_aspect_ratio: str | None


class PairCells(TypedDict):
    """The columns of a pair of key-frames: the figures that the filters went by."""

    triplet_id: str
    key: str | None
    difference: float | None
    cut: float | None
    luma: float | None
    sharpness: float | None
    source_hash: int | None
    target_hash: int | None
    repeat_bits: int | None


_COLUMNS = list(TripletCells.__annotations__)


@dataclass(frozen=True)
class Row:
    """A triplet, its clip and its pair's scores, if those tables have them."""

    triplet: TripletCells
    clip: ClipCells | None
    pair: PairCells | None


def read_rows(source: Source, picks: Sequence[Pick]) -> Iterator[Row]:
    """Iterate over the picked rows, of which few are in memory at a time.

    Args:
        source: The tables.
        picks: The rows, in the order of the files.

    Yields:
        Rows in this order.

    Raises:
        InputError: It names a damaged file.
    """
    # Each file is opened once, however many of its row groups are picked.
    for file, mine in groupby(picks, key=lambda pick: pick.file):
        with open_parquet(file) as parquet:
            for pick in mine:
                for table in read_batches(parquet, file, pick, _COLUMNS):
                    yield from _join_tables(source, file, _to_cells(table, file))


def _join_tables(source: Source, file: Path, triplets: Sequence[TripletCells]) -> Iterator[Row]:
    clips, pairs = _load_clips(source, file, triplets), _load_pairs(source, file, triplets)
    for triplet in triplets:
        pair = pairs.get(triplet["triplet_id"])
        yield Row(triplet, _find_clip(triplet, clips.get(triplet["video_uri"], []), pair), pair)


def _to_cells(table: pa.Table, file: Path) -> list[TripletCells]:
    """Convert rows to the types of the triplet schema, whatever wrote the file."""
    # 1. Types: other tools write texts as large strings, times as 32-bit floats.
    for position, name in enumerate(_COLUMNS):
        expected = TRIPLET_SCHEMA.field(name).type if name in TRIPLET_SCHEMA.names else pa.string()
        try:
            table = table.set_column(position, name, table[name].cast(expected))
        except pa.ArrowException as error:
            raise InputError(f"{file} has {name} as {table[name].type}, expected {expected}") from error
    # 2. Values; a text is only decoded here.
    try:
        triplets: list[TripletCells] = table.to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} holds a text that is not UTF-8: {error}") from error
    return triplets


def _load_clips(source: Source, file: Path, triplets: Sequence[TripletCells]) -> Mapping[str | None, list[ClipCells]]:
    uris = {triplet["video_uri"] for triplet in triplets if triplet["video_uri"]}
    table = _load_matching(source.clips.get(file.stem), list(ClipCells.__annotations__), "uri", uris)
    clips: dict[str | None, list[ClipCells]] = {}
    # A video has several clips where its segments were listed.
    rows: list[ClipCells] = table.to_pylist() if table is not None else []
    for clip in rows:
        clips.setdefault(clip["uri"], []).append(clip)
    return clips


def _load_pairs(source: Source, file: Path, triplets: Sequence[TripletCells]) -> Mapping[str | None, PairCells]:
    ids = {triplet["triplet_id"] for triplet in triplets if triplet["triplet_id"]}
    table = _load_matching(source.pairs.get(file.stem), list(PairCells.__annotations__), "triplet_id", ids)
    rows: list[PairCells] = table.to_pylist() if table is not None else []
    return {pair["triplet_id"]: pair for pair in rows}


def _load_matching(file: Path | None, columns: Sequence[str], key: str, values: set[str]) -> pa.Table | None:
    """Load the rows whose ``key`` is among ``values``, null in columns that the file lacks; None without a file."""
    if file is None or not values:
        return None
    # Read by a filter, as a shard's clips are many times the rows of a batch.
    with open_parquet(file) as parquet:
        names = [name for name in columns if name in parquet.schema_arrow.names]
    if key not in names:
        raise InputError(f"{file} lacks the column {key!r}")
    try:
        table = pads.dataset(str(file)).to_table(
            columns=names, filter=pc.field(key).isin(pa.array(sorted(values))), use_threads=False
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {to_line(error)}") from error
    return add_missing(table, columns)


def _find_clip(triplet: TripletCells, clips: Sequence[ClipCells], pair: PairCells | None) -> ClipCells | None:
    """Find the clip that a triplet was cut from: that of its pair's key; without a pairs table, that of its video
    and of its segment where a video has several.
    """
    # A clip without a curve has nothing to show.
    usable = [clip for clip in clips if clip["motion"] and clip["keyframes"]]
    if pair is not None and pair["key"] is not None:
        return next((clip for clip in usable if clip["key"] == pair["key"]), None)
    # Without a key: the very key-frame by number and time, else any clip that may hold it.
    candidates = (clip for clip in usable if _names_source(clip, triplet))
    return next(candidates, None) or next((clip for clip in usable if _may_hold(clip, triplet)), None)


def _names_source(clip: ClipCells, triplet: TripletCells) -> bool:
    """Return whether the triplet's source is a key-frame of the clip by its number and its very time."""
    times_s: dict[int | None, float] = dict(zip(clip["keyframes"] or [], clip["times_s"] or [], strict=False))
    return triplet["source_time_s"] is not None and times_s.get(triplet["source_frame"]) == triplet["source_time_s"]


def _may_hold(clip: ClipCells, triplet: TripletCells) -> bool:
    """Return whether the triplet's source may be a key-frame of the clip.

    Its number must be one, and its time lie within half a frame step of the segment, as segments are read
    (:mod:`wm.video.segments`).
    """
    time_s, frame = triplet["source_time_s"], triplet["source_frame"]
    if time_s is not None:
        middle_s = time_s + (clip["frame_s"] or 0.0) / 2
        if clip["start_s"] is not None and middle_s < clip["start_s"]:
            return False
        if clip["end_s"] is not None and middle_s >= clip["end_s"]:
            return False
    return frame is None or frame in (clip["keyframes"] or [])
