"""Fields that every request for pictures has."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from serve_apps.openai.checks import MAX_SEED
from serve_apps.openai.errors import ApiError
from serve_apps.openai.ignored_fields import IgnoredFields

MAX_SIDE_PX = 2048
MAX_GUIDANCE = 100
OutputFormat = Literal["png", "jpeg", "webp"]
SCALE_NAMES = {"guidance": "guidance_scale", "guidance_image": "image_guidance_scale"}
"""Scales of guidance, and what Diffusers and its clients call them."""


UNSUPPORTED = {
    "mask": "this server takes no mask",
    "markup": "this server takes no markup",
    "frame_count": "a prediction is one frame",
    "frame_duration_ms": "a prediction is one frame",
    "svg": "predictions are png, jpeg or webp",
}
"""Fields of OpenAI's clients that would change the answer, and why this server has none."""


class PictureFields(IgnoredFields):
    """How pictures are drawn, and how they are given back."""

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
    guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Another name of guidance."""
    image_guidance_scale: float | None = Field(None, ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)
    """Another name of guidance_image."""
    size: str = Field("auto", pattern=r"^(auto|[1-9]\d{0,4}x[1-9]\d{0,4})$")
    """auto (the model's own size) or WIDTHxHEIGHT, square: the prediction is scaled to it."""
    output_format: OutputFormat = "png"
    """png is lossless."""
    output_compression: int | None = Field(None, ge=0, le=100)
    """Quality of jpeg and webp, 100 if left out; no effect on png, which is lossless."""
    background: Literal["auto", "opaque"] = "auto"
    """Predictions are always opaque."""
    response_format: Literal["b64_json"] = "b64_json"
    """Pictures come inside the reply; this server keeps no files to link to."""
    user: str | None = Field(None, max_length=256)
    """Your name for the end user; returned as safety_identifier."""
    safety_identifier: str | None = Field(None, max_length=256)
    """As user, and preferred over it."""
    quality: object = None
    """No effect: there is one quality."""
    input_fidelity: object = None
    """No effect: the source image is always read in full."""
    moderation: object = None
    """No effect: nothing is moderated."""
    style: object = None
    """No effect."""
    complexity: object = None
    """No effect."""

    @model_validator(mode="after")
    def _one_scale_each(self) -> Self:
        for name, other in SCALE_NAMES.items():
            scales = {getattr(self, name), getattr(self, other)} - {None}
            if len(scales) > 1:
                raise ApiError(
                    f"{name} = {getattr(self, name):g} and {other} = {getattr(self, other):g} are two names of one "
                    "thing; give one of them",
                    param=name,
                    code="invalid_value",
                )
        return self

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of everything that has an effect: the image, a request's own fields, those of all."""
        return ["image", *cls.effective()]

    def asked(self) -> dict[str, Any]:
        """Return the values of :class:`PicturesAsked` but ``image``, by name; :class:`ApiError` for a size that is
        none."""
        as_given = ("model", "verifier", "margin", "temperature", "top_k", "top_p")
        scales = {name: self._scale(name) for name in SCALE_NAMES}
        return (
            {name: getattr(self, name) for name in (*as_given, "output_format")}
            | scales
            | {
                "seed": secrets.randbelow(MAX_SEED + 1) if self.seed is None else self.seed,
                "side_px": side_of(self.size),
                "output_compression": 100 if self.output_compression is None else self.output_compression,
                "safety_identifier": self.safety_identifier or self.user or None,
            }
        )

    def _scale(self, name: str) -> float | None:
        scale: float | None = getattr(self, name)
        other: float | None = getattr(self, SCALE_NAMES[name])
        return other if scale is None else scale


def check_supported(names: Iterable[str]) -> None:
    """Raise :class:`ApiError` for the first of :data:`UNSUPPORTED` among the names of a request's fields."""
    for name in names:
        if name in UNSUPPORTED:
            raise ApiError(f"{name} is not supported: {UNSUPPORTED[name]}", param=name, code="unsupported_value")


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
