"""Define what ``edit`` is asked: which editor, with which settings, on which bench."""

from typing import ClassVar

from pydantic import Field, field_validator

from wm.config import Recipe
from wm.dynamics.editor import Fit
from wm.evaluation.rows import check_label
from wm.models.pipelines import Precision
from wm.paths import InputPath, OutputPath


class EditResources(Recipe):
    """Where the editor runs."""

    device: str = "cpu"
    """Device of torch, such as cpu or cuda:1."""
    dtype: Precision = "float32"
    """Type of the weights; float16 halves the memory, and may give black images, which are rejects."""
    batch_size: int = Field(default=1, ge=1)
    """Images in a call; above 1 for InstructPix2Pix, and for Qwen-Image-Edit and FLUX Kontext, which make candidates of
    one triplet in one call; others make one image a call."""


class EditRecipe(Recipe):
    """Which editor, with which settings, on which bench."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources.device", "resources.batch_size"})

    model: InputPath
    """Folder of an image editor in the form of diffusers, such as timbrooks/instruct-pix2pix."""
    triplets: InputPath
    """The bench: folder of its triplets, whose sources are edited by their actions."""
    out: OutputPath
    """Folder for out/predictions, out/rejects and out/run.json."""
    pipeline: str = Field(default="StableDiffusionInstructPix2PixPipeline", min_length=1)
    """Class of diffusers, which the folder must name too, such as QwenImageEditPipeline."""
    system: str = ""
    """Name of the system in tables; empty: the pipeline's without StableDiffusion and Pipeline, such as
    InstructPix2Pix."""
    settings: dict[str, bool | int | float | str] = {}
    """Arguments of the pipeline's call by their own names, such as num_inference_steps, guidance_scale and
    image_guidance_scale; the others have the pipeline's defaults, and run.json has all of them."""
    scheduler: str = ""
    """Class of diffusers that replaces the folder's scheduler, such as EulerAncestralDiscreteScheduler; empty: the
    folder's own."""
    resolution: int = Field(default=512, ge=0, le=4096)
    """Pixels of the long side that sources are scaled to, both sides to multiples of 64, as InstructPix2Pix's authors
    do; 0: sources as they are, for pipelines that scale by themselves."""
    fit: Fit = "crop"
    """crop: what multiples of 64 leave over is cropped from the centre, as the authors do, so that a prediction may
    show a little less than its target, which image metrics see; stretch: the full frame, a little out of shape."""
    seeds: list[int] = Field(default=[0], min_length=1)
    """Sampling seeds, each of which gives every triplet num_candidates images."""
    num_candidates: int = Field(default=1, ge=1, le=1024)
    """Images of each triplet and seed."""
    safety_checker: bool = True
    """Load the folder's safety checker, if it has one; an image that it withholds is a reject, and never scored."""
    limit: int = Field(default=0, ge=0)
    """Edit so many triplets, spread evenly over the bench; 0: all."""
    shard_rows: int = Field(default=16, ge=1)
    """Triplets that go into one Parquet file; a killed run resumes at the next file."""
    resources: EditResources = EditResources()
    """Where the editor runs: resources.device=cuda."""

    @field_validator("system")
    @classmethod
    def _check_system(cls, name: str) -> str:
        # Empty: the pipeline's name.
        return check_label(name) if name else name

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, values: list[int]) -> list[int]:
        if len(set(values)) != len(values) or min(values) < 0:
            raise ValueError("expected different whole numbers of at least 0")
        return values

    def system_name(self) -> str:
        """Return the system's name in tables."""
        return self.system or self.pipeline.removeprefix("StableDiffusion").removesuffix("Pipeline")
