"""Requests for rollouts, ``POST /v1/wm/rollouts``: a source image and several actions, one after the other.

JSON, in the manner of OpenAI's image edits.
"""

from functools import partial
from typing import TYPE_CHECKING, Self

from pydantic import Field, ValidationInfo, model_validator

from serve_apps.openai.errors import ApiError
from serve_apps.openai.requests import MAX_SEED, PredictionRequest, check_actions, check_maximum, limits_of
from serve_apps.openai.source_image import from_json_with_image

if TYPE_CHECKING:
    from serve_apps.recipe import ServeRecipe
    from wm.dynamics import Search


class RolloutRequest(PredictionRequest):
    """A request for the source image after each of several actions."""

    actions: list[str] = Field(min_length=1, fail_fast=True)
    """The actions to take, in words, in their order. best_of are sampled at each step, for each sequence of the
    beam."""
    num_beams: int = Field(1, ge=1, le=MAX_SEED)
    """How many sequences remain after each step; 1 continues from the best candidate."""
    max_unchanged: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    """Copy guard: candidates with a larger share of unchanged image tokens rank last; 1: off."""
    stream: bool = False
    """Whether to answer with server-sent events: each step as it is finished, then the complete answer."""

    @model_validator(mode="after")
    def _check_fields(self, info: ValidationInfo) -> Self:
        limits = limits_of(info)
        # Their number first: each is checked character by character.
        if len(self.actions) > limits.max_actions:
            message = f"{len(self.actions)} actions are given; at most {limits.max_actions} are accepted"
            raise ApiError(message, param="actions", code="array_above_max_length")
        self.actions = check_actions(self.actions, limits)
        if "best_of" not in self.model_fields_set:
            self.best_of = limits.default_best_of
        check_maximum(self.best_of, limits.max_best_of, "best_of")
        check_maximum(self.num_beams, limits.max_beams, "num_beams")
        return self

    def to_search(self, recipe: "ServeRecipe") -> "Search":
        """Build the settings of the search: the request's, the recipe's where it gives none."""
        from wm.dynamics import Search

        gain = self.gain_or(recipe)
        return Search(
            num_candidates=self.best_of,
            num_beams=self.num_beams,
            max_unchanged=self.max_unchanged,
            min_gain_nats=gain,
            # With adaptive N the first round can fill the beam.
            min_candidates=1 if gain is None else min(self.num_beams, self.best_of),
        )


rollout_from_json = partial(from_json_with_image, RolloutRequest)
