"""Requests to score actions: how likely the inverse dynamics model finds each of them between a source and a target.

``POST /v1/wm/score``, a form of our own.
"""

from typing import Annotated, Self

from pydantic import Field, ValidationInfo, WithJsonSchema, model_validator

from serve_apps.names import IDM
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.images import DATA_URL_SCHEMA, NamedImage, data_url_bytes
from serve_apps.openai.json_bodies import parse_object
from serve_apps.openai.requests import ApiRequest, check_actions, limits_of

DataUrl = WithJsonSchema(DATA_URL_SCHEMA)
Words = WithJsonSchema({"type": "string", "pattern": r"^[^\x00]*[^\s\x00][^\x00]*$"})


class ScoreRequest(ApiRequest):
    """A request for the likelihood of actions."""

    image: Annotated[str, DataUrl]
    """The source: a data URL of PNG, JPEG, WebP or BMP."""
    targets: list[Annotated[str, DataUrl]] = Field(min_length=1, fail_fast=True)
    """What it may have become: data URLs."""
    actions: list[Annotated[str, Words]] = Field(min_length=1, fail_fast=True)
    """What may have happened, in words. Every target is scored with every action."""
    model: str = IDM
    """An inverse dynamics model of GET /v1/models."""

    @model_validator(mode="after")
    def _check_fields(self, info: ValidationInfo) -> Self:
        limits = limits_of(info)
        # The work is their product, which limits on each would not bound.
        count = len(self.targets) * len(self.actions)
        if count > limits.max_scores:
            raise ApiError(
                f"{len(self.targets)} targets with {len(self.actions)} actions are {count:,} scores; at most "
                f"{limits.max_scores:,} are given",
                param="actions" if len(self.actions) > len(self.targets) else "targets",
                code="array_above_max_length",
            )
        self.actions = check_actions(self.actions, limits)
        return self


def score_from_json(body: bytes, limits: Limits) -> tuple[ScoreRequest, list[NamedImage]]:
    """Check a JSON body.

    Args:
        body: As received.
        limits: What one request may ask for.

    Returns:
        The request without its images, and these: the source, then the targets, encoded, with the names of their
        fields.

    Raises:
        ApiError: It names the field that is wrong.
    """
    request = ScoreRequest.from_values(parse_object(body, limits), limits, strict=True)
    references = {"image": request.image}
    references |= {f"targets[{index}]": target for index, target in enumerate(request.targets)}
    images = [(name, data_url_bytes(reference, name)) for name, reference in references.items()]
    # A replica is given pixels: the texts would only travel beside them.
    return request.model_copy(update={"image": "", "targets": []}), images
