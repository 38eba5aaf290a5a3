"""Read the rows of the page block by block in the order of the files, with the clip and the scores of each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from wm.errors import InputError
from wm.records import TRIPLET_SCHEMA
from wm.viewer.sample import Pick, read_batches
from wm.viewer.source import Source, open_parquet

_CODES = {"source_codes", "target_codes"}
COLUMNS = [name for name in TRIPLET_SCHEMA.names if name not in _CODES] + (
    [] if "reader" in TRIPLET_SCHEMA.names else ["reader"]
)
CLIP_COLUMNS = ["key", "uri", "start_s", "end_s", "num_frames", "keyframes", "times_s", "motion", "fallback"]
CLIP_COLUMNS += ["frame_s", "orientation", "sample_aspect_ratio"]
PAIR_COLUMNS = [
    "triplet_id",
    "key",
    "difference",
    "cut",
    "luma",
    "sharpness",
    "source_hash",
    "target_hash",
    "repeat_bits",
]


@dataclass(frozen=True)
class Row:
    """A triplet (its columns but the codes), its clip and its pair's scores, if those tables have them."""

    triplet: dict[str, Any]
    clip: dict[str, Any] | None
    pair: dict[str, Any] | None


def read_rows(source: Source, picks: Sequence[Pick]) -> Iterator[Row]:
    """Iterate over the picked rows, in order. Few are held at a time."""
    for file, mine in groupby(picks, key=lambda pick: pick.file):
        with open_parquet(file) as parquet:
            for pick in mine:
                for table in read_batches(parquet, file, pick, COLUMNS):
                    yield from _join_tables(source, file, _to_python(table, file))


def _join_tables(source: Source, file: Path, rows: Sequence[dict[str, Any]]) -> Iterator[Row]:
    clips, pairs = _load_clips(source, file, rows), _load_pairs(source, file, rows)
    for row in rows:
        pair = pairs.get(row["triplet_id"])
        yield Row(row, _find_clip(row, clips.get(row["video_uri"] or "", []), pair), pair)


def _to_python(table: pa.Table, file: Path) -> list[dict[str, Any]]:
    """Convert rows to the types of the triplet schema, whatever wrote the file."""
    for position, name in enumerate(COLUMNS):
        expected = TRIPLET_SCHEMA.field(name).type if name in TRIPLET_SCHEMA.names else pa.string()
        try:
            table = table.set_column(position, name, table[name].cast(expected))
        except pa.ArrowException as error:
            raise InputError(f"{file} has {name} as {table[name].type}, expected {expected}") from error
    try:
        return list(table.to_pylist())
    except UnicodeDecodeError as error:
        raise InputError(f"{file} holds a text that is not UTF-8: {error}") from error


def _load_clips(source: Source, file: Path, rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    uris = {row["video_uri"] for row in rows if row["video_uri"]}
    clips: dict[str, list[dict[str, Any]]] = {}
    for clip in _load_matching(source.clips.get(file.stem), CLIP_COLUMNS, "uri", uris):
        clips.setdefault(clip["uri"], []).append(clip)
    return clips


def _load_pairs(source: Source, file: Path, rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    ids = {row["triplet_id"] for row in rows}
    return {
        pair["triplet_id"]: pair
        for pair in _load_matching(source.pairs.get(file.stem), PAIR_COLUMNS, "triplet_id", ids)
    }


def _load_matching(file: Path | None, columns: Sequence[str], key: str, values: set[str]) -> list[dict[str, Any]]:
    if file is None or not values:
        return []
    with open_parquet(file) as parquet:
        names = [name for name in columns if name in parquet.schema_arrow.names]
    if key not in names:
        raise InputError(f"{file} lacks the column {key!r}")
    try:
        table = pads.dataset(str(file)).to_table(
            columns=names, filter=pc.field(key).isin(pa.array(sorted(values))), use_threads=False
        )
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return [dict.fromkeys(columns) | row for row in table.to_pylist()]


def _find_clip(
    row: dict[str, Any], clips: Sequence[dict[str, Any]], pair: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Find the clip that a triplet was cut from: that of its pair's key; without a pairs table, that of its video
    and of its segment where a video has several."""
    # A clip without a curve has nothing to show.
    usable = [clip for clip in clips if clip["motion"] and clip["keyframes"]]
    if pair is not None and pair["key"] is not None:
        return next((clip for clip in usable if clip["key"] == pair["key"]), None)
    candidates = (clip for clip in usable if _names_source(clip, row))
    return next(candidates, None) or next((clip for clip in usable if _holds(clip, row)), None)


def _names_source(clip: dict[str, Any], row: dict[str, Any]) -> bool:
    """Return whether the triplet's source is a key-frame of the clip by its number and its very time."""
    times_s = dict(zip(clip["keyframes"], clip["times_s"] or [], strict=False))
    return row["source_time_s"] is not None and times_s.get(row["source_frame"]) == row["source_time_s"]


def _holds(clip: dict[str, Any], row: dict[str, Any]) -> bool:
    """Return whether the triplet's source may be a key-frame of the clip.

    Its number must be one, and its time lie within half a frame step of the segment, as segments are read
    (:mod:`wm.video.segments`).
    """
    time_s, frame = row["source_time_s"], row["source_frame"]
    if time_s is not None:
        place_s = time_s + (clip["frame_s"] or 0.0) / 2
        if clip["start_s"] is not None and place_s < clip["start_s"]:
            return False
        if clip["end_s"] is not None and place_s >= clip["end_s"]:
            return False
    return frame is None or frame in clip["keyframes"]
