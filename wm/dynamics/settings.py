"""Define how a prediction is searched for: the settings that jobs and servers embed as a table ``search``."""

from pydantic import Field, model_validator

from wm.config import Recipe
from wm.errors import InputError
from wm.models.vlm import UnifiedVLM


class Search(Recipe):
    """How many candidates are sampled, when that is enough, and which of them are returned."""

    best_of: int = Field(default=8, ge=1)
    """Candidates of each (source, action) at most."""
    margin: float | None = Field(default=None, ge=0)
    """Adaptive N: stop when another candidate is expected to gain no more than so many nats an action token (see
    wm.dynamics.stopping); left out: always best_of."""
    at_least: int = Field(default=1, ge=1)
    """With a margin, candidates of the first round; each later round doubles their number."""
    top: int = Field(default=1, ge=1)
    """How many of the best distinct candidates are returned."""
    beam: int = Field(default=1, ge=1)
    """In rollouts, sequences that remain after each step; 1: the best candidate of every step. With a margin, at_least
    fills a wider one."""
    block: int = Field(default=0, ge=0)
    """Sample speculatively, so many codes of the source drafted a pass: the same candidates in fewer passes. 0: one
    code a pass."""
    max_unchanged: float = Field(default=1.0, ge=0, le=1)
    """Copy guard: candidates with a larger share of unchanged image tokens rank last; 1: off."""

    @model_validator(mode="after")
    def _check_order(self) -> "Search":
        if self.at_least > 1 and self.margin is None:
            raise ValueError(f"at_least = {self.at_least} is the first round's size; give a margin too")
        for name in sorted({"at_least", "top"} & self.model_fields_set):
            if getattr(self, name) > self.best_of:
                raise ValueError(f"{name} = {getattr(self, name)} is more than best_of = {self.best_of}")
        return self


def check_search(search: Search, fdm: UnifiedVLM) -> None:
    """Raise :class:`InputError` if the settings do not fit the model's images; to be called before any work."""
    check_block(search.block, fdm.tokens_per_image)


def check_block(block: int, tokens_per_image: int) -> None:
    """Raise :class:`InputError` unless ``block`` is 0 (off) to one less than an image has tokens."""
    if not 0 <= block < tokens_per_image:
        raise InputError(
            f"block = {block}: expected 0 (off) to {tokens_per_image - 1}, an image has {tokens_per_image} tokens"
        )
