"""Build the request for one judgement and its key. Knows nothing of clients, prediction sets or replies."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from wm.evaluation.judge.template import Template

Detail: TypeAlias = Literal["auto", "low", "high"]

SCHEMA: Final[dict[str, object]] = {
    "type": "json_schema",
    "json_schema": {
        "name": "judgement",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {
                "score": {"type": "array", "items": {"type": "number"}},
                "reasoning": {"type": "string"},
            },
            "required": ["score", "reasoning"],
            "additionalProperties": False,
        },
    },
}
"""Form of the reply for endpoints with structured output. It fixes no ranges: what a judge replies is checked here."""

# OpenAI's guide on images and vision, for GPT-4o: a base of 85 tokens, and at high detail 170 for each tile of 512 px
# of the image, scaled into 2048 x 2048 and then to a short side of 768.
_BASE_TOKENS: Final = 85
_TILE_TOKENS: Final = 170
_TILE_PX: Final = 512
_LONG_PX: Final = 2048
_SHORT_PX: Final = 768
_CHARS_A_TOKEN: Final = 4
"""Of English text, OpenAI's rule of thumb."""
_MESSAGE_TOKENS: Final = 10


@dataclass(frozen=True)
class JudgeSettings:
    """What, besides template, images and action, decides what a judge replies."""

    model: str
    detail: Detail = "auto"
    max_tokens: int = 300
    temperature: float | None = None
    """None: the API's default, which the paper does not override."""
    structured: bool = False
    """Whether the endpoint is asked for the form of :data:`SCHEMA`."""


@dataclass(frozen=True)
class Question:
    """What decides, with template and settings, which judgement is asked for."""

    action: str
    source_sha256: str
    """Of the source's size and pixels as the judge sees it, see :func:`wm.evaluation.predictions.pixels_digest`."""
    prediction_sha256: str
    """Of the prediction's."""
    repeat: int = 0


def judgement_key(question: Question, template: Template, settings: JudgeSettings) -> str:
    """Compute the key under which a judgement is stored: equal questions are asked once.

    Args:
        question: Images are known by their pixels, so that equal predictions of two systems are one question.
        template: What is asked.
        settings: Whether structured output is asked for is left out: an endpoint that stops to offer it, or begins to,
            would have everything judged anew.

    Returns:
        64 hexadecimal digits.
    """
    parts = [
        template.digest,
        settings.model,
        settings.detail,
        settings.max_tokens,
        settings.temperature,
        question.source_sha256,
        question.prediction_sha256,
        question.action,
        question.repeat,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def build_body(
    action: str, source_png: bytes, prediction_png: bytes, template: Template, settings: JudgeSettings
) -> dict[str, object]:
    """Build the body of ``POST /v1/chat/completions``.

    One message of the user: the text, the source, the prediction, in this order.

    Args:
        action: What should happen from source to prediction.
        source_png: Sent as a data URL, as it is.
        prediction_png: Likewise.
        template: What is asked.
        settings: Model and limits.

    Returns:
        The body.
    """
    content: list[Mapping[str, object]] = [{"type": "text", "text": template.fill(action)}]
    for png in (source_png, prediction_png):
        url = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        content.append({"type": "image_url", "image_url": {"url": url, "detail": settings.detail}})
    body: dict[str, object] = {
        "model": settings.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": settings.max_tokens,
    }
    if settings.temperature is not None:
        body["temperature"] = settings.temperature
    if settings.structured:
        body["response_format"] = SCHEMA
    return body


def count_text_tokens(action: str, template: Template) -> int:
    """Estimate the tokens of a request's text: a quarter of its letters, and some for the message around it."""
    return len(template.fill(action)) // _CHARS_A_TOKEN + _MESSAGE_TOKENS


def count_image_tokens(width_px: int, height_px: int, detail: Detail) -> int:
    """Count an image's tokens by GPT-4o's rule.

    Args:
        width_px: Its width.
        height_px: Its height.
        detail: ``auto`` is counted as ``high``.

    Returns:
        85 at low detail; at high detail 170 more for each tile of 512 px.
    """
    if detail == "low":
        return _BASE_TOKENS
    # Only ever scaled down.
    scale = min(1.0, _LONG_PX / max(width_px, height_px))
    scale = min(scale, _SHORT_PX / min(width_px, height_px))
    tiles = -(-round(width_px * scale) // _TILE_PX) * -(-round(height_px * scale) // _TILE_PX)
    return _BASE_TOKENS + _TILE_TOKENS * tiles
