"""Define how a vision-language model is asked for an action: the settings that jobs embed as a table ``pixels``."""

from typing import TypedDict

from pydantic import Field

from wm.config import Recipe
from wm.dynamics.vlm_scorer import PROMPT
from wm.errors import InputError
from wm.paths import ModelPath


class PixelArguments(TypedDict):
    """What :func:`wm.dynamics.pixel_inverse.load_pixel_inverse` takes beside a model's folder."""

    prompt: str
    image_cache_mb: int


class PixelsSettings(Recipe):
    """How an inverse model that reads pixels is asked; for one that is a vision-language model."""

    base: ModelPath = ""
    """Base folder of its adapter; empty: the one that its manifest names."""
    prompt: str = ""
    """The question after both images; empty: that of wm train."""
    image_cache_mb: int = Field(default=1024, ge=0)
    """MB of vision features that are kept; 0: none."""

    def arguments(self) -> PixelArguments:
        """Return the keyword arguments of :func:`wm.dynamics.pixel_inverse.load_pixel_inverse`."""
        return {"prompt": self.prompt or PROMPT, "image_cache_mb": self.image_cache_mb}

    def check_unused(self, idm: str) -> None:
        """Raise :class:`InputError` if a setting was given although the inverse model reads no pixels.

        Args:
            idm: Its folder.
        """
        if self.model_fields_set:
            name = min(self.model_fields_set)
            raise InputError(
                f"pixels.{name} = {getattr(self, name)!r:.80}, but idm = {idm!r} is no model that reads pixels"
            )
