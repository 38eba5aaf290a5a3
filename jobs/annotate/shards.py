"""Write the shards of an annotation so that it may be interrupted at any time.

The listing is cut into shards of consecutive videos, the same for every run of a recipe, so that a shard's name, its
rows and the batches of its images never depend on what broke meanwhile. A shard is one Parquet file in each of
``triplets``, ``rejects``, ``clips`` and ``pairs`` and then ``shards/NAME.json``, which holds its counts and commits
it. Parquet files without their mark are leftovers of a killed run; they are removed before a run resumes, and so is a
mark whose files are not all there.
"""

import errno
import fcntl
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.annotate.tables import CLIPS_SCHEMA, PAIRS_SCHEMA, clip_rows
from wm.errors import InputError
from wm.files.uris import scheme_of
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, write_table
from wm.runs import write_json
from wm.words import count_words

TABLES = {"rejects": REJECT_SCHEMA, "clips": CLIPS_SCHEMA, "pairs": PAIRS_SCHEMA, "triplets": TRIPLET_SCHEMA}

_SHARDS_AT_LEAST = 16
_LISTING = ".listing.parquet"
_DIGEST = b"digest"


def shard_size(num_videos: int, videos_per_shard: int) -> int:
    """Compute the videos in a shard: ``videos_per_shard``, fewer where there would be too few shards for the actors."""
    return max(1, min(videos_per_shard, -(-num_videos // _SHARDS_AT_LEAST)))


def cut_shards(listing: pa.Table, videos_per_shard: int) -> dict[int, tuple[int, int]]:
    """Map each shard's number to its (first row, number of rows) of the listing."""
    size = shard_size(listing.num_rows, videos_per_shard)
    starts = range(0, listing.num_rows, size)
    return {number: (start, min(size, listing.num_rows - start)) for number, start in enumerate(starts)}


def shard_table(listing: pa.Table, number: int, start: int, rows: int) -> pa.Table:
    """Return the listing's rows of one shard, with a path for each video that holds in any worker."""
    table = listing.slice(start, rows)
    uris = table.column("uri").to_pylist()
    paths = [uri if scheme_of(uri) else os.path.abspath(uri) for uri in uris]  # noqa: PTH100 - links stay as named
    more = {"path": paths, "shard": [number] * rows, "shard_rows": [rows] * rows}
    for name, values in more.items():
        table = table.append_column(name, pa.array(values))
    return table.combine_chunks()


def keep_listing(out: Path, listing: pa.Table, digest: str) -> None:
    """Store the listing with which a run began, once: a resumed run uses it."""
    path = out / _LISTING
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        pq.write_table(listing.replace_schema_metadata({**(listing.schema.metadata or {}), _DIGEST: digest}), temporary)
        temporary.replace(path)


def kept_listing(out: Path) -> tuple[pa.Table, str] | None:
    """Load the listing that a run in this folder began with, and its digest; None if there is none."""
    path = out / _LISTING
    if not path.is_file():
        return None
    listing = pq.read_table(path)
    return listing, listing.schema.metadata[_DIGEST].decode()


def shard_name(number: int) -> str:
    """File name of a shard, without its ending."""
    return f"shard-{number:06d}"


TableRows: TypeAlias = Mapping[str, Sequence[Mapping[str, Any]]]
"""Rows by the name of their table."""


def write_shard(
    out: Path,
    number: int,
    videos: Sequence[dict[str, Any]],
    rows: TableRows,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write and commit one shard.

    Args:
        out: Folder of the run.
        number: Of the shard.
        videos: Rows of :data:`jobs.annotate.tables.DECODED_SCHEMA`.
        rows: Rows of triplets, rejects and pairs.
        seconds: Time spent on the shard before, by stage.

    Returns:
        The shard's counts.
    """
    begin, name = time.perf_counter(), shard_name(number)
    tables = {**rows, "clips": clip_rows(videos)}
    for table, schema in TABLES.items():
        if tables[table]:
            write_table(tables[table], out / table / f"{name}.parquet", schema)
        else:
            (out / table / f"{name}.parquet").unlink(missing_ok=True)
    # The tables first: the mark says that they are all there.
    counts = _counts(videos, rows, {**seconds, "write": time.perf_counter() - begin})
    (out / "shards").mkdir(parents=True, exist_ok=True)
    write_json(out / "shards" / f"{name}.json", counts)
    return counts


def _counts(videos: Sequence[dict[str, Any]], rows: TableRows, seconds: Mapping[str, float]) -> dict[str, Any]:
    triplets, rejects = rows["triplets"], rows["rejects"]
    # by key, not by URI: segments of one file are videos of their own
    accepted = [row for row in rows["pairs"] if row["outcome"] == "ok"]
    observed = {(row["key"], row[side]) for row in accepted for side in ("source_frame", "target_frame")}
    decoded = [video for video in videos if video["num_frames"]]
    paired = [video for video in decoded if len(video["keyframes"]) >= 2]
    return {
        "videos": len(videos),
        "decoded": len(decoded),
        "frames": sum(video["num_frames"] for video in decoded),
        "video_s": round(sum(video["duration_s"] for video in decoded), 6),
        "paired": len(paired),
        "keyframes": sum(len(video["keyframes"]) for video in decoded),
        "keyframes_of_paired": sum(len(video["keyframes"]) for video in paired),
        "pairs": len(rows["pairs"]),
        "triplets": len(triplets),
        "videos_with_triplets": len({row["key"] for row in accepted}),
        "observations": len(observed),
        "words": sum(count_words(row["action"]) for row in triplets),
        "filtered": sum(row["outcome"] == "filtered" for row in rejects),
        "failed": sum(row["outcome"] == "failed" for row in rejects),
        "reasons": dict(sorted(Counter(f"{row['outcome']}/{row['reason']}" for row in rejects).items())),
        "findings": dict(sorted(Counter(name for row in rows["pairs"] for name in row["findings"]).items())),
        "readers": dict(sorted(Counter(video["reader"] for video in videos if video["reader"]).items())),
        "decord_fallbacks": sum(bool(video["fallback"]) for video in videos),
        "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
    }


def shards_with(out: Path, reasons: Sequence[str]) -> list[Path]:
    """List the marks of the finished shards in which a video failed for one of ``reasons``."""
    failures = {f"failed/{reason}" for reason in reasons}
    marks = sorted((out / "shards").glob("shard-*.json"))
    return [path for path in marks if failures & (_committed(path) or {"reasons": {}})["reasons"].keys()]


@contextmanager
def sole_writer(out: Path) -> Iterator[None]:
    """Refuse a second driver: it would take the files of shards that the first has under way for leftovers.

    The lock ends with the process, however that ends. Raises :class:`InputError`.
    """
    with (out / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"{out} is being written by another annotate; wait for it, or end it first") from error
        except OSError as error:  # some shared file systems have no locks: there the user must take care
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        yield


def _committed(mark: Path) -> dict[str, Any] | None:
    """Load the counts of a shard; None where the mark is damaged or a file of it is missing."""
    # After a power cut, or a copy that was broken off: then the shard is made again.
    try:
        counts = dict(json.loads(mark.read_text()))
        tables = _filled(counts)
    except (ValueError, KeyError, TypeError):
        return None
    files = [mark.parent.parent / table / f"{mark.stem}.parquet" for table in tables]
    return counts if all(file.is_file() and file.stat().st_size for file in files) else None


def _filled(counts: Mapping[str, Any]) -> list[str]:
    """List the tables in which a shard has a row."""
    rows = {
        "rejects": counts["filtered"] + counts["failed"],
        "clips": counts["videos"],
        "pairs": counts["pairs"],
        "triplets": counts["triplets"],
    }
    return [table for table in TABLES if rows[table]]


def tidy(out: Path) -> set[int]:
    """Remove what a killed run left unfinished; returns the numbers of the finished shards."""
    finished: set[int] = set()
    names: dict[str, set[str]] = {table: set() for table in TABLES}
    for path in (out / "shards").glob("shard-*.json"):
        counts = _committed(path)
        if counts is None:
            path.unlink()
            continue
        finished.add(int(path.stem.removeprefix("shard-")))
        for table in _filled(counts):
            names[table].add(path.stem)
    # Files without a mark, then temporary files.
    for table in TABLES:
        for path in (out / table).glob("*.parquet"):
            if path.stem not in names[table]:
                path.unlink()
    for table in (*TABLES, "shards"):
        for path in (out / table).glob(".*.tmp"):
            path.unlink()
    return finished


def summarise(out: Path) -> dict[str, Any]:
    """Sum the counts of all committed shards, with the columns of the paper's Table 7."""
    total: dict[str, Any] = {}
    for path in sorted((out / "shards").glob("shard-*.json")):
        _add(total, json.loads(path.read_text()))
    if not total:
        return {"videos": 0}
    total["video_s"] = round(total["video_s"], 3)
    total["rejects_by_reason"] = dict(sorted(total.pop("reasons").items()))
    total["stage_s"] = {stage: round(value, 3) for stage, value in total.pop("seconds").items()}
    total["keyframes_per_used_video"] = _ratio(total["keyframes_of_paired"], total["paired"])
    total["table7"] = table7(total)
    return total


def table7(counts: Mapping[str, Any]) -> dict[str, float | None]:
    """Compute the columns of the paper's Table 7.

    Lengths are those of all videos that decode; observations (key-frames in a triplet), actions and words are counted
    over the samples, which are videos with a triplet (the paper's 2.05 observations a video on average cannot be over
    all videos, as reading (a) leaves many with one). Where no filter took a pair out, observations are all key-frames
    and one more than actions, as in the paper.

    Args:
        counts: Sums over the shards.

    Returns:
        Seconds, hours, and means a video or action; a mean over nothing is None.
    """
    return {
        "mean_length_s": _ratio(counts["video_s"], counts["decoded"]),
        "total_length_h": round(counts["video_s"] / 3600, 4),
        "samples": counts["videos_with_triplets"],
        "observations_per_video": _ratio(counts["observations"], counts["videos_with_triplets"]),
        "actions_per_video": _ratio(counts["triplets"], counts["videos_with_triplets"]),
        "words_per_action": _ratio(counts["words"], counts["triplets"]),
    }


def _ratio(numerator: float, denominator: float) -> float | None:
    return round(numerator / denominator, 3) if denominator else None


def _add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    for name, value in counts.items():
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
