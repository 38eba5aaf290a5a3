"""Define what ``plan`` is asked: videos, measured rates, a cluster."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from wm.config import Recipe
from wm.datasets.layouts import DatasetLayout
from wm.datasets.planning import Pool
from wm.paths import INPUT, InputPath, OptionalInputPath, OptionalSourcePath, OptionalTablePath, OutputPath
from wm.video import MotionKind
from wm.video.settings import RuleName


class NodeKind(Recipe):
    """Machines of one kind."""

    name: str
    """What the table calls it."""
    count: int = Field(default=1, ge=0)
    """How many."""
    cpus: int = Field(ge=1)
    """Cores of one; the rates are those of such a core."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of one; the annotator's rates are those of such a GPU."""
    price_per_hour: float | None = Field(default=None, ge=0)
    """Price of one for an hour, in any currency."""


def _to_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class PlanKeyframes(Recipe):
    """What the work of choosing key-frames depends on."""

    rule: RuleName = "top_then_spacing"
    """As for wm annotate."""
    motion: MotionKind = "dis"
    """As for wm annotate; farneback takes the rate exact_frames_per_s."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where farneback is measured: cpu, cuda (rates grey_frames_per_s and flow_frames_per_s, of wm benchmark keyframes
    and gpu), or auto: cuda where GPUs annotate, both rates are there, and it takes fewer hours."""

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.device == "cuda" and self.motion != "farneback":
            raise ValueError(f"device = 'cuda' with motion = {self.motion!r}; only farneback runs on a GPU")
        return self


class PlanResources(Recipe):
    """How an annotation uses the cluster."""

    annotate_on: Pool = "gpu"
    """Where codec and IDM run: gpu, or cpu (then their rates are those of a core)."""
    cpus_per_annotator: float = Field(default=1.0, ge=0)
    """Cores that a GPU's annotator keeps busy, taken from decoding."""
    efficiency: float | None = Field(default=None, gt=0, le=1)
    """Share of the slower pool's time at work. Left out: what a probe measured, or 0.9, which the scale-out benchmark
    asks for."""


class PlanScale(Recipe):
    """What grows with the number of videos and not with the cluster: the driver's work, and the bucket's requests."""

    unit_costs: OptionalInputPath = None
    """JSON of wm benchmark scale, measured on your head node; left out: the figures of jobs/measured/scale.json."""
    videos_per_shard: int = Field(default=32, ge=1)
    """As for wm annotate."""
    in_bucket: bool = True
    """Videos and output are in a bucket; false: on a file system, whose requests cost nothing."""
    files_per_folder: int = Field(default=10_000, ge=1)
    """Videos in one folder of the bucket."""
    bytes_per_video: int = Field(default=2_000_000, ge=1)
    """Mean size of a file; each 8 MiB are a request."""
    driver_memory_gib: float = Field(default=32.0, gt=0)
    """Memory that the head node has for the driver."""
    list_request_s: float = Field(default=0.1, ge=0)
    """Seconds of a request for 1,000 names."""
    request_s: float = Field(default=0.03, ge=0)
    """Seconds of another small request."""
    price_per_1000_writes: float = Field(default=0.005, ge=0)
    """Of PUT and LIST requests; the default is that of Amazon S3 Standard in us-east-1, in dollars
    (aws.amazon.com/s3/pricing)."""
    price_per_1000_reads: float = Field(default=0.0004, ge=0)
    """Of GET and HEAD requests; likewise."""
    writes_per_s: float = Field(default=3500.0, gt=0)
    """Requests a second that a prefix takes; Amazon's figure."""
    reads_per_s: float = Field(default=5500.0, gt=0)
    """Likewise."""


class PlanRecipe(Recipe):
    """Which videos, measured rates, which cluster."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "layout": "dataset_layout",
        "keyframe_rule": "keyframes.rule",
        "motion": "keyframes.motion",
        "annotate_on": "resources.annotate_on",
        "cpus_per_annotator": "resources.cpus_per_annotator",
        "efficiency": "resources.efficiency",
    }

    rates: Annotated[list[InputPath], BeforeValidator(_to_list), INPUT] = Field(min_length=1)
    """JSON files of wm benchmark, best of wm benchmark probe on your cluster; of a rate that several have, the last one
    counts."""
    nodes: list[NodeKind] = Field(min_length=1)
    """Kinds of machines: name, count, cpus, gpus, price_per_hour."""
    videos: OptionalSourcePath = None
    """Folder, glob or list, as for wm annotate; or give hours and mean_length_s."""
    dataset_layout: DatasetLayout = "auto"
    """As for wm annotate."""
    annotations: OptionalInputPath = None
    """As for wm annotate."""
    hours: float | None = Field(default=None, gt=0)
    """Hours of video in all, where there is no list."""
    mean_length_s: float | None = Field(default=None, gt=0)
    """Mean length of a video (of those without times in the list). Left out: from_run's, or probed."""
    probe: int = Field(default=50, ge=0)
    """Local videos whose headers are read for length and frame rate, where they are not known otherwise."""
    fps: float | None = Field(default=None, gt=0)
    """Frames a second. Left out: from_run's, or probed, or 25."""
    from_run: OptionalTablePath = None
    """Folder of a finished annotate or look: frames, key-frames, pairs, triplets a video and bytes a triplet are its
    own."""
    keyframes_per_video: float | None = Field(default=None, ge=0)
    """Left out: from_run's, the probe's, or what keyframes.rule gives of videos of this length."""
    keyframes: PlanKeyframes = PlanKeyframes()
    """Rule and motion, as for wm annotate."""
    shape: str = ""
    """Take the motion rate of this shape of clips, such as xvid or h264 (dis_frames_per_s_h264)."""
    resources: PlanResources = PlanResources()
    """How the cluster is used."""
    bytes_per_triplet: int | None = Field(default=None, ge=1)
    """Stored size. Left out: from_run's, or 190 kB (two PNG images of 340 x 256)."""
    scale: PlanScale = PlanScale()
    """The driver and the bucket: scale.videos_per_shard=256, …"""
    max_nodes: int = Field(default=10_000, ge=1)
    """Clusters of the same mix of nodes are compared up to this size."""
    figure: OutputPath = ""
    """SVG or PNG file for hours and price over the number of nodes; empty: none."""
    out: OutputPath = ""
    """File for the plan as JSON; empty: printed only."""

    @model_validator(mode="after")
    def _check_pools(self) -> Self:
        if self.keyframes.device == "cuda" and self.resources.annotate_on != "gpu":
            raise ValueError(
                "keyframes.device = 'cuda' with resources.annotate_on = 'cpu'; a plan with GPUs has them annotate"
            )
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        # The table and the answers by node go by name.
        names = [node.name for node in self.nodes]
        if len(set(names)) < len(names):
            raise ValueError("nodes of the same name; expected one entry for each kind")
        return self
