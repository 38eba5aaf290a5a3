"""Prometheus metrics of ``annotate``, through Ray's own exporter (every node serves them; see Ray's "metrics").

``ray_wm_annotate_videos_total{outcome}``, ``ray_wm_annotate_pairs_total{outcome}``,
``ray_wm_annotate_rejects_total{reason}``, ``ray_wm_annotate_stage_seconds_total{stage}``,
``ray_wm_annotate_frames_total``.
"""

from collections.abc import Mapping
from typing import Any

from jobs._annotate_tables import DECODE_STAGES


class Metrics:
    """Counters of one actor; Ray adds them up by node and process."""

    def __init__(self) -> None:
        from ray.util.metrics import Counter

        self._videos = Counter("wm_annotate_videos", "Videos decoded, by outcome", tag_keys=("outcome",))
        self._frames = Counter("wm_annotate_frames", "Frames decoded")
        self._pairs = Counter("wm_annotate_pairs", "Pairs proposed, by outcome", tag_keys=("outcome",))
        self._rejects = Counter("wm_annotate_rejects", "Reject rows, by reason", tag_keys=("reason",))
        self._seconds = Counter("wm_annotate_stage_seconds", "Seconds spent, by stage", tag_keys=("stage",))

    def video(self, row: Mapping[str, Any]) -> None:
        """Count a decoded video."""
        self._videos.inc(1, {"outcome": row.get("outcome") or "ok"})
        self._frames_seen(row.get("num_frames") or 0)
        for stage in DECODE_STAGES:
            self._spent(stage, row.get(f"{stage}_s") or 0.0)

    def shard(self, counts: Mapping[str, Any]) -> None:
        """Count a written shard (the counts of :func:`jobs._annotate_shards.write_shard`)."""
        for outcome, number in (("ok", counts["triplets"]), ("filtered", counts["pairs"] - counts["triplets"])):
            if number:
                self._pairs.inc(number, {"outcome": outcome})
        for reason, number in counts["reasons"].items():
            self._rejects.inc(number, {"reason": reason})
        for stage in ("encode", "idm", "write"):
            self._spent(stage, counts["seconds"].get(stage, 0.0))

    def _frames_seen(self, frames: int) -> None:
        if frames:
            self._frames.inc(frames)

    def _spent(self, stage: str, seconds: float) -> None:
        if seconds > 0:
            self._seconds.inc(seconds, {"stage": stage})
