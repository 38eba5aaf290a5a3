"""Requests for rollouts, ``POST /v1/rollouts``: a source image and several actions, one after the other. JSON, in the
manner of OpenAI's image edits."""

import secrets
from dataclasses import dataclass

from pydantic import Field, ValidationError

from wm.api.checks import MAX_SEED, check_action, check_length, explained, image_bytes, object_of
from wm.api.errors import ApiError, Limits
from wm.api.fields import OutputFormat, PictureFields, side_of


class RolloutFields(PictureFields):
    """The fields of a rollout beside its image."""

    actions: list[str] = Field(min_length=1)
    """The actions to take, in words, in their order."""
    model: str | None = None
    """A forward dynamics model of GET /v1/models; the served one if left out."""
    verifier: str | None = None
    """The inverse dynamics model of GET /v1/models that ranks; the served one if left out."""
    best_of: int | None = Field(None, ge=1, le=MAX_SEED)
    """How many candidates to draw and verify at each step, for each sequence kept."""
    beam: int = Field(1, ge=1, le=MAX_SEED)
    """How many sequences to keep after each step; 1 goes on from the best candidate."""
    margin: float | None = Field(None, ge=0, allow_inf_nan=False)
    """Adaptive N: fewer than best_of are drawn where one more is expected to gain no more than so many nats an action
    token; 0 never stops early."""
    max_unchanged: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    """Copy guard: candidates with a larger share of unchanged image tokens rank last; 1: off."""
    stream: bool = False
    """Whether to answer with server-sent events: each step as it is done, then the whole."""


@dataclass(frozen=True)
class RolloutAsked:
    """A checked request. ``image``: the encoded bytes as sent; ``side_px``: None for the model's own size."""

    image: bytes
    actions: tuple[str, ...]
    model: str | None
    verifier: str | None
    best_of: int
    beam: int
    margin: float | None
    max_unchanged: float
    seed: int
    temperature: float | None
    top_k: int | None
    top_p: float | None
    guidance: float | None
    guidance_image: float | None
    side_px: int | None
    output_format: OutputFormat
    output_compression: int
    stream: bool
    safety_identifier: str | None


def rollout_from_json(body: bytes, limits: Limits) -> RolloutAsked:
    """Check a JSON body; :class:`ApiError` names what is wrong with it."""
    values = object_of(body)
    given = values.pop("image", None)
    try:
        fields = RolloutFields.model_validate(values, strict=True)
    except ValidationError as error:
        raise explained(error, ["image", *RolloutFields.model_fields]) from error
    if given is None:
        raise ApiError("image is missing: the source, as a data URL", param="image", code="missing_required_parameter")
    if len(fields.actions) > limits.max_actions:
        message = f"{len(fields.actions)} actions are given; at most {limits.max_actions} are accepted"
        raise ApiError(message, param="actions", code="array_above_max_length")
    for place, action in enumerate(fields.actions):
        check_action(action, f"actions[{place}]")
        check_length(action, f"actions[{place}]", limits)
    for name, most in (("best_of", limits.max_best_of), ("beam", limits.max_beam)):
        if (getattr(fields, name) or 0) > most:
            message = f"{name} = {getattr(fields, name)}: at most {most} are accepted"
            raise ApiError(message, param=name, code="integer_above_max_value")
    return RolloutAsked(
        image=image_bytes(given, "image"),
        actions=tuple(action.strip() for action in fields.actions),
        model=fields.model,
        verifier=fields.verifier,
        best_of=fields.best_of or limits.default_best_of,
        beam=fields.beam,
        margin=fields.margin,
        max_unchanged=fields.max_unchanged,
        seed=secrets.randbelow(MAX_SEED + 1) if fields.seed is None else fields.seed,
        temperature=fields.temperature,
        top_k=fields.top_k,
        top_p=fields.top_p,
        guidance=fields.guidance,
        guidance_image=fields.guidance_image,
        side_px=side_of(fields.size),
        output_format=fields.output_format,
        output_compression=100 if fields.output_compression is None else fields.output_compression,
        stream=fields.stream,
        safety_identifier=fields.safety_identifier or fields.user or None,
    )
