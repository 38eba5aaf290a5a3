"""Define which models are served and where they run: the first keys of the server's recipe.

torch is not needed here: a command that prints its help has none.
"""

import tomllib
from typing import Literal

from pydantic import ConfigDict, Field, field_validator

from serve_apps.names import BASELINE, FDM, IDM
from wm.config import Recipe
from wm.paths import ModelPath, OptionalModelPath


# Keys as those of wm.dynamics.editor_settings, which jobs use and which imports torch.
class EditorTable(Recipe):
    """How an image editor of diffusers is called."""

    # Values of a text table of serve run may be texts.
    model_config = ConfigDict(strict=False)

    pipeline: str = ""
    """Class of diffusers, which the folder must name too, such as QwenImageEditPipeline; empty: the one that it
    names."""
    settings: dict[str, bool | int | float | str] = {}
    """Arguments of the pipeline's call by their own names, such as num_inference_steps, guidance_scale and
    image_guidance_scale; the others have the pipeline's defaults."""
    scheduler: str = ""
    """Class of diffusers that replaces the folder's scheduler, such as EulerAncestralDiscreteScheduler; empty: the
    folder's own."""
    resolution: int | None = Field(default=None, ge=0, le=2048)
    """Side of the squares that the pipeline is given, rounded up to a multiple of 64; 0: those that clients' images are
    fitted to, of side_px; left out: 512 for InstructPix2Pix, as its authors do, and 0 for others, which scale by
    themselves."""
    side_px: int = Field(default=0, ge=0, le=2048)
    """Side of the squares that clients' images are fitted to and predictions have; 0: resolution, or 1024 without."""
    batch_size: int | None = Field(default=None, ge=1)
    """Images of a call, between two of which other requests have their turn; left out: 8 where the pipeline makes
    several, else 1."""
    safety_checker: bool = True
    """Load the folder's safety checker, if it has one; an image that it withholds is a failure of its candidate."""
    device: str = ""
    """cpu or cuda; empty: as the recipe's device."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Type of the weights; empty: as the recipe's dtype. float16 may give black images, which are failures."""


class PixelsTable(Recipe):
    """How a vision-language model is asked for the action between two images."""

    # As above.
    model_config = ConfigDict(strict=False)

    base: OptionalModelPath = None
    """Folder of the base, where idm is an adapter; the one that its manifest names if left out."""
    prompt: str = ""
    """The question after both images; empty: that of wm train."""
    image_cache_mb: int = Field(default=1024, ge=0)
    """MB of vision features that are kept between requests; 0: none."""
    device: str = ""
    """cpu or cuda; empty: as the recipe's device."""
    dtype: Literal["", "float32", "bfloat16", "float16"] = ""
    """Type of the weights; empty: as the recipe's dtype."""


class ModelKeys(Recipe):
    """Which models are served, and where they run. Values may be text, as ``serve run`` passes them."""

    # serve run passes texts alone.
    model_config = ConfigDict(strict=False)

    fdm: ModelPath
    """Folder of the forward dynamics model: full, an adapter, or a pipeline of diffusers that edits images."""
    idm: ModelPath
    """Folder of the inverse dynamics model that verifies: full, or an adapter; also a vision-language model that reads
    pixels, such as Qwen3-VL."""
    base: OptionalModelPath = None
    """Folder of the base the adapters with image codes belong to; the one their manifests name if left out."""
    editor: EditorTable | None = None
    """How fdm is called, where it is a pipeline of diffusers."""
    pixels: PixelsTable | None = None
    """How idm is asked, where it is a vision-language model that reads pixels."""
    adapters: OptionalModelPath = None
    """Folder with more adapters of the same base, one a folder: each is served as base:NAME, read when it is first
    asked for. fdm and idm are then adapters of that base too, applied as they run; not with base_sharing = merged, and
    only where both have image codes."""
    max_adapters: int = Field(default=4, ge=1)
    """Of them in the memory of a replica at a time; the one that was asked for longest ago makes room."""
    baseline: OptionalModelPath = None
    """Folder of a second forward model with the same image codec, full or an adapter, served as baseline: to compare
    with, such as the base as it was or the last round's model. It is in memory beside fdm. None if left out."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights; bfloat16 halves their memory."""
    base_sharing: Literal["separate", "merged", "shared"] = "separate"
    """separate: FDM and IDM in processes of their own, as many of each as their load asks for. merged: both in one
    process, each with weights of its own. shared: both in one process over one copy of their base, for a single GPU;
    both must be adapters of it, which are applied as they run: a little slower, half the memory."""

    @field_validator("editor", "pixels", mode="before")
    @classmethod
    def _read_table(cls, value: object) -> object:
        """Read a table that ``serve run`` passes as text: {resolution = 512}."""
        # A file and wm serve give tables as they are.
        if not isinstance(value, str):
            return value
        try:
            return tomllib.loads(f"table = {value}")["table"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError("expected a table such as {resolution = 512}") from error

    def model_folders(self) -> dict[str, str]:
        """Return the folder of each model that the recipe names itself, by the model's name."""
        # In the order of GET /v1/models.
        return {FDM: self.fdm, IDM: self.idm} | ({BASELINE: self.baseline} if self.baseline else {})
