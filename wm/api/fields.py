"""Fields that every request for pictures has."""

import secrets
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from wm.api.checks import MAX_SEED
from wm.api.errors import ApiError

MAX_SIDE_PX = 2048
MAX_GUIDANCE = 100
OutputFormat = Literal["png", "jpeg", "webp"]


class PictureFields(BaseModel):
    """How pictures are drawn, and how they are given back."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str | None = None
    """A forward dynamics model of GET /v1/models; the served one if left out."""
    verifier: str | None = None
    """The inverse dynamics model of GET /v1/models that ranks; the served one if left out."""
    margin: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Adaptive N: fewer than best_of are drawn where one more is expected to gain no more than so many nats an action
    token; 0 never stops early."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Same seed, same answer. A random one is drawn, and reported, if left out."""
    temperature: float | None = Field(None, ge=0, le=10, allow_inf_nan=False)
    """Of the image tokens; 0 decodes greedily, so that all candidates are equal."""
    top_k: int | None = Field(None, ge=0, le=MAX_SEED)
    """Draw among the k most likely codes only; 0 for all."""
    top_p: float | None = Field(None, gt=0, le=1, allow_inf_nan=False)
    """Draw among the most likely codes that hold this share of the probability."""
    guidance: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Classifier-free guidance: scale of what the action adds to the source image; 1 for none."""
    guidance_image: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Scale of what the source image adds to nothing at all; 1 for none. With either, three times the work."""
    size: str = Field("auto", pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")
    """auto (the model's own size) or WIDTHxHEIGHT, square: the prediction is scaled to it."""
    output_format: OutputFormat = "png"
    """png is lossless."""
    output_compression: int | None = Field(None, ge=0, le=100)
    """Quality of jpeg and webp, 100 if left out."""
    user: str | None = Field(None, max_length=256)
    """Your name for the end user; returned as safety_identifier."""
    safety_identifier: str | None = Field(None, max_length=256)
    """As user, and preferred over it."""

    @model_validator(mode="after")
    def _compressible(self) -> Self:
        if self.output_compression is not None and self.output_format == "png":
            raise ApiError(
                "output_compression is for output_format jpeg and webp; png is lossless",
                param="output_compression",
            )
        return self

    @classmethod
    def names(cls) -> list[str]:
        """Of everything that can be asked for: the image, a request's own fields, those of all."""
        own = [name for name in cls.model_fields if name not in PictureFields.model_fields]
        return ["image", *own, *PictureFields.model_fields]

    def asked(self) -> dict[str, Any]:
        """The values of :class:`PicturesAsked` but ``image``, by name; :class:`ApiError` for a size that is none."""
        as_given = ("model", "verifier", "margin", "temperature", "top_k", "top_p", "guidance", "guidance_image")
        return {name: getattr(self, name) for name in (*as_given, "output_format")} | {
            "seed": secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed,
            "side_px": side_of(self.size),
            "output_compression": 100 if self.output_compression is None else self.output_compression,
            "safety_identifier": self.safety_identifier or self.user or None,
        }


@dataclass(frozen=True, kw_only=True)
class PicturesAsked:
    """What every checked request for pictures has. ``image``: the encoded bytes as sent. ``side_px``: None for the
    model's own size. Settings of sampling are None where the server's hold."""

    image: bytes
    model: str | None
    verifier: str | None
    margin: float | None
    seed: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    guidance: float | None
    guidance_image: float | None
    side_px: int | None
    output_format: OutputFormat
    output_compression: int
    safety_identifier: str | None


def side_of(size: str) -> int | None:
    """Pixels a side of ``WIDTHxHEIGHT``, None of ``auto``; :class:`ApiError` unless it is a square that is not too
    large."""
    if size == "auto":
        return None
    width, height = (int(part) for part in size.split("x"))
    if width != height or width > MAX_SIDE_PX:
        raise ApiError(
            f"size = {size!r}: expected auto or a square of at most {MAX_SIDE_PX}x{MAX_SIDE_PX}",
            param="size",
            code="invalid_value",
        )
    return width
