"""The two actors of ``annotate``: a decoder of videos and an annotator of their key-frames."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa

from jobs._annotate_shards import write_shard
from wm.errors import InputError
from wm.images import Pixels, decode_image, fit_square
from wm.records import Outcome, reject_row, stable_id, triplet_row
from wm.video import ClipReader, ClipSettings, VideoError, frame_pairs

CLIP_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("key", pa.string()),
        ("class_label", pa.string()),
        ("outcome", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("reader", pa.string()),
        ("fallback", pa.string()),
        ("num_frames", pa.int32()),
        ("duration_s", pa.float64()),
        ("frames", pa.list_(pa.int32())),
        ("times_s", pa.list_(pa.float64())),
        ("motion", pa.list_(pa.float32())),
        ("images", pa.list_(pa.binary())),
    ]
)
"""Between the two actors: one row a video, with its key-frames as PNG bytes, or with why it has none
(``outcome``)."""


class Decoder:
    """Videos to key-frames. Holds the child process in which native decoders run."""

    def __init__(self, settings: ClipSettings) -> None:
        """``settings``: how clips are read."""
        self.reader = ClipReader(settings)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Rows of ``uri, key, class_label, path`` to rows of :data:`CLIP_SCHEMA`, one at a time."""
        for video in batch.to_pylist():
            row = self._read(video.pop("path")) | video
            yield pa.Table.from_pylist([row], schema=CLIP_SCHEMA)

    def _read(self, path: str) -> dict[str, Any]:
        try:
            clip = self.reader.read(path)
        except VideoError as error:
            return {"outcome": "failed", "reason": error.reason, "detail": error.detail}
        scan, chosen = clip.scan, clip.scan.keyframes
        row = {"num_frames": scan.num_frames, "duration_s": scan.duration_s, "reader": clip.reader}
        if len(chosen) < 2:
            detail = f"{path}: {len(chosen)} key-frame among {scan.num_frames} frames; a pair needs two"
            return row | {"outcome": "filtered", "reason": "too_few_keyframes", "detail": detail}
        return row | {
            "fallback": clip.fallback,
            "frames": chosen,
            "times_s": scan.times_s[chosen].tolist(),
            "motion": scan.motion[chosen].tolist(),
            "images": clip.images_png,
        }


class Seen(TypedDict):
    """What the codec makes of one key-frame."""

    codes: list[int]
    features: Any
    png: bytes


@dataclass(frozen=True)
class AnnotatorSettings:
    """What an annotator needs to know; paths absolute, because a worker's folder is not the driver's."""

    out: str
    idm: str
    base: str | None
    dataset: str
    split: str
    license: str
    min_motion: float
    max_new_tokens: int
    codec_batch: int
    idm_batch: int
    threads: int
    device: str
    dtype: str


@dataclass(frozen=True)
class Pair:
    """One source and target of a video: rows of the video's key-frame lists."""

    video: dict[str, Any]
    source: int
    target: int

    def ident(self, *more: str) -> tuple[Any, ...]:
        """What this pair's ids are made of."""
        frames = self.video["frames"]
        return (self.video["key"], *more, frames[self.source], frames[self.target])


class Annotator:
    """Key-frames to triplets. Loads codec and IDM once; writes one shard a batch and returns only its
    counts."""

    def __init__(self, settings: AnnotatorSettings) -> None:
        """Load the models. A folder that is no model is told by the first call: Ray shows the error of a
        failed constructor as a dead actor's."""
        import torch

        from wm.models import load_codec, load_model

        torch.set_num_threads(settings.threads)
        self.settings = settings
        self.problem = ""
        try:
            dtype = getattr(torch, settings.dtype)
            self.idm = load_model(settings.idm, base=settings.base, device=settings.device, dtype=dtype)
            self.codec = load_codec(settings.base or settings.idm, device=settings.device)
            self.name = annotator_name(settings.idm, self.idm.base_id)
        except InputError as error:
            self.problem = str(error)

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        """A batch of :data:`CLIP_SCHEMA` becomes a shard on disk and one row: its counts, or a ``problem``
        that ends the run (no such model, disk full)."""
        counts = {"videos": 0, "triplets": 0, "rejects": 0}
        if not self.problem:
            videos = batch.to_pylist()
            triplets, rejects = self.annotate(videos)
            try:
                counts = write_shard(Path(self.settings.out), videos, triplets, rejects)
            except OSError as error:
                self.problem = f"cannot write into {self.settings.out}: {error}; what is finished is kept"
        return {"problem": [self.problem], **{name: [count] for name, count in counts.items()}}

    def annotate(self, videos: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """(triplet rows, reject rows); every video is in one of them at least."""
        rejects = [
            self._reject(video, video["outcome"], video["reason"], video["detail"])
            for video in videos
            if video["outcome"]
        ]
        pairs = []
        for video in videos:
            for source, target in frame_pairs(range(len(video["frames"] or []))):
                pair = Pair(video, source, target)
                motion = video["motion"][target]
                if motion < self.settings.min_motion:
                    detail = f"moves {motion:.3f} px/frame, less than min_motion = {self.settings.min_motion:g}"
                    rejects.append(self._reject_pair(pair, "too_little_motion", detail))
                else:
                    pairs.append(pair)
        triplets: list[dict[str, Any]] = []
        for pair, (seen, action) in zip(pairs, self._propose(pairs), strict=True):
            if action.text.strip():
                triplets.append(self._triplet(pair, seen, action))
            else:
                rejects.append(self._reject_pair(pair, "empty_action", "the IDM ended without a word"))
        return triplets, rejects

    def _propose(self, pairs: list[Pair]) -> list[tuple[tuple[Seen, Seen], Any]]:
        """Codes of both frames and the action of each pair; each frame is encoded once though it stands in
        two."""
        if not pairs:
            return []
        from wm.dynamics import propose_actions

        wanted = {
            (pair.video["key"], row): pair.video["images"][row] for pair in pairs for row in (pair.source, pair.target)
        }
        seen = dict(zip(wanted, self._encode(list(wanted.values())), strict=True))
        both = [(seen[pair.video["key"], pair.source], seen[pair.video["key"], pair.target]) for pair in pairs]
        actions = propose_actions(
            self.idm,
            [source["codes"] for source, _ in both],
            [target["codes"] for _, target in both],
            max_new_tokens=self.settings.max_new_tokens,
            batch_size=self.settings.idm_batch,
        )
        return list(zip(both, actions, strict=True))

    def _encode(self, pngs: list[bytes]) -> Iterator[Seen]:
        for start in range(0, len(pngs), self.settings.codec_batch):
            chunk = pngs[start : start + self.settings.codec_batch]
            pixels = np.stack([self._square(png) for png in chunk])
            codes_BN, features_BND = self.codec.encode_with_features(pixels)
            for png, codes, features in zip(chunk, codes_BN.tolist(), features_BND, strict=True):
                yield {"codes": codes, "features": features, "png": png}

    def _square(self, png: bytes) -> Pixels:
        return fit_square(decode_image(png, "key-frame"), self.codec.side_px)

    def _triplet(self, pair: Pair, seen: tuple[Seen, Seen], action: Any) -> dict[str, Any]:
        from wm.models import change_map

        video, source, target = pair.video, *seen
        change_N = change_map(source["features"][None], target["features"][None])[0]
        frames, times_s = video["frames"], video["times_s"]
        return triplet_row(
            triplet_id=stable_id(self.settings.dataset, *pair.ident()),
            dataset=self.settings.dataset,
            split=self.settings.split,
            class_label=video["class_label"],
            video_uri=video["uri"],
            source_frame=frames[pair.source],
            target_frame=frames[pair.target],
            source_time_s=times_s[pair.source],
            target_time_s=times_s[pair.target],
            motion=video["motion"][pair.target],
            source_image={"bytes": source["png"], "path": None},
            target_image={"bytes": target["png"], "path": None},
            codec=self.codec.codec_id,
            source_codes=source["codes"],
            target_codes=target["codes"],
            change=change_N.tolist(),
            action=action.text,
            action_logprob=action.logprob,
            action_tokens=action.num_tokens,
            origin="idm",
            annotator=self.name,
            license=self.settings.license,
        )

    def _reject(self, video: dict[str, Any], outcome: Outcome, reason: str, detail: str) -> dict[str, Any]:
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

    def _reject_pair(self, pair: Pair, reason: str, detail: str) -> dict[str, Any]:
        frames = pair.video["frames"]
        where = f"frames {frames[pair.source]} to {frames[pair.target]}: {detail}"
        row = self._reject(pair.video, "filtered", reason, where)
        return row | {"reject_id": stable_id(self.settings.dataset, *pair.ident("annotate", reason))}


def annotator_name(folder: str, base_id: str) -> str:
    """Who annotated: the base's fingerprint and the recipe that fine-tuned it."""
    from wm.models import read_manifest

    manifest = read_manifest(folder)
    return f"{base_id}/{manifest.recipe_digest}" if manifest is not None and manifest.recipe_digest else base_id
