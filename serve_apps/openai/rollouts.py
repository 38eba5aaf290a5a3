"""Requests for rollouts, ``POST /v1/wm/rollouts``: a source image and several actions, one after the other.

JSON, in the manner of OpenAI's image edits.
"""

from dataclasses import dataclass

from pydantic import Field, ValidationError

from serve_apps.openai.checks import (
    MAX_SEED,
    check_action,
    check_length,
    explained,
    image_bytes,
    object_of,
    without_nulls,
)
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.fields import PictureFields, PicturesAsked, check_supported


class RolloutFields(PictureFields):
    """The fields of a rollout beside its image."""

    actions: list[str] = Field(min_length=1, fail_fast=True)
    """The actions to take, in words, in their order."""
    best_of: int | None = Field(None, ge=1, le=MAX_SEED)
    """How many candidates to draw and verify at each step, for each sequence kept."""
    beam: int = Field(1, ge=1, le=MAX_SEED)
    """How many sequences to keep after each step; 1 goes on from the best candidate."""
    max_unchanged: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    """Copy guard: candidates with a larger share of unchanged image tokens rank last; 1: off."""
    stream: bool = False
    """Whether to answer with server-sent events: each step as it is done, then the whole."""


@dataclass(frozen=True, kw_only=True)
class RolloutAsked(PicturesAsked):
    """A checked request for several steps."""

    actions: tuple[str, ...]
    best_of: int
    beam: int
    max_unchanged: float
    stream: bool


def rollout_from_json(body: bytes, limits: Limits) -> RolloutAsked:
    """Check a JSON body; :class:`ApiError` names what is wrong with it."""
    values = without_nulls(object_of(body, limits))
    given = values.pop("image", None)
    check_supported(values)
    try:
        fields = RolloutFields.model_validate(values, strict=True)
    except ValidationError as error:
        raise explained(error, RolloutFields.names()) from error
    if given is None:
        raise ApiError("image is missing: the source, as a data URL", param="image", code="missing_required_parameter")
    if len(fields.actions) > limits.max_actions:
        message = f"{len(fields.actions)} actions are given; at most {limits.max_actions} are accepted"
        raise ApiError(message, param="actions", code="array_above_max_length")
    for place, action in enumerate(fields.actions):
        check_length(action, f"actions[{place}]", limits)
        check_action(action, f"actions[{place}]")
    for name, most in (("best_of", limits.max_best_of), ("beam", limits.max_beam)):
        if (getattr(fields, name) or 0) > most:
            message = f"{name} = {getattr(fields, name)}: at most {most} are accepted"
            raise ApiError(message, param=name, code="integer_above_max_value")
    return RolloutAsked(
        image=image_bytes(given, "image"),
        actions=tuple(action.strip() for action in fields.actions),
        best_of=fields.best_of or limits.default_best_of,
        beam=fields.beam,
        max_unchanged=fields.max_unchanged,
        stream=fields.stream,
        **fields.asked(),
    )
