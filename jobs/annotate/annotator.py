"""Annotate key-frames in an actor, which may hold a GPU: key-frames in, a committed shard of triplets and rejects out.

Not known here: how a video is decoded, and which shards there are.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from jobs.annotate.metrics import Metrics
from jobs.annotate.pairs import Pair, Seconds, even_chunks, halve_when_full
from jobs.annotate.shards import TableRows, write_shard
from jobs.annotate.tables import DECODE_STAGES
from wm.datasets.filters import Filters, action_findings, code_findings, picture_findings, reason_of, repeat_bits
from wm.errors import InputError
from wm.images import Pixels, decode_image, fit_square
from wm.records import Outcome, RejectRow, TripletRow, reject_row, stable_id, triplet_row
from wm.video import frame_pairs


class EncodedFrame(TypedDict):
    """One key-frame after the codec."""

    codes: list[int]
    features: Any


@dataclass(frozen=True)
class AnnotatorSettings:
    """Settings of an annotator; paths are absolute, because a worker's folder is not the driver's."""

    out: str
    idm: str
    base: str | None
    dataset: str
    split: str
    license: str
    min_motion: float
    filters: Filters
    max_new_tokens: int
    codec_batch: int
    idm_batch: int
    threads: int
    device: str
    dtype: str


class Annotator:
    """Key-frames to triplets. Loads codec and IDM once; writes one shard a call and returns only its counts."""

    def __init__(self, settings: AnnotatorSettings) -> None:
        """Load the models. A folder that is no model is reported by the first call."""
        import torch

        from wm.dynamics import load_role
        from wm.models import load_codec

        torch.set_num_threads(settings.threads)
        self.settings = settings
        # Kept for the first call: Ray shows the error of a failed constructor as a dead actor's.
        self.problem = ""
        self.metrics = Metrics(settings.dataset)
        try:
            # The codec stays in float32: its codes must not depend on the precision of the IDM.
            dtype = getattr(torch, settings.dtype)
            where = {"base": settings.base, "device": settings.device, "dtype": dtype}
            role = load_role(settings.idm, **where, rows=settings.idm_batch)  # once: it packs the weights
            self.idm, self.decoder = role.model, role.decoder
            self.codec = load_codec(settings.base or settings.idm, device=settings.device)
            self.name = annotator_name(settings.idm, self.idm.base_id)
        except InputError as error:
            self.problem = str(error)

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        """Annotate the block of one shard and write its files.

        Args:
            batch: Rows of :data:`jobs.annotate.tables.DECODED_SCHEMA`, all of one shard.

        Returns:
            One row: the shard's number and counts, or a ``problem`` that ends the run (no such model, disk full).

        Raises:
            RuntimeError: Ray Data split the block.
        """
        videos = batch.to_pylist()
        if self.problem:
            return _to_row(problem=self.problem)
        # Trouble of the machine ends the run; trouble of a video is a reject.
        for video in videos:
            if video["problem"]:
                return _to_row(problem=video["problem"], errno=video["errno"])
        # A shard is committed as one file: it must have come in one block.
        number, expected = videos[0]["shard"], videos[0]["shard_rows"]
        if len(videos) != expected or any(video["shard"] != number for video in videos):
            raise RuntimeError(f"shard {number} came in {len(videos)} rows of {expected}: a block was split")
        seconds = Seconds({stage: _total(videos, f"{stage}_s") for stage in DECODE_STAGES})
        rows = self.annotate(videos, seconds)
        try:
            counts = write_shard(Path(self.settings.out), number, videos, rows, seconds.by_stage)
        except OSError as error:
            return _to_row(problem=f"cannot write into {self.settings.out}: {error.strerror}", errno=error.errno or 0)
        self.metrics.shard(counts)
        return _to_row(shard=number, reasons=json.dumps(counts["reasons"]), **_bar_counts(counts))

    def annotate(self, videos: list[dict[str, Any]], seconds: Seconds | None = None) -> TableRows:
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
        pairs = [
            Pair(video, source, target)
            for video in videos
            for source, target in frame_pairs(range(len(video["images"] or [])))
        ]
        self._filter_images(pairs)
        candidates = [pair for pair in pairs if not pair.reason]
        frames = self._encode_frames(candidates, seconds)
        self._compare_codes(candidates, frames)
        candidates = [pair for pair in candidates if not pair.reason]
        with seconds.of("idm"):
            self._propose(candidates, frames)
        triplets = [self._triplet(pair, frames) for pair in pairs if not pair.reason]
        rejects += [self._reject_pair(pair) for pair in pairs if pair.reason]
        name, filters = self.settings.dataset, self.settings.filters
        return {"triplets": triplets, "rejects": rejects, "pairs": [pair.row(name, filters) for pair in pairs]}

    def _filter_images(self, pairs: list[Pair]) -> None:
        """Apply the filters that need the images only; what they take out is never shown to the IDM."""
        filters = self.settings.filters
        for pair in pairs:
            motion = pair.video["motion"][pair.video["keyframes"][pair.target]]
            if motion < self.settings.min_motion:
                pair.reason = "too_little_motion"
                pair.detail = f"moves {motion:.3f} px/frame, less than min_motion = {self.settings.min_motion:g}"
                continue
            pair.findings = picture_findings(pair.numbers(filters), filters)
            pair.reason = reason_of(pair.findings, filters)
        if filters.near_duplicate != "off":
            # A repeat is one of a pair that is kept, so that this comes after the other filters.
            hashes = [pair.hashes() for pair in pairs]
            bits_P = repeat_bits(hashes, filters, [not pair.reason for pair in pairs])
            for pair, pair.repeat_bits in zip(pairs, bits_P, strict=True):
                if pair.reason != "too_little_motion":
                    pair.findings = picture_findings(pair.numbers(filters), filters)
                    pair.reason = reason_of(pair.findings, filters)
        for pair in pairs:
            if pair.findings:
                numbers = {name: value for name, value in pair.numbers(filters).items() if value is not None}
                pair.detail = ", ".join(f"{name} {value:.3g}" for name, value in numbers.items())

    def _encode_frames(self, pairs: list[Pair], seconds: Seconds) -> dict[tuple[str, int], EncodedFrame]:
        """Encode each key-frame once, though it may be in two pairs."""
        images = {
            (pair.video["key"], row): pair.video["images"][row] for pair in pairs for row in (pair.source, pair.target)
        }
        with seconds.of("encode"):
            return dict(zip(images, self._encode(list(images.values())), strict=True))

    def _compare_codes(self, pairs: list[Pair], frames: dict[tuple[str, int], EncodedFrame]) -> None:
        """Count the codes that change, and filter the pairs in which too few do before the IDM spends work on them."""
        filters = self.settings.filters
        for pair in pairs:
            source, target = (frames[pair.video["key"], row]["codes"] for row in (pair.source, pair.target))
            pair.num_codes = len(source)
            pair.changed_codes = sum(a != b for a, b in zip(source, target, strict=True))
            findings = code_findings(pair.changed_codes, filters)
            pair.findings += findings
            pair.reason = reason_of(findings, filters)
            if pair.reason:
                pair.detail = (
                    f"{pair.changed_codes} of {pair.num_codes} image codes change, "
                    f"fewer than filters.min_changed_codes = {filters.min_changed_codes}"
                )

    def _encode(self, pngs: list[bytes]) -> Iterator[EncodedFrame]:
        for chunk in even_chunks(pngs, self.settings.codec_batch):
            pixels_BHWC = np.stack([self._square(png) for png in chunk])
            codes_BN, features_BND = halve_when_full(self._codes, pixels_BHWC)
            for codes, features_ND in zip(codes_BN.tolist(), features_BND, strict=True):
                yield {"codes": codes, "features": features_ND}

    def _codes(self, pixels_BHWC: Pixels) -> Any:
        return self.codec.encode_with_features(pixels_BHWC)

    def _square(self, png: bytes) -> Pixels:
        return fit_square(decode_image(png, "key-frame"), self.codec.side_px)

    def _propose(self, pairs: list[Pair], frames: dict[tuple[str, int], EncodedFrame]) -> None:
        """Set each pair's action, and the reason where the action is filtered."""
        from wm.dynamics import propose_actions

        filters = self.settings.filters
        # All prompts have one length (two images), so that chunks of one size are equal work.
        for chunk in even_chunks(pairs, self.settings.idm_batch):
            codes = [
                (frames[pair.video["key"], pair.source]["codes"], frames[pair.video["key"], pair.target]["codes"])
                for pair in chunk
            ]

            def propose(rows: list[tuple[list[int], list[int]]]) -> tuple[list[Any]]:
                sources, targets = zip(*rows, strict=True)
                limits = {"max_new_tokens": self.settings.max_new_tokens, "batch_size": len(rows)}
                return (propose_actions(self.idm, sources, targets, decoder=self.decoder, **limits),)

            for pair, action in zip(chunk, halve_when_full(propose, codes)[0], strict=True):
                finished = action.num_tokens <= self.settings.max_new_tokens
                mean = action.logprob / action.num_tokens
                pair.action = action
                findings = action_findings(action.text, mean, finished, filters)
                pair.findings += findings
                pair.reason = reason_of(findings, filters)
                pair.detail = f"action {action.text!r:.200}, {mean:.3f} nats/token"

    def _triplet(self, pair: Pair, frames: dict[tuple[str, int], EncodedFrame]) -> TripletRow:
        from wm.models import change_map

        video, settings = pair.video, self.settings
        source, target = frames[video["key"], pair.source], frames[video["key"], pair.target]
        change_N = change_map(source["features"][None], target["features"][None])[0]
        positions, times_s = video["keyframes"], video["times_s"]
        return triplet_row(
            triplet_id=stable_id(settings.dataset, *pair.ident()),
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
            codec=self.codec.codec_id,
            source_codes=source["codes"],
            target_codes=target["codes"],
            change=change_N.tolist(),
            action=pair.action.text,
            action_logprob=pair.action.logprob,
            action_tokens=pair.action.num_tokens,
            origin="idm",
            annotator=self.name,
            license=video["license"] or settings.license,
            reader=video["reader"],
        )

    def _reject(self, video: dict[str, Any], outcome: Outcome, reason: str, detail: str) -> RejectRow:
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
        return row | {"reject_id": stable_id(self.settings.dataset, *pair.ident("annotate", pair.reason))}


def annotator_name(folder: str, base_id: str) -> str:
    """Name the annotator: the base's fingerprint and the digest of the recipe that fine-tuned it."""
    from wm.models import read_manifest

    manifest = read_manifest(folder)
    return f"{base_id}/{manifest.recipe_digest}" if manifest is not None and manifest.recipe_digest else base_id


def _total(videos: Sequence[dict[str, Any]], column: str) -> float:
    return sum(video[column] or 0.0 for video in videos)


def _to_row(**values: Any) -> dict[str, list[Any]]:
    row = {"problem": "", "errno": 0, "shard": -1, "videos": 0, "pairs": 0, "triplets": 0, "reasons": "{}"} | values
    return {name: [value] for name, value in row.items()}


def _bar_counts(counts: dict[str, Any]) -> dict[str, int]:
    return {name: counts[name] for name in ("videos", "pairs", "triplets")}
