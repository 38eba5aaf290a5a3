"""Requests to score actions: how likely the inverse dynamics model finds each of them between a source and a target.

``POST /v1/wm/score``, a form of our own.
"""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, ValidationError, WithJsonSchema

from serve_apps.openai.checks import check_action, check_length, explained, object_of, without_nulls
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.ignored_fields import IgnoredFields
from serve_apps.openai.pictures import DATA_URL_SCHEMA, data_url_bytes

DataUrl = WithJsonSchema(DATA_URL_SCHEMA)
Words = WithJsonSchema({"type": "string", "pattern": r"^[^\x00]*[^\s\x00][^\x00]*$"})


class ScoreFields(IgnoredFields):
    """The fields of a request."""

    image: Annotated[str, DataUrl]
    """The source: a data URL of PNG, JPEG, WebP or BMP."""
    targets: list[Annotated[str, DataUrl]] = Field(min_length=1, fail_fast=True)
    """What it may have become: data URLs."""
    actions: list[Annotated[str, Words]] = Field(min_length=1, fail_fast=True)
    """What may have happened, in words. Every target is scored with every action."""
    model: str | None = None
    """An inverse dynamics model of GET /v1/models; the served one if left out."""


@dataclass(frozen=True)
class ScoreAsked:
    """A checked request. ``images``: the source, then the targets, encoded, with the names of their fields."""

    images: tuple[tuple[str, bytes], ...]
    actions: tuple[str, ...]
    model: str | None


def score_from_json(body: bytes, limits: Limits) -> ScoreAsked:
    """Check a JSON body; :class:`ApiError` names what is wrong."""
    values = without_nulls(object_of(body, limits))
    try:
        fields = ScoreFields.model_validate(values, strict=True)
    except ValidationError as error:
        raise explained(error, ScoreFields.effective()) from error
    count = len(fields.targets) * len(fields.actions)
    if count > limits.max_scores:
        raise ApiError(
            f"{len(fields.targets)} targets with {len(fields.actions)} actions are {count:,} scores; at most "
            f"{limits.max_scores:,} are given",
            param="actions" if len(fields.actions) > len(fields.targets) else "targets",
            code="array_above_max_length",
        )
    for index, action in enumerate(fields.actions):
        check_length(action, f"actions[{index}]", limits)
        check_action(action, f"actions[{index}]")
    named: list[tuple[str, Any]] = [("image", fields.image)]
    named += [(f"targets[{index}]", target) for index, target in enumerate(fields.targets)]
    return ScoreAsked(
        images=tuple((name, data_url_bytes(reference, name)) for name, reference in named),
        actions=tuple(action.strip() for action in fields.actions),
        model=fields.model,
    )
