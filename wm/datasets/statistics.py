"""Count the columns of the paper's Table 7: how long the videos of an annotation are, and what they gave.

Works on the tables of an annotation, those of earlier versions too, and on the sums that a run keeps of itself.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
import pyarrow.compute as pc

from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.errors import InputError
from wm.tables import has_files, open_parquet, read_table, table_files
from wm.words import count_words

Table7: TypeAlias = dict[str, float | None]
"""``mean_length_s, total_length_h, samples, observations_per_video, actions_per_video, words_per_action``; a mean over
nothing is None."""

TITLES = {
    "mean_length_s": "mean length, s",
    "total_length_h": "total length, h",
    "samples": "samples",
    "observations_per_video": "observations/video",
    "actions_per_video": "actions/video",
    "words_per_action": "words/action",
}
"""Title of each column."""

_CLIPS = ["num_frames", "duration_s"]
_PAIRS = ["triplet_id", "key", "source_frame", "target_frame", "action", "outcome"]


@dataclass
class VideoSums:
    """Sums over the videos of an annotation.

    Attributes:
        video_s: Seconds of the videos that decode.
        decoded: Their number.
        samples: Videos with a triplet.
        observations: Key-frames in a triplet.
        triplets: Triplets, each of one action.
        words: Words of all actions.
    """

    video_s: float = 0.0
    decoded: int = 0
    samples: int = 0
    observations: int = 0
    triplets: int = 0
    words: int = 0

    def to_table7(self) -> Table7:
        """Compute the columns of the paper's Table 7.

        Lengths are those of all videos that decode; observations (key-frames in a triplet), actions and words are
        counted over the samples, which are videos with a triplet (the paper's 2.05 observations a video on average
        cannot be over all videos, as reading (a) leaves many with one). Where no filter took a pair out, observations
        are all key-frames and one more than actions, as in the paper.

        Returns:
            Seconds, hours, and means a video or action; a mean over nothing is None.
        """
        return {
            "mean_length_s": _ratio(self.video_s, self.decoded),
            "total_length_h": round(self.video_s / 3600, 4),
            "samples": self.samples,
            "observations_per_video": _ratio(self.observations, self.samples),
            "actions_per_video": _ratio(self.triplets, self.samples),
            "words_per_action": _ratio(self.words, self.triplets),
        }


def count_table7(folder: str | Path, selection: str | Path | None = None) -> Table7:
    """Count the columns from the tables ``clips`` and ``pairs`` of an annotation, file by file.

    Args:
        folder: Output folder of an annotation.
        selection: Folder of a selection among its triplets: observations, actions and words are then those of the
            chosen ones. Lengths stay those of all videos.

    Returns:
        As :meth:`VideoSums.to_table7`.

    Raises:
        InputError: The folder has no such tables, or a file of them cannot be read.
    """
    # Ids of the chosen triplets alone: 24 bytes each.
    chosen: pa.Array | None = None
    if selection is not None:
        inner = Path(selection) / "selection"
        rows = read_table(inner if inner.is_dir() else selection, SELECTION_SCHEMA, ["triplet_id"])
        chosen = rows.column("triplet_id").combine_chunks()
    sums = VideoSums()
    for file in _files_of(folder, "clips"):
        clips = _read_columns(file, _CLIPS)
        # Videos that failed have no frames.
        decoded = clips.filter(pc.greater(pc.fill_null(clips.column("num_frames"), 0), 0))
        sums.decoded += decoded.num_rows
        sums.video_s += pc.sum(decoded.column("duration_s")).as_py() or 0.0
    # A pair that became no triplet is no observation either.
    for file in _files_of(folder, "pairs"):
        pairs = _read_columns(file, _PAIRS)
        pairs = pairs.filter(pc.equal(pairs.column("outcome"), "ok"))
        if chosen is not None:
            pairs = pairs.filter(pc.is_in(pairs.column("triplet_id"), chosen))
        _add_pairs(sums, pairs)
    return sums.to_table7()


def markdown_table(table: Mapping[str, float | None]) -> list[str]:
    """Build the lines of a Markdown table of the columns."""
    # A mean over nothing is a dash, never 0.
    values = [f"{value:g}" if value is not None else "–" for value in (table.get(name) for name in TITLES)]
    return [f"| {' | '.join(TITLES.values())} |", f"|{' --- |' * len(TITLES)}", f"| {' | '.join(values)} |"]


def _add_pairs(sums: VideoSums, pairs: pa.Table) -> None:
    # By key, not by URI: segments of one file are videos of their own. A video is in one file, so that files add up.
    keys: list[str] = pairs.column("key").to_pylist()
    sums.samples += len(set(keys))
    frames = [pairs.column(name).to_pylist() for name in ("source_frame", "target_frame")]
    sums.observations += len({pair for column in frames for pair in zip(keys, column, strict=True)})
    sums.triplets += pairs.num_rows
    sums.words += sum(count_words(action) for action in pairs.column("action").to_pylist())


def _files_of(folder: str | Path, name: str) -> Sequence[Path]:
    path = Path(folder) / name
    if not has_files(path):
        raise InputError(f"{folder} has no table {name!r}: Table 7 is counted from the output folder of an annotation")
    return table_files(path)


def _read_columns(file: Path, columns: Sequence[str]) -> pa.Table:
    with open_parquet(file) as parquet:
        names = parquet.schema_arrow.names
        if missing := [name for name in columns if name not in names]:
            raise InputError(f"{file} lacks the column {missing[0]!r}; columns found: {', '.join(names)}")
        # The motion curves and hashes beside them stay on the disk.
        return parquet.read(columns=list(columns))


def _ratio(numerator: float, denominator: float) -> float | None:
    return round(numerator / denominator, 3) if denominator else None
