"""Requests for blind comparisons, ``POST /v1/wm/comparisons``: one image, one action, two models; then a choice.

JSON, in the manner of OpenAI's image edits.
"""

from functools import partial
from typing import Self

from pydantic import Field, ValidationInfo, model_validator

from serve_apps.names import IDM
from serve_apps.openai.edits import EditRequest
from serve_apps.openai.errors import ApiError, Limits
from serve_apps.openai.json_bodies import parse_object
from serve_apps.openai.requests import MAX_SEED, UNSUPPORTED, ApiRequest, check_action, check_maximum, limits_of
from serve_apps.openai.source_image import from_json_with_image
from wm.study.playground import Choice


class ComparisonRequest(ApiRequest):
    """A request for two models' predictions of one image after an action, in an order that nobody knows."""

    IMAGES = ("image",)
    UNSUPPORTED = UNSUPPORTED

    action: str
    """The action to take in the image, in words."""
    models: list[str] | None = Field(None, min_length=2, max_length=2, fail_fast=True)
    """Two different forward dynamics models of GET /v1/models; two of them at random if left out."""
    verifier: str = IDM
    """The inverse dynamics model of GET /v1/models that ranks the candidates of both."""
    best_of: int = Field(default_factory=int, ge=1, le=MAX_SEED)
    """How many candidates of each model to sample and verify; the best of each is shown. The server's num_candidates if
    left out."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Of both predictions; a random one, which the answer to the choice has, if left out. Who knows the seed can make
    each prediction again, and is not blind."""
    participant: str | None = Field(None, max_length=64)
    """Code that an earlier comparison gave to this person; somebody new if left out."""

    @model_validator(mode="after")
    def _check_fields(self, info: ValidationInfo) -> Self:
        limits = limits_of(info)
        self.action = check_action(self.action, "action", limits)
        # A model against itself would fill a store with choices about nothing.
        if self.models is not None and self.models[0] == self.models[1]:
            message = f"models = {self.models!r:.80}: two different models are compared"
            raise ApiError(message, param="models", code="invalid_value")
        # The server's number, where the request leaves it open.
        if "best_of" not in self.model_fields_set:
            self.best_of = limits.default_best_of
        check_maximum(self.best_of, limits.max_best_of, "best_of")
        return self

    def to_edit(self, model: str, seed: int, limits: Limits) -> EditRequest:
        """Build the request for one of the predictions.

        Args:
            model: Its name.
            seed: Of both.
            limits: As this request was validated under.
        """
        # All else is the server's: what is compared is models, not settings.
        values = {"prompt": self.action, "model": model, "best_of": self.best_of, "seed": seed}
        # Only as the client named it: a key that may not use the verifier has its images verified all the same.
        verifier = {"verifier": self.verifier} if "verifier" in self.model_fields_set else {}
        return EditRequest.from_values(values | verifier, limits, strict=True)


class ChoiceRequest(ApiRequest):
    """A choice between the two images of a comparison."""

    choice: Choice
    """Which image shows the action better; no_difference where neither does."""


comparison_from_json = partial(from_json_with_image, ComparisonRequest)


def choice_from_json(body: bytes, limits: Limits) -> ChoiceRequest:
    """Check the JSON body of a choice.

    Args:
        body: As received.
        limits: Of the parser.

    Raises:
        ApiError: It names the field that is wrong.
    """
    return ChoiceRequest.from_values(parse_object(body, limits), limits, strict=True)
