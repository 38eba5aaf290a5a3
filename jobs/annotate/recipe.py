"""Define the recipe of ``annotate``: videos, choice of key-frames and pairs, actors. Knows nothing of the work."""

from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.annotate.annotator import AnnotatorSettings
from jobs.annotate.decoder import DownloadSettings
from wm.config import Recipe
from wm.datasets.filters import Filters
from wm.datasets.videos.videos import Layout
from wm.paths import InputPath, OptionalInputPath, OutputPath
from wm.video import REASONS, ClipSettings, KeyframeRule, MotionKind, Reader

RESUMABLE_KEYS = frozenset(
    {
        "num_workers",
        "max_workers",
        "cpus_per_worker",
        "num_annotators",
        "max_annotators",
        "gpus_per_annotator",
        "annotator_threads",
        "codec_batch",
        "idm_batch",
        "retry",
    }
)


class AnnotateRecipe(Recipe):
    """Which videos, which IDM, how key-frames are chosen."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = RESUMABLE_KEYS

    videos: InputPath
    """Folder, glob, one file, or list (.txt .csv .tsv .jsonl .parquet with uri and optional class_label, start_s,
    end_s, license); local, s3://, gs:// or https://."""
    idm: InputPath
    """Model folder of the inverse dynamics model: full, or a PEFT adapter."""
    out: OutputPath
    """Folder for out/triplets, out/rejects, out/clips, out/pairs and out/run.json."""
    layout: Layout = "auto"
    """How class labels follow from names: auto, folder, ucf101, kinetics, moments, epic."""
    annotations: OptionalInputPath = None
    """The data set's own CSV or split list, where labels or segments are in one (Kinetics, EPIC-Kitchens,
    UCF-101)."""
    base: OptionalInputPath = None
    """Base folder of an adapter; without it the one that the adapter's manifest names."""
    dataset: str = Field(default="videos", min_length=1)
    """Name for the dataset column."""
    split: str = Field(default="train", min_length=1)
    """Name for the split column."""
    license: str = ""
    """Licence of the videos, kept in every row; a list's own license column comes first."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first videos only."""
    retry: list[str] = []
    """Try again what failed so in an earlier run into out, e.g. retry='["time_out", "unreadable"]' after an outage."""
    max_keyframes: int = Field(default=6, ge=2)
    """K_f: key-frames of a video at most."""
    min_interval: int = Field(default=20, ge=1)
    """I_f: frames between two key-frames at least."""
    keyframe_rule: KeyframeRule = "top_then_spacing"
    """top_then_spacing: the max_keyframes frames of most motion, then those too close to a kept one dropped.
    greedy_spacing: down the order of motion until max_keyframes are kept."""
    motion: MotionKind = "dis"
    """Optical flow: dis (fast), or farneback: the key-frames that full-size Farneback on every frame gives, measured
    only where the choice can still change."""
    motion_side_px: int = Field(default=40, ge=16)
    """Frames are halved as long as their long side stays this or more, and dis runs on what is left (40: 320 x 240 is
    seen at 40 x 30). Of farneback it is the size of the stand-in only."""
    min_motion: float = Field(default=0.0, ge=0)
    """Pairs whose target frame moves less (px/frame at full size) are filtered; 0 keeps all."""
    filters: Filters = Filters()
    """Which pairs are kept: filters.static=on, filters.cut=on, …"""
    reader: Reader = "auto"
    """Who reads the chosen frames: auto = decord, and PyAV where decord fails or is wrong; decord; pyav."""
    image_side_px: int = Field(default=512, ge=0)
    """Short side of stored images at most; 0 = as large as the video."""
    time_limit_s: float = Field(default=120.0, gt=0)
    """A video that takes longer is given up (each of: download, motion pass, fetching its images)."""
    memory_limit_mb: int = Field(default=6000, ge=0)
    """Address space of a decoding process in MiB (at least 2000 is needed to start); 0 = no limit."""
    download_limit_mb: int = Field(default=4000, ge=1)
    """Remote files larger than this are rejected."""
    num_workers: int = Field(default=2, ge=1)
    """Decoding actors, at least."""
    max_workers: int = Field(default=0, ge=0)
    """Decoding actors at most: Ray adds some while videos wait for them. 0 = num_workers."""
    cpus_per_worker: float = Field(default=0.5, gt=0)
    """Logical CPUs that Ray sets aside for an actor."""
    num_annotators: int = Field(default=1, ge=1)
    """Actors that hold codec and IDM, at least."""
    max_annotators: int = Field(default=0, ge=0)
    """Annotators at most: Ray adds some while key-frames wait for them. 0 = num_annotators."""
    gpus_per_annotator: float = Field(default=0.0, ge=0)
    """GPUs of an annotator, also a part of one (0.5 = two share it); 0 = it runs on the CPU."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the IDM's weights; the codec stays in float32."""
    annotator_threads: int = Field(default=1, ge=1)
    """Threads of an annotator on the CPU."""
    videos_per_shard: int = Field(default=32, ge=1)
    """Videos annotated together and written as one file; a killed run loses at most those under way."""
    codec_batch: int = Field(default=64, ge=1)
    """Images that the codec gets at once; halved where the GPU's memory does not hold them."""
    idm_batch: int = Field(default=64, ge=1)
    """Pairs that the IDM gets at once; halved where the GPU's memory does not hold them."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest action, in tokens."""

    @field_validator("retry")
    @classmethod
    def _known_reasons(cls, reasons: list[str]) -> list[str]:
        if unknown := sorted(set(reasons) - set(REASONS)):
            raise ValueError(f"{unknown[0]!r} is no reason for which a video fails; those are {', '.join(REASONS)}")
        return reasons

    @model_validator(mode="after")
    def _pools_grow(self) -> Self:
        # 0 means no growth.
        for kind in ("workers", "annotators"):
            min_size, max_size = getattr(self, f"num_{kind}"), getattr(self, f"max_{kind}")
            if 0 < max_size < min_size:
                raise ValueError(f"max_{kind} = {max_size} is less than num_{kind} = {min_size}")
        return self

    def clip_settings(self) -> ClipSettings:
        """Build the settings with which a decoding actor reads clips."""
        return ClipSettings(
            motion=self.motion,
            motion_side_px=self.motion_side_px,
            max_keyframes=self.max_keyframes,
            min_interval=self.min_interval,
            rule=self.keyframe_rule,
            reader=self.reader,
            image_side_px=self.image_side_px,
            time_limit_s=self.time_limit_s,
            memory_limit_mb=self.memory_limit_mb,
        )

    def download_settings(self) -> DownloadSettings:
        """Build the settings with which a decoding actor fetches remote videos."""
        return DownloadSettings(self.time_limit_s, self.download_limit_mb * 2**20)

    def pools(self, num_shards: int) -> tuple[range, range]:
        """Compute the min and max (the range's stop) of decoders and of annotators that so many shards keep busy."""
        return _pool(self.num_workers, self.max_workers, num_shards), _pool(
            self.num_annotators, self.max_annotators, num_shards
        )

    def annotator_settings(self) -> AnnotatorSettings:
        """Build the settings of an annotating actor; its paths are absolute."""
        return AnnotatorSettings(
            out=str(Path(self.out).absolute()),
            idm=str(Path(self.idm).absolute()),
            base=str(Path(self.base).absolute()) if self.base else None,
            dataset=self.dataset,
            split=self.split,
            license=self.license,
            min_motion=self.min_motion,
            filters=self.filters,
            max_new_tokens=self.max_new_tokens,
            codec_batch=self.codec_batch,
            idm_batch=self.idm_batch,
            threads=self.annotator_threads,
            device="cuda" if self.gpus_per_annotator > 0 else "cpu",
            dtype=self.dtype,
        )


def _pool(min_size: int, max_size: int, num_shards: int) -> range:
    return range(min(min_size, num_shards), min(max(min_size, max_size), num_shards))
