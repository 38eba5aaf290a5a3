"""Shards of an annotation on disk, and what makes them safe to interrupt.

A shard is three files of one name: ``rejects/NAME.parquet``, ``triplets/NAME.parquet`` and then
``shards/NAME.json``, which lists its videos and commits it. The name is a digest of the videos, so a task
that is run again writes the same files over. Parquet files without their mark are leftovers of a killed run
and are removed before a run goes on.
"""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA, stable_id, write_table
from wm.runs import write_json

TABLES = {"triplets": TRIPLET_SCHEMA, "rejects": REJECT_SCHEMA}


def write_shard(
    out: Path, videos: Sequence[dict[str, Any]], triplets: list[dict[str, Any]], rejects: list[dict[str, Any]]
) -> dict[str, int]:
    """Write and commit one shard; returns the counts that a progress bar shows."""
    keys = sorted(video["key"] for video in videos)
    name = stable_id(*keys)
    for table, rows in (("rejects", rejects), ("triplets", triplets)):
        if rows:
            write_table(rows, out / table / f"{name}.parquet", TABLES[table])
    (out / "shards").mkdir(parents=True, exist_ok=True)
    write_json(out / "shards" / f"{name}.json", {"videos": [_mark(video) for video in videos]})
    return {"videos": len(videos), "triplets": len(triplets), "rejects": len(rejects)}


def _mark(video: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a video beside its rows."""
    return {
        "key": video["key"],
        "uri": video["uri"],
        "reader": video["reader"] or "",
        "fallback": video["fallback"] or "",
        "num_frames": video["num_frames"] or 0,
        "duration_s": round(video["duration_s"] or 0.0, 6),
        "keyframes": len(video["frames"] or []),
    }


def read_marks(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Shard name → its videos, for every committed shard."""
    folder = out / "shards"
    if not folder.is_dir():
        return {}
    return {path.stem: json.loads(path.read_text())["videos"] for path in sorted(folder.glob("[!.]*.json"))}


def tidy(out: Path) -> set[str]:
    """Remove what a killed run left half done; returns the keys of the videos that are finished.

    Files without a mark go. A video in two shards (a worker of a killed run may have outlived it) stays in
    the first by name only.
    """
    marks = read_marks(out)
    for table in TABLES:
        for path in [*out.glob(f"{table}/*.parquet"), *out.glob(f"{table}/.*.tmp")]:
            if path.stem not in marks or path.name.startswith("."):
                path.unlink()
    for path in out.glob("shards/.*.tmp"):
        path.unlink()
    done: set[str] = set()
    for name, videos in marks.items():
        repeated = {video["key"] for video in videos if video["key"] in done}
        if repeated:
            _drop(out, name, videos, repeated)
        done |= {video["key"] for video in videos}
    return done


def _drop(out: Path, name: str, videos: list[dict[str, Any]], keys: set[str]) -> None:
    """Take videos out of a shard, its mark last: killed in between, the same is simply done again."""
    uris = {video["uri"] for video in videos if video["key"] in keys}
    for table, column in (("triplets", "video_uri"), ("rejects", "uri")):
        path = out / table / f"{name}.parquet"
        if path.exists():
            rows = [row for row in pq.read_table(path, schema=TABLES[table]).to_pylist() if row[column] not in uris]
            write_table(rows, path, TABLES[table])
    kept = [video for video in videos if video["key"] not in keys]
    write_json(out / "shards" / f"{name}.json", {"videos": kept})


def summarise(out: Path) -> dict[str, Any]:
    """Counts of everything committed: videos, frames, key-frames, pairs, rejects by outcome and reason,
    readers."""
    videos = [video for marked in read_marks(out).values() for video in marked]
    triplets = _column(out / "triplets", "video_uri")
    rejects = list(zip(_column(out / "rejects", "outcome"), _column(out / "rejects", "reason"), strict=True))
    outcomes = Counter(outcome for outcome, _ in rejects)
    used = [video for video in videos if video["keyframes"] >= 2]
    return {
        "videos": len(videos),
        "videos_with_triplets": len(set(triplets)),
        "frames": sum(video["num_frames"] for video in videos),
        "video_s": round(sum(video["duration_s"] for video in videos), 3),
        "keyframes": sum(video["keyframes"] for video in videos),
        "keyframes_per_used_video": round(sum(video["keyframes"] for video in used) / max(1, len(used)), 3),
        "triplets": len(triplets),
        "filtered": outcomes["filtered"],
        "failed": outcomes["failed"],
        "rejects_by_reason": dict(sorted(Counter("/".join(pair) for pair in rejects).items())),
        "readers": dict(sorted(Counter(video["reader"] for video in videos if video["reader"]).items())),
        "decord_fallbacks": sum(bool(video["fallback"]) for video in videos),
    }


def _column(folder: Path, name: str) -> list[str]:
    values: list[str] = []
    for path in sorted(folder.glob("[!.]*.parquet")):
        values += pq.read_table(path, columns=[name]).column(name).to_pylist()
    return values
