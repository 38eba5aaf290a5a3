"""Define how a prediction is searched for: the settings that jobs and servers embed as a table ``search``."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field, model_validator

from wm.config import Recipe
from wm.errors import InputError
from wm.models.vlm import UnifiedVLM


class Search(Recipe):
    """How many candidates are sampled, when that is enough, and which of them are returned."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        "best_of": "num_candidates",
        "margin": "min_gain_nats",
        "at_least": "min_candidates",
        "top": "num_return",
        "beam": "num_beams",
        "block": "num_draft_tokens",
    }

    num_candidates: int = Field(default=8, ge=1)
    """Candidates of each (source, action) at most."""
    min_gain_nats: float | None = Field(default=None, ge=0)
    """Adaptive N: stop when another candidate is expected to gain no more than so many nats an action token (see
    wm.dynamics.stopping); left out: always num_candidates."""
    min_candidates: int = Field(default=1, ge=1)
    """With min_gain_nats, candidates of the first round; each later round doubles their number."""
    num_return: int = Field(default=1, ge=1)
    """How many of the best distinct candidates are returned."""
    num_beams: int = Field(default=1, ge=1)
    """In rollouts, sequences that remain after each step; 1: the best candidate of every step. With min_gain_nats,
    min_candidates fills a wider beam."""
    num_draft_tokens: int = Field(default=0, ge=0)
    """Sample speculatively, so many codes of the source drafted a pass: the same candidates in fewer passes. 0: one
    code a pass."""
    max_unchanged: float = Field(default=1.0, ge=0, le=1)
    """Copy guard: candidates with a larger share of unchanged image tokens rank last; 1: off."""

    @model_validator(mode="after")
    def _check_order(self) -> "Search":
        # Without a threshold there is one round, of all candidates.
        if self.min_candidates > 1 and self.min_gain_nats is None:
            raise ValueError(
                f"min_candidates = {self.min_candidates} is the first round's size; give min_gain_nats too"
            )
        for name in sorted({"min_candidates", "num_return"} & self.model_fields_set):
            if getattr(self, name) > self.num_candidates:
                raise ValueError(f"{name} = {getattr(self, name)} is more than num_candidates = {self.num_candidates}")
        return self


def check_search(search: Search, fdm: UnifiedVLM) -> None:
    """Raise :class:`InputError` if the settings do not fit the model's images; to be called before any work.

    Args:
        search: The settings.
        fdm: The forward model.
    """
    check_draft_length(search.num_draft_tokens, fdm.tokens_per_image)


def check_draft_length(num_draft_tokens: int, tokens_per_image: int) -> None:
    """Raise :class:`InputError` unless ``num_draft_tokens`` is 0 (off) to one less than an image has tokens.

    Args:
        num_draft_tokens: Drafted codes a pass.
        tokens_per_image: Codes of an image.
    """
    if not 0 <= num_draft_tokens < tokens_per_image:
        raise InputError(
            f"num_draft_tokens = {num_draft_tokens}: expected 0 (off) to {tokens_per_image - 1}, an image has "
            f"{tokens_per_image} tokens"
        )
