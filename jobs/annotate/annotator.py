"""Annotate key-frames in an actor, which may hold a GPU: key-frames in, a committed shard of triplets and rejects out.

Not known here: how a video is decoded, and which shards there are.
"""

import itertools
import json
import logging
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from jobs.annotate.counts import ShardRows
from jobs.annotate.filtering import filter_codes, filter_images
from jobs.annotate.frames import Frames, encode_frames, frame_keys
from jobs.annotate.metrics import Metrics
from jobs.annotate.models import load_annotator_models
from jobs.annotate.pairs import Pair, Seconds, even_chunks, halve_when_full, propose_pairs
from jobs.annotate.settings import AnnotatorSettings
from jobs.annotate.shards import shard_name, write_shard
from jobs.annotate.tables import DECODE_STAGES, DecodedVideo, report_problem, stage_seconds, to_batch
from jobs.shared.ray_session import find_node_id
from wm.datasets.filters import action_findings, reason_of
from wm.errors import InputError
from wm.logs import bind
from wm.records import CodeColumns, Outcome, RejectRow, TripletRow, derive_seed, reject_row, stable_id, triplet_row

if TYPE_CHECKING:
    from wm.dynamics import ScoredAction
    from wm.dynamics.observation import Observation


logger = logging.getLogger(__name__)


class Annotator:
    """Key-frames to triplets. Loads codec and IDM once; writes one shard a call and returns only its counts."""

    def __init__(self, settings: AnnotatorSettings) -> None:
        """Load the models. A folder that is no model is reported by the first call."""
        import torch

        torch.set_num_threads(settings.threads)
        # Kept for the first call: Ray shows the error of a failed constructor as a dead actor's.
        self.problem = ""
        self.metrics = Metrics(settings.dataset)
        self.settings = settings
        self._node = find_node_id()
        try:
            # Models of a bucket come here once a node.
            self.settings = settings = settings.on_this_node()
            self.idm, self.codec, self._observer = load_annotator_models(settings)
        except InputError as error:
            self.problem = f"on node {socket.gethostname()}: {error}"  # others may have the model

    def __call__(self, batch: pa.Table) -> dict[str, list[object]]:
        """Annotate the block of one shard and write its files.

        Args:
            batch: Rows of :data:`jobs.annotate.tables.DECODED_SCHEMA`, all of one shard.

        Returns:
            One row: the shard's number and counts, or a ``problem`` that ends the run (no such model, disk full).

        Raises:
            RuntimeError: Ray Data split the block.
        """
        videos: list[DecodedVideo] = batch.to_pylist()
        if self.problem:
            return report_problem(self.problem)
        # Trouble of the machine ends the run; trouble of a video is a reject.
        for video in videos:
            if video["problem"]:
                return report_problem(video["problem"], video["errno"])
        # A shard is committed as one file: it must have come in one block.
        number, expected = videos[0]["shard"], videos[0]["shard_rows"]
        if len(videos) != expected or any(video["shard"] != number for video in videos):
            raise RuntimeError(f"shard {number} came in {len(videos)} rows of {expected}: a block was split")
        bind(shard=shard_name(number))
        seconds = Seconds({stage: sum(stage_seconds(video, stage) for video in videos) for stage in DECODE_STAGES})
        try:
            rows = self.annotate(videos, seconds)
            counts = write_shard(Path(self.settings.out), number, videos, rows, seconds.by_stage)
        except InputError as error:
            return report_problem(str(error))
        except OSError as error:
            return report_problem(f"cannot write into {self.settings.out}: {error.strerror}", error.errno or 0)
        self.metrics.shard(counts)
        logger.info("shard written", extra={key: counts[key] for key in ("videos", "pairs", "triplets")})
        return to_batch(
            {
                "problem": "",
                "errno": 0,
                "shard": number,
                "videos": counts["videos"],
                "pairs": counts["pairs"],
                "triplets": counts["triplets"],
                "reasons": json.dumps(counts["reasons"]),
                "block_bytes": batch.nbytes,
                # The block of a shard is made on one node, and read at once.
                "moved_bytes": batch.nbytes if videos[0]["node"] != self._node else 0,
            }
        )

    def annotate(self, videos: list[DecodedVideo], seconds: Seconds | None = None) -> ShardRows:
        """Build the rows of a shard's tables.

        Args:
            videos: Rows of :data:`jobs.annotate.tables.DECODED_SCHEMA`.
            seconds: The time spent is added here.

        Returns:
            Rows of ``triplets``, ``rejects`` and ``pairs``; every video is in one of the first two.
        """
        seconds = seconds or Seconds()
        # 1. Videos that could not be decoded.
        rejects = [
            self._reject(video, video["outcome"], video["reason"], video["detail"])
            for video in videos
            if video["outcome"]
        ]
        # 2. Pairs of key-frames, filtered by images, then by codes, then by the action: each step costs more.
        pairs = propose_pairs(videos)
        filters = self.settings.filters
        filter_images(pairs, filters, self.settings.min_motion_px)
        candidates = [pair for pair in pairs if not pair.reason]
        frames: Frames = {}
        # Without a codec nothing is known of codes, and no filter asks for them.
        if self.codec is not None:
            with seconds.of("encode"):
                frames = encode_frames(self.codec, candidates, self.settings.codec_batch_size)
            for pair in candidates:
                source, target = (frames[key]["codes"] for key in frame_keys(pair))
                filter_codes(pair, source, target, filters)
            candidates = [pair for pair in candidates if not pair.reason]
        with seconds.of("idm"):
            self._propose(candidates, frames)
        triplets = [self._triplet(pair, frames) for pair in pairs if not pair.reason]
        rejects += [self._reject_pair(pair) for pair in pairs if pair.reason]
        name = self.settings.dataset
        return {"triplets": triplets, "rejects": rejects, "pairs": [pair.row(name, filters) for pair in pairs]}

    def _propose(self, pairs: list[Pair], frames: Frames) -> None:
        """Set each pair's action, and the reason where the action is filtered."""
        filters, max_new_tokens = self.settings.filters, self.settings.max_new_tokens
        sampling = self.settings.sampling.to_sampling()
        # Prompts of codes have one length (two images), so that chunks of one size are equal work.
        for chunk in even_chunks(pairs, self.settings.idm_batch_size):
            sources, targets = self._observer.observe(chunk, frames)
            # By the pair's own id: its neighbours in the batch must not change what is sampled.
            seeds = [derive_seed(self.settings.sampling.seed, self._triplet_id(pair)) for pair in chunk]

            def propose(
                start: int,
                stop: int,
                sources: "Sequence[Observation]" = sources,
                targets: "Sequence[Observation]" = targets,
                seeds: Sequence[int] = seeds,
            ) -> "list[ScoredAction]":
                return self.idm.propose(
                    sources[start:stop],
                    targets[start:stop],
                    sampling=sampling,
                    seeds=seeds[start:stop],
                    max_new_tokens=max_new_tokens,
                    batch_size=stop - start,
                )

            actions = itertools.chain.from_iterable(halve_when_full(propose, len(chunk)))
            for pair, action in zip(chunk, actions, strict=True):
                is_finished = action.num_tokens <= max_new_tokens
                pair.action = action
                findings = action_findings(action.text, action.mean_logprob, is_finished, filters)
                pair.findings += findings
                pair.reason = reason_of(findings, filters)
                pair.detail = f"action {action.text!r:.200}, {action.mean_logprob:.3f} nats/token"

    def _triplet_id(self, pair: Pair) -> str:
        return stable_id(self.settings.dataset, *pair.id_parts())

    def _triplet(self, pair: Pair, frames: Frames) -> TripletRow:
        # Ids are made of data set, key and frames alone, so that every run gives the same.
        video, settings = pair.video, self.settings
        assert pair.action is not None
        positions, times_s = video["keyframes"], video["times_s"]
        return triplet_row(
            triplet_id=self._triplet_id(pair),
            dataset=settings.dataset,
            split=settings.split,
            class_label=video["class_label"],
            video_uri=video["uri"],
            source_frame=positions[pair.source],
            target_frame=positions[pair.target],
            source_time_s=times_s[pair.source],
            target_time_s=times_s[pair.target],
            motion=video["motion"][positions[pair.target]],
            source_image={"bytes": video["images"][pair.source], "path": None},
            target_image={"bytes": video["images"][pair.target], "path": None},
            action=pair.action.text,
            action_logprob=pair.action.logprob,
            action_tokens=pair.action.num_tokens,
            origin="idm",
            annotator=self.idm.model_id,
            license=video["license"] or settings.license,
            reader=video["reader"],
            **self._code_columns(pair, frames),
        )

    def _code_columns(self, pair: Pair, frames: Frames) -> CodeColumns:
        """Build the columns that the codec fills; none without one."""
        if self.codec is None:
            return {}
        from wm.models import change_map

        source, target = (frames[key] for key in frame_keys(pair))
        change_N = change_map(source["features"][None], target["features"][None])[0]
        return {
            "codec": self.codec.codec_id,
            "source_codes": source["codes"],
            "target_codes": target["codes"],
            "change": change_N.tolist(),
        }

    def _reject(self, video: DecodedVideo, outcome: Outcome, reason: str, detail: str) -> RejectRow:
        # By key, not by URI: segments of one file are rejects of their own.
        row = reject_row(
            uri=video["uri"],
            stage="annotate",
            outcome=outcome,
            reason=reason,
            detail=detail,
            dataset=self.settings.dataset,
            split=self.settings.split,
            class_label=video["class_label"],
        )
        return row | {"reject_id": stable_id(self.settings.dataset, video["key"], "annotate", reason)}

    def _reject_pair(self, pair: Pair) -> RejectRow:
        frames = pair.video["keyframes"]
        where = f"frames {frames[pair.source]} to {frames[pair.target]}: {pair.detail}"
        row = self._reject(pair.video, "filtered", pair.reason, where)
        return row | {"reject_id": stable_id(self.settings.dataset, *pair.id_parts("annotate", pair.reason))}
