"""Define the recipe of ``annotate``: videos, choice of key-frames and pairs, actors. Knows nothing of the work."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from jobs.annotate.decoder import DownloadSettings
from jobs.annotate.endpoint import EndpointSettings
from jobs.annotate.settings import ActionSampling, AnnotatorSettings
from wm.config import Recipe
from wm.datasets.filters import Filters
from wm.datasets.layouts import DatasetLayout
from wm.datasets.videos.budget import VideoBudget
from wm.paths import ModelPath, OptionalInputPath, OptionalModelPath, OutputPath, SourcePath
from wm.video import REASONS, ClipSettings, Reader
from wm.video.settings import DecodeLimits, KeyframeSettings


class Limits(DecodeLimits):
    """What a video may cost before it is given up."""

    memory_limit_mib: int = Field(default=6000, ge=0)
    """Address space of a decoding process in MiB (at least 2000 is needed to start); 0 = no limit."""
    download_limit_mib: int = Field(default=4000, ge=1)
    """Remote files larger than this are rejected."""


class AnnotateResources(Recipe):
    """Actors and what each of them takes; none of it changes the result."""

    num_decoders: int = Field(default=2, ge=1)
    """Min number of actors that decode videos."""
    max_decoders: int = Field(default=0, ge=0)
    """Max number of them: Ray adds some while videos wait. 0 = num_decoders. With both left out, a cluster that is
    joined gives as many as its CPUs hold, beside the annotators."""
    cpus_per_decoder: float = Field(default=0.5, gt=0)
    """Logical CPUs that Ray reserves for a decoder."""
    gpus_per_decoder: float = Field(default=0.1, gt=0, le=1)
    """Share of a GPU that Ray reserves for a decoder with keyframes.device=cuda; it takes some 1.5 GiB of the GPU's
    memory. To share GPUs with annotators, give these less than 1 (resources.gpus_per_annotator=0.8)."""
    custom_per_decoder: dict[str, float] = {}
    """Custom resources that Ray reserves for a decoder, such as {gpu_node = 0.01}: it runs on nodes that were started
    with them (ray start --resources), so that key-frames need not leave the nodes that annotate."""
    num_annotators: int = Field(default=1, ge=1)
    """Min number of actors that hold codec and IDM."""
    max_annotators: int = Field(default=0, ge=0)
    """Max number of them: Ray adds some while key-frames wait. 0 = num_annotators. With both left out, a cluster that
    is joined gives as many as its GPUs hold, or half of its CPUs where gpus_per_annotator = 0."""
    cpus_per_annotator: float = Field(default=0.5, gt=0)
    """Logical CPUs that Ray reserves for an annotator."""
    gpus_per_annotator: float = Field(default=0.0, ge=0)
    """GPUs of an annotator, also a part of one (0.5 = two share it); 0 = it runs on the CPU."""
    custom_per_annotator: dict[str, float] = {}
    """Custom resources that Ray reserves for an annotator, such as {a100 = 0.5}: it runs on nodes that were started
    with them (ray start --resources)."""
    threads_per_annotator: int = Field(default=1, ge=1)
    """Threads of an annotator on the CPU."""
    codec_batch_size: int = Field(default=64, ge=1)
    """Images that the codec gets at once; halved where the GPU's memory does not hold them."""
    idm_batch_size: int = Field(default=64, ge=1)
    """Pairs that the IDM gets at once; halved where the GPU's memory does not hold them."""

    @field_validator("custom_per_decoder", "custom_per_annotator")
    @classmethod
    def _check_custom(cls, amounts: dict[str, float]) -> dict[str, float]:
        for name, amount in amounts.items():
            if name in ("CPU", "GPU", "memory", "object_store_memory"):
                raise ValueError(
                    f"{name} has a key of its own, or none; expected a name given to ray start --resources"
                )
            # As Ray has it: a share of one, or complete ones.
            if amount <= 0 or (amount > 1 and amount % 1):
                raise ValueError(f"{name} = {amount:g}: expected a share of 1, or a whole number")
        return amounts

    @model_validator(mode="after")
    def _check_pool_sizes(self) -> Self:
        # 0 means no growth.
        for kind in ("decoders", "annotators"):
            min_size, max_size = getattr(self, f"num_{kind}"), getattr(self, f"max_{kind}")
            if 0 < max_size < min_size:
                raise ValueError(f"max_{kind} = {max_size} is less than num_{kind} = {min_size}")
        return self

    @property
    def is_sized(self) -> bool:
        """Return whether the sizes of both pools are given."""
        return all(self._names_size(kind) for kind in ("decoders", "annotators"))

    def sized_for(self, cpus: float, gpus: float, *, decodes_on_gpu: bool = False) -> Self:
        """Return the same actors with the max numbers that a cluster holds, where the size is left out.

        Args:
            cpus: Of the cluster.
            gpus: Of the cluster.
            decodes_on_gpu: Whether each decoder takes its share of a GPU.
        """
        maxima: dict[str, int] = {}
        gpus_per_decoder = self.gpus_per_decoder if decodes_on_gpu else 0.0
        # 1. Annotators first: the GPUs are what the cluster is paid for. The fewest decoders keep their share.
        if not self._names_size("annotators"):
            gpus -= self.num_decoders * gpus_per_decoder
            share = gpus / self.gpus_per_annotator if self.gpus_per_annotator else cpus / 2 / self.cpus_per_annotator
            maxima["max_annotators"] = max(self.num_annotators, int(share + 1e-9))  # 0.6 / 0.2 is 2.9999999999999996
            gpus += self.num_decoders * gpus_per_decoder
        # 2. Decoders get the CPUs that are left.
        if not self._names_size("decoders"):
            annotators = maxima.get("max_annotators") or max(self.num_annotators, self.max_annotators)
            rest = cpus - annotators * self.cpus_per_annotator
            num_decoders = rest / self.cpus_per_decoder
            if gpus_per_decoder:
                num_decoders = min(
                    num_decoders, (gpus - annotators * self.gpus_per_annotator) / gpus_per_decoder + 1e-9
                )
            maxima["max_decoders"] = max(self.num_decoders, int(num_decoders))
        return self.model_copy(update=maxima)

    def _names_size(self, kind: str) -> bool:
        return bool(self.model_fields_set & {f"num_{kind}", f"max_{kind}"})

    def pool_sizes(self, num_shards: int) -> tuple[range, range]:
        """Compute the min and max (the range's stop) of decoders and of annotators that so many shards keep busy."""
        # More actors than shards would hold models and never work.
        pools = ((self.num_decoders, self.max_decoders), (self.num_annotators, self.max_annotators))
        decoders, annotators = (
            range(min(min_size, num_shards), min(max(min_size, max_size), num_shards)) for min_size, max_size in pools
        )
        return decoders, annotators


class AnnotateRecipe(Recipe):
    """Which videos, which IDM, how key-frames are chosen."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset(
        {
            *("resources", "retry", "endpoint.base_url", "endpoint.api_key_variable", "endpoint.concurrency"),
            *("endpoint.max_retries", "endpoint.timeout_s"),
        }
    )
    LATER_KEYS: ClassVar[frozenset[str]] = frozenset({"budget", "sampling", "prompt", "endpoint"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "layout": "dataset_layout",
        "max_keyframes": "keyframes.max_keyframes",
        "min_interval": "keyframes.min_interval_frames",
        "keyframe_rule": "keyframes.rule",
        "motion": "keyframes.motion",
        "motion_side_px": "keyframes.motion_side_px",
        "min_motion": "keyframes.min_motion_px",
        "time_limit_s": "limits.time_limit_s",
        "memory_limit_mb": "limits.memory_limit_mib",
        "download_limit_mb": "limits.download_limit_mib",
        "num_workers": "resources.num_decoders",
        "max_workers": "resources.max_decoders",
        "cpus_per_worker": "resources.cpus_per_decoder",
        "num_annotators": "resources.num_annotators",
        "max_annotators": "resources.max_annotators",
        "gpus_per_annotator": "resources.gpus_per_annotator",
        "annotator_threads": "resources.threads_per_annotator",
        "codec_batch": "resources.codec_batch_size",
        "idm_batch": "resources.idm_batch_size",
    }

    videos: SourcePath
    """Folder, glob, one file, or list (.txt .csv .tsv .jsonl .parquet with uri and optional class_label, start_s,
    end_s, license); local, s3://, gs:// or https://."""
    idm: ModelPath = ""
    """Model folder of the inverse dynamics model, full or a PEFT adapter: one with image codes, or a vision-language
    model of transformers that reads pixels (Qwen3-VL, LLaVA, …). Needed unless an endpoint proposes."""
    out: OutputPath
    """Folder for out/triplets, out/rejects, out/clips, out/pairs and out/run.json."""
    endpoint: EndpointSettings = EndpointSettings()
    """Instead of idm, a model that a server has: endpoint.base_url=http://HOST:8000/v1 endpoint.model=NAME."""
    dataset_layout: DatasetLayout = "auto"
    """How class labels follow from names and annotations: auto, folder, ucf101, kinetics, moments, epic, something."""
    annotations: OptionalInputPath = None
    """The data set's own table, where labels or segments are in one (Kinetics, EPIC-Kitchens, UCF-101,
    Something-Something v2)."""
    base: OptionalModelPath = None
    """Base folder of an adapter; without it the one that the adapter's manifest names."""
    codec: OptionalModelPath = None
    """Model folder whose image codec makes source_codes, target_codes and change; without it the idm's own, where it
    has one. With neither (the idm reads pixels) these columns are null, and no filter looks at codes."""
    prompt: str = ""
    """Question that an idm that reads pixels is asked after the two images; empty: the one of this package."""
    dataset: str = Field(default="videos", min_length=1)
    """Name for the dataset column."""
    split: str = Field(default="train", min_length=1)
    """Name for the split column."""
    license: str = ""
    """Licence of the videos, kept in every row; a list's own license column comes first."""
    limit: int | None = Field(default=None, ge=1)
    """Take the first videos only."""
    budget: VideoBudget = VideoBudget()
    """Take a random part of the videos: budget.hours=15, budget.videos_per_class=100."""
    retry: list[str] = []
    """Try again what failed so in an earlier run into out, e.g. retry='["time_out", "unreadable"]' after an outage."""
    keyframes: KeyframeSettings = KeyframeSettings()
    """How key-frames are chosen: keyframes.rule=greedy_spacing, …"""
    filters: Filters = Filters()
    """Which pairs are kept: filters.static=on, filters.cut=on, …"""
    reader: Reader = "auto"
    """Who reads the chosen frames: auto = decord, and PyAV where decord fails or is wrong; decord; pyav."""
    image_side_px: int = Field(default=512, ge=0)
    """Short side of stored images at most; 0 = as large as the video."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the IDM's weights; the codec whose codes are stored stays in float32."""
    videos_per_shard: int = Field(default=32, ge=1)
    """Videos annotated together and written as one file; a killed run loses at most those under way."""
    sampling: ActionSampling = ActionSampling()
    """How an action is taken from the IDM: greedy, or sampled with sampling.temperature=1."""
    max_new_tokens: int = Field(default=32, ge=1)
    """Longest action, in tokens."""
    limits: Limits = Limits()
    """What a video may cost: limits.time_limit_s=60, …"""
    resources: AnnotateResources = AnnotateResources()
    """Actors: resources.num_decoders=8, resources.gpus_per_annotator=1, …"""

    @field_validator("retry")
    @classmethod
    def _check_reasons(cls, reasons: list[str]) -> list[str]:
        if unknown := sorted(set(reasons) - set(REASONS)):
            raise ValueError(f"{unknown[0]!r} is no reason for which a video fails; those are {', '.join(REASONS)}")
        return reasons

    @model_validator(mode="after")
    def _check_model(self) -> Self:
        # That one of them is there is for the job to check: packaged recipes name neither.
        if self.idm and self.endpoint.base_url:
            raise ValueError("both idm and endpoint.base_url are given; expected one of them")
        return self

    @property
    def model_name(self) -> str:
        """Return who proposes the actions, for messages."""
        return self.idm or f"{self.endpoint.model} at {self.endpoint.base_url}"

    @property
    def is_sized(self) -> bool:
        """Return whether it says how many actors there are."""
        return self.resources.is_sized

    def sized_for(self, cpus: float, gpus: float) -> Self:
        """Return the recipe with as many actors as a cluster holds, where it does not say how many.

        Args:
            cpus: Of the cluster.
            gpus: Of the cluster.
        """
        resources = self.resources.sized_for(cpus, gpus, decodes_on_gpu=self.gpus_per_decoder > 0)
        return self.model_copy(update={"resources": resources})

    @property
    def gpus_per_decoder(self) -> float:
        """Share of a GPU that a decoder takes; 0 where the CPU measures motion."""
        return self.resources.gpus_per_decoder if self.keyframes.device == "cuda" else 0.0

    def clip_settings(self) -> ClipSettings:
        """Build the settings with which a decoding actor reads clips."""
        # Pairs are filtered, and files fetched, outside of the reader.
        keyframes = self.keyframes.model_dump(exclude={"min_motion_px"})
        limits = self.limits.model_dump(exclude={"download_limit_mib"})
        return ClipSettings(reader=self.reader, image_side_px=self.image_side_px, **keyframes, **limits)

    def download_settings(self) -> DownloadSettings:
        """Build the settings with which a decoding actor fetches remote videos."""
        return DownloadSettings(self.limits.time_limit_s, self.limits.download_limit_mib * 2**20)

    def annotator_settings(self) -> AnnotatorSettings:
        """Build the settings of an annotating actor; its paths are absolute."""
        # Absolute: a worker's folder is not the driver's.
        return AnnotatorSettings(
            out=str(Path(self.out).absolute()),
            idm=str(Path(self.idm).absolute()) if self.idm else "",
            base=str(Path(self.base).absolute()) if self.base else None,
            codec=str(Path(self.codec).absolute()) if self.codec else None,
            prompt=self.prompt,
            endpoint=self.endpoint,
            dataset=self.dataset,
            split=self.split,
            license=self.license,
            min_motion_px=self.keyframes.min_motion_px,
            filters=self.filters,
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            codec_batch_size=self.resources.codec_batch_size,
            idm_batch_size=self.resources.idm_batch_size,
            threads=self.resources.threads_per_annotator,
            device="cuda" if self.resources.gpus_per_annotator > 0 else "cpu",
            dtype=self.dtype,
        )
