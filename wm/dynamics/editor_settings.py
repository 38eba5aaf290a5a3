"""Define how an image editor is loaded and called as a forward model: the settings that jobs embed as a table
``editor``."""

from pydantic import Field

from wm.config import Recipe
from wm.dynamics.editor import Fit
from wm.dynamics.editor_calls import Setting
from wm.dynamics.editor_forward import EditorArguments
from wm.errors import InputError


class EditorSettings(Recipe):
    """Which class of diffusers an image editor is, and how it is called; for a forward model that is one."""

    pipeline: str = ""
    """Class of diffusers, which the folder must name too, such as QwenImageEditPipeline; empty: the one that it
    names."""
    settings: dict[str, Setting] = {}
    """Arguments of the pipeline's call by their own names, such as num_inference_steps and guidance_scale; the others
    have the pipeline's defaults."""
    scheduler: str = ""
    """Class of diffusers that replaces the folder's scheduler; empty: the folder's own."""
    resolution: int | None = Field(default=None, ge=0, le=4096)
    """Pixels of the long side that sources are scaled to, both sides to multiples of 64; 0: sources as they are; left
    out: 512 for InstructPix2Pix, as its authors do, and 0 for others, which scale by themselves."""
    fit: Fit = "crop"
    """crop: what multiples of 64 leave over is cropped from the centre, and stays as it is in the source; stretch: the
    full frame, a little out of shape."""
    safety_checker: bool = True
    """Load the folder's safety checker, if it has one; an image that it withholds is no candidate."""

    def arguments(self) -> EditorArguments:
        """Return the keyword arguments of :func:`wm.dynamics.editor_forward.load_editor_forward`."""
        return {
            "pipeline": self.pipeline,
            "settings": self.settings,
            "scheduler": self.scheduler,
            "resolution": self.resolution,
            "fit": self.fit,
            "safety_checker": self.safety_checker,
        }

    def check_unused(self, fdm: str) -> None:
        """Raise :class:`InputError` if a setting was given although the forward model is no editor.

        Args:
            fdm: Its folder.
        """
        if self.model_fields_set:
            name = min(self.model_fields_set)
            raise InputError(
                f"editor.{name} = {getattr(self, name)!r:.80}, but fdm = {fdm!r} is no image editor (a folder with "
                "model_index.json)"
            )
