"""Count the work of ``annotate`` in Prometheus metrics, through Ray's own exporter (every node serves them).

``ray_wm_annotate_videos_total{outcome}``, ``ray_wm_annotate_pairs_total{outcome}``,
``ray_wm_annotate_rejects_total{reason}``, ``ray_wm_annotate_stage_seconds_total{stage}``,
``ray_wm_annotate_frames_total``; each with ``dataset``, the recipe's name for what is annotated.
"""

from jobs.annotate.counts import ShardCounts
from jobs.annotate.tables import DECODE_STAGES, DecodedVideo, stage_seconds


class Metrics:
    """Counters of one actor; Ray adds them up by node and process."""

    def __init__(self, dataset: str) -> None:
        from ray.util.metrics import Counter

        # All runs of a node share the exporter: the data set keeps them apart.
        def counter(name: str, description: str, *tags: str) -> Counter:
            metric = Counter(f"wm_annotate_{name}", description, tag_keys=("dataset", *tags))
            metric.set_default_tags({"dataset": dataset})
            return metric

        self._videos = counter("videos", "Videos decoded, by outcome", "outcome")
        self._frames = counter("frames", "Frames decoded")
        self._pairs = counter("pairs", "Pairs proposed, by outcome", "outcome")
        self._rejects = counter("rejects", "Reject rows, by reason", "reason")
        self._seconds = counter("stage_seconds", "Seconds spent, by stage", "stage")

    def video(self, row: DecodedVideo) -> None:
        """Count a decoded video."""
        self._videos.inc(1, {"outcome": row.get("outcome") or "ok"})
        self._add_frames(row.get("num_frames") or 0)
        for stage in DECODE_STAGES:
            self._add_seconds(stage, stage_seconds(row, stage))

    def shard(self, counts: ShardCounts) -> None:
        """Count a written shard (the counts of :func:`jobs.annotate.shards.write_shard`)."""
        # A counter that was never moved is not served: zeros are left out.
        for outcome, number in (("ok", counts["triplets"]), ("filtered", counts["pairs"] - counts["triplets"])):
            if number:
                self._pairs.inc(number, {"outcome": outcome})
        for reason, number in counts["reasons"].items():
            self._rejects.inc(number, {"reason": reason})
        for stage in ("encode", "idm", "write"):
            self._add_seconds(stage, counts["seconds"].get(stage, 0.0))

    def _add_frames(self, frames: int) -> None:
        if frames:
            self._frames.inc(frames)

    def _add_seconds(self, stage: str, seconds: float) -> None:
        if seconds > 0:
            self._seconds.inc(seconds, {"stage": stage})
