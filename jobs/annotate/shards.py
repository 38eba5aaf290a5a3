"""Write the shards of an annotation so that it may be interrupted at any time.

The listing is cut into shards of consecutive videos, the same for every run of a recipe, so that a shard's name, its
rows and the batches of its images never depend on what broke meanwhile. A shard is one Parquet file in each of
``triplets``, ``rejects``, ``clips`` and ``pairs`` and then ``shards/NAME.json``, which holds its counts and commits
it. Parquet files without their mark are leftovers of a killed run; they are removed before a run resumes, and so is a
mark whose files are not all there.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jobs.annotate.counts import ShardCounts, ShardRows, count_shard
from jobs.annotate.marks import read_all
from jobs.annotate.tables import CLIPS_SCHEMA, PAIRS_SCHEMA, DecodedVideo, clip_rows
from wm.files.mirror import fetch, list_below, publish, remove, uri_of
from wm.files.uris import scheme_of
from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA
from wm.runs import write_json
from wm.tables import has_files, write_table

TABLES = {"rejects": REJECT_SCHEMA, "clips": CLIPS_SCHEMA, "pairs": PAIRS_SCHEMA, "triplets": TRIPLET_SCHEMA}

_MIN_SHARDS = 16
_LISTING = ".listing.parquet"
_DIGEST = b"digest"


def shard_size(num_videos: int, videos_per_shard: int) -> int:
    """Compute the videos in a shard: ``videos_per_shard``, fewer where there would be too few shards for the actors.

    Args:
        num_videos: Videos in all.
        videos_per_shard: Max number of a shard.
    """
    return max(1, min(videos_per_shard, -(-num_videos // _MIN_SHARDS)))


def cut_shards(listing: pa.Table, videos_per_shard: int) -> dict[int, tuple[int, int]]:
    """Map each shard's number to its (first row, number of rows) of the listing.

    Args:
        listing: A row a video.
        videos_per_shard: Max number of videos of a shard.
    """
    size = shard_size(listing.num_rows, videos_per_shard)
    starts = range(0, listing.num_rows, size)
    return {number: (start, min(size, listing.num_rows - start)) for number, start in enumerate(starts)}


def shard_table(listing: pa.Table, number: int, start: int, rows: int) -> pa.Table:
    """Return the listing's rows of one shard, with a path for each video that holds in any worker.

    Args:
        listing: A row a video.
        number: Of the shard.
        start: Its first row.
        rows: Number of its rows.
    """
    table = listing.slice(start, rows)
    # Absolute, because a worker's folder is not the driver's.
    uris = table.column("uri").to_pylist()
    paths = [uri if scheme_of(uri) else os.path.abspath(uri) for uri in uris]  # noqa: PTH100 - links stay as named
    more = {"path": paths, "shard": [number] * rows, "shard_rows": [rows] * rows}
    for name, values in more.items():
        table = table.append_column(name, pa.array(values))
    return table.combine_chunks()


def store_listing(out: Path, listing: pa.Table, digest: str) -> None:
    """Store the listing with which a run began, once: a resumed run uses it.

    Args:
        out: Folder of the run.
        listing: A row a video.
        digest: Of the listing.
    """
    path = out / _LISTING
    if not path.exists():
        temporary = path.with_suffix(".tmp")
        pq.write_table(listing.replace_schema_metadata({**(listing.schema.metadata or {}), _DIGEST: digest}), temporary)
        temporary.replace(path)
    publish(path)


def load_listing(out: Path) -> tuple[pa.Table, str] | None:
    """Load the listing that a run in this folder began with, and its digest; None if there is none."""
    path = out / _LISTING
    if uri_of(path) is not None and not list_below(path, missing_ok=True):
        return None
    path = fetch(path) if uri_of(path) is not None else path
    if not path.is_file():
        return None
    listing = pq.read_table(path)
    return listing, listing.schema.metadata[_DIGEST].decode()


def shard_name(number: int) -> str:
    """Name the files of a shard, without their ending."""
    return f"shard-{number:06d}"


def write_shard(
    out: Path,
    number: int,
    videos: Sequence[DecodedVideo],
    rows: ShardRows,
    seconds: Mapping[str, float],
) -> ShardCounts:
    """Write and commit one shard.

    Args:
        out: Folder of the run.
        number: Of the shard.
        videos: All of the shard.
        rows: What became of them.
        seconds: Time spent on the shard before, by stage.

    Returns:
        The shard's counts.
    """
    begin, name = time.perf_counter(), shard_name(number)
    tables: dict[str, Sequence[Mapping[str, object]]] = {
        "rejects": rows["rejects"],
        "clips": clip_rows(videos),
        "pairs": rows["pairs"],
        "triplets": rows["triplets"],
    }
    for table, schema in TABLES.items():
        path = out / table / f"{name}.parquet"
        if tables[table]:
            write_table(tables[table], path, schema)
        else:
            remove(path)
    # The tables first: the mark says that they are all there.
    counts = count_shard(videos, rows, {**seconds, "write": time.perf_counter() - begin})
    (out / "shards").mkdir(parents=True, exist_ok=True)
    mark = out / "shards" / f"{name}.json"
    write_json(mark, counts)
    publish(mark)
    return counts


def shards_with(out: Path, reasons: Sequence[str]) -> list[Path]:
    """List the marks of the finished shards in which a video failed for one of ``reasons``.

    Args:
        out: Folder of the run.
        reasons: Reasons of failed videos.
    """
    failures = {f"failed/{reason}" for reason in reasons}
    if has_files(out / "shards"):
        fetch(out / "shards")
    marks = sorted((out / "shards").glob("shard-*.json"))
    load = partial(_load_mark, sizes=_sizes_in_bucket(out))
    return [path for path, counts in read_all(load, marks) if counts and failures & counts["reasons"].keys()]


def _sizes_in_bucket(out: Path) -> dict[str, int] | None:
    """List the sizes of a run's files by their names below ``out``; None if it is in no bucket."""
    if uri_of(out) is None:
        return None
    return {facts.name: facts.size_bytes for facts in list_below(out, missing_ok=True)}


def _load_mark(mark: Path, sizes: Mapping[str, int] | None = None) -> ShardCounts | None:
    """Load the counts of a shard; None where the mark is damaged or a file of it is missing.

    Args:
        mark: The file.
        sizes: Of the files of a run in a bucket, which need not be here.
    """
    # After a power cut, or a copy that was broken off: then the shard is made again.
    try:
        counts: ShardCounts = json.loads(mark.read_text())
        tables = _filled(counts)
    except (ValueError, KeyError, TypeError):
        return None
    names = [f"{table}/{mark.stem}.parquet" for table in tables]
    if sizes is not None:
        return counts if all(sizes.get(name) for name in names) else None
    files = [mark.parent.parent / name for name in names]
    return counts if all(file.is_file() and file.stat().st_size for file in files) else None


def _filled(counts: ShardCounts) -> list[str]:
    """List the tables in which a shard has a row."""
    # A table without rows in a shard has no file.
    rows = {
        "rejects": counts["filtered"] + counts["failed"],
        "clips": counts["videos"],
        "pairs": counts["pairs"],
        "triplets": counts["triplets"],
    }
    return [table for table in TABLES if rows[table]]


def tidy(out: Path) -> set[int]:
    """Remove what a killed run left unfinished; returns the numbers of the finished shards."""
    # 1. Shards whose mark and files are all there.
    finished: set[int] = set()
    names: dict[str, set[str]] = {table: set() for table in TABLES}
    sizes = _sizes_in_bucket(out)
    # Marks that other nodes have published since.
    if sizes is not None and any(name.startswith("shards/") for name in sizes):
        fetch(out / "shards", prune=True)
    load = partial(_load_mark, sizes=sizes)
    for path, counts in read_all(load, list((out / "shards").glob("shard-*.json"))):
        if counts is None:
            remove(path)
            continue
        finished.add(int(path.stem.removeprefix("shard-")))
        for table in _filled(counts):
            names[table].add(path.stem)
    # 2. Files without a mark.
    for table in TABLES:
        in_bucket = [out / name for name in sizes or () if name.startswith(f"{table}/") and name.endswith(".parquet")]
        for path in {*(out / table).glob("*.parquet"), *in_bucket}:
            if path.stem not in names[table]:
                remove(path)
    # 3. What no process will rename any more.
    for table in (*TABLES, "shards"):
        for path in (out / table).glob(".*.tmp"):
            path.unlink()
    return finished
