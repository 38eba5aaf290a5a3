"""Count what became of a shard's videos, and sum the counts of a run. Knows no file but the shards' marks."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from jobs.annotate.marks import read_all
from jobs.annotate.tables import DecodedVideo, PairRow
from wm.datasets.statistics import Table7, VideoSums
from wm.records import RejectRow, TripletRow
from wm.video.device_flow import NO_DEVICE
from wm.words import count_words


class ShardRows(TypedDict):
    """Rows of a shard's tables but for ``clips``."""

    triplets: list[TripletRow]
    rejects: list[RejectRow]
    pairs: list[PairRow]


class ShardCounts(TypedDict):
    """What a shard's mark holds; numbers are summed over shards, key by key.

    Attributes:
        videos: All of the shard.
        decoded: Videos with frames.
        frames: Frames of these.
        video_s: Seconds of these.
        paired: Videos with two key-frames or more.
        keyframes: Key-frames of the decoded videos.
        keyframes_of_paired: Key-frames of the paired videos.
        pairs: Proposed pairs.
        triplets: Pairs that became triplets.
        videos_with_triplets: Videos that have one.
        observations: Key-frames in a triplet.
        words: Words of all actions.
        filtered: Rejects that were filtered.
        failed: Rejects that failed.
        reasons: Rejects by ``outcome/reason``.
        findings: Pairs beyond each threshold.
        readers: Videos by who read their frames.
        decord_fallbacks: Videos on which decord gave up.
        measured_on: Videos by who measured their motion (:attr:`wm.video.Scan.measured_on`).
        seconds: Time by stage.
    """

    videos: int
    decoded: int
    frames: int
    video_s: float
    paired: int
    keyframes: int
    keyframes_of_paired: int
    pairs: int
    triplets: int
    videos_with_triplets: int
    observations: int
    words: int
    filtered: int
    failed: int
    reasons: dict[str, int]
    findings: dict[str, int]
    readers: dict[str, int]
    decord_fallbacks: int
    measured_on: dict[str, int]
    seconds: dict[str, float]


def count_shard(videos: Sequence[DecodedVideo], rows: ShardRows, seconds: Mapping[str, float]) -> ShardCounts:
    """Count what became of a shard.

    Args:
        videos: All of the shard.
        rows: What became of them.
        seconds: Time by stage.
    """
    triplets, rejects = rows["triplets"], rows["rejects"]
    # By key, not by URI: segments of one file are videos of their own.
    accepted = [row for row in rows["pairs"] if row["outcome"] == "ok"]
    observed = {(row["key"], frame) for row in accepted for frame in (row["source_frame"], row["target_frame"])}
    # Videos that decode, and those of them that can give a pair.
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
        "measured_on": dict(sorted(Counter(video.get("measured_on") or NO_DEVICE for video in decoded).items())),
        "seconds": {stage: round(value, 6) for stage, value in seconds.items()},
    }


def summarise(out: Path) -> dict[str, Any]:
    """Sum the counts of all committed shards, with the columns of the paper's Table 7."""
    total: dict[str, Any] = {}
    marks = sorted((out / "shards").glob("shard-*.json"))
    for _, text in read_all(Path.read_text, marks):
        _add(total, json.loads(text))
    if not total:
        return {"videos": 0}
    # Rounded once all are added.
    total["video_s"] = round(total["video_s"], 3)
    total["rejects_by_reason"] = dict(sorted(total.pop("reasons").items()))
    total["stage_s"] = {stage: round(value, 3) for stage, value in total.pop("seconds").items()}
    total["keyframes_per_used_video"] = _ratio(total["keyframes_of_paired"], total["paired"])
    total["table7"] = table7(total)
    return total


def stage_rates(counts: Mapping[str, Any]) -> dict[str, float]:
    """Compute how much of each stage's work one actor does a second.

    Args:
        counts: Of a run, see :func:`summarise`.

    Returns:
        Rate by name; none of a stage that did nothing.
    """
    amounts = {
        "scan_frames": counts["frames"],
        "fetch_images": counts["keyframes_of_paired"],
        "encode_images": counts["keyframes_of_paired"],
        "idm_pairs": counts["pairs"],
        "write_triplets": counts["triplets"],
    }
    # The first word of a rate is its stage; a stage that did nothing has no rate.
    seconds = {name: counts["stage_s"].get(name.split("_")[0]) for name in amounts}
    return {f"{name}_per_s": round(amounts[name] / value, 2) for name, value in seconds.items() if value}


def table7(counts: Mapping[str, Any]) -> Table7:
    """Compute the columns of the paper's Table 7 from a run's sums: :meth:`wm.datasets.statistics.VideoSums.to_table7`.

    Args:
        counts: Sums over the shards.
    """
    return VideoSums(
        video_s=counts["video_s"],
        decoded=counts["decoded"],
        samples=counts["videos_with_triplets"],
        observations=counts["observations"],
        triplets=counts["triplets"],
        words=counts["words"],
    ).to_table7()


def _ratio(numerator: float, denominator: float) -> float | None:
    return round(numerator / denominator, 3) if denominator else None


def _add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    for name, value in counts.items():
        # Counts by reason, reader or stage.
        if isinstance(value, dict):
            _add(total.setdefault(name, {}), value)
        else:
            total[name] = total.get(name, 0) + value
