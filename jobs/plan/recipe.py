"""Define what ``plan`` is asked: videos, measured rates, a cluster."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Self

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
    """As for jobs.annotate."""
    motion: MotionKind = "dis"
    """As for jobs.annotate; farneback takes the rate exact_frames_per_s."""


class PlanResources(Recipe):
    """How an annotation uses the cluster."""

    annotate_on: Pool = "gpu"
    """Where codec and IDM run: gpu, or cpu (then their rates are those of a core)."""
    cpus_per_annotator: float = Field(default=1.0, ge=0)
    """Cores that a GPU's annotator keeps busy, taken from decoding."""
    efficiency: float = Field(default=0.9, gt=0, le=1)
    """Share of the slower pool's time at work: 0.9 is what the scale-out benchmark asks for."""


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
    """JSON files of jobs.benchmark; of a rate that several have, the last one counts."""
    nodes: list[NodeKind] = Field(min_length=1)
    """Kinds of machines: name, count, cpus, gpus, price_per_hour."""
    videos: OptionalSourcePath = None
    """Folder, glob or list, as for jobs.annotate; or give hours and mean_length_s."""
    dataset_layout: DatasetLayout = "auto"
    """As for jobs.annotate."""
    annotations: OptionalInputPath = None
    """As for jobs.annotate."""
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
    """Left out: from_run's, or what keyframes.rule gives of videos of this length."""
    keyframes: PlanKeyframes = PlanKeyframes()
    """Rule and motion, as for jobs.annotate."""
    shape: str = ""
    """Take the motion rate of this shape of clips, such as xvid or h264 (dis_frames_per_s_h264)."""
    resources: PlanResources = PlanResources()
    """How the cluster is used."""
    bytes_per_triplet: int | None = Field(default=None, ge=1)
    """Stored size. Left out: from_run's, or 190 kB (two PNG images of 340 x 256)."""
    out: OutputPath = ""
    """File for the plan as JSON; empty: printed only."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        # The table and the answers by node go by name.
        names = [node.name for node in self.nodes]
        if len(set(names)) < len(names):
            raise ValueError("nodes of the same name; expected one entry for each kind")
        return self
