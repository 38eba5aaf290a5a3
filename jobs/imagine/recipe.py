"""Define what ``imagine`` is asked: models, sources, actions, and which predictions are accepted."""

from collections.abc import Mapping
from typing import ClassVar, Self

from pydantic import Field, model_validator

from jobs.shared.roles import RolesRecipe
from wm.config import Recipe
from wm.dynamics import Search
from wm.paths import OutputPath, TablePath


class TrySearch(Search):
    """How a prediction is searched for; the best one is taken, so that num_return and num_beams have no part here."""

    num_candidates: int = Field(default=4, ge=1)
    """Candidates of each (source, action) at most."""

    @model_validator(mode="after")
    def _check_unused(self) -> Self:
        for name in ("num_return", "num_beams"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} = {getattr(self, name)} has no part here: of each try the best is taken")
        return self


class AcceptanceSettings(Recipe):
    """Which predictions become triplets; the others are rejects."""

    min_score: float = Field(default=-0.5, le=0)
    """Min mean log-likelihood of the action under the inverse model, nats a token."""
    max_unchanged: float = Field(default=0.99, ge=0, le=1)
    """Max share of unchanged image tokens, as a copy teaches copying. 1 accepts copies too; how many triplets are
    copies is in the counts as unchanged_codes."""


class ImagineRecipe(RolesRecipe):
    """Models, source images, actions, and which predictions are accepted."""

    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {
        **RolesRecipe.RENAMED_KEYS,
        "min_score": "filters.min_score",
        "max_unchanged": "filters.max_unchanged",
    }

    sources: TablePath
    """Folder of triplets whose source images are used."""
    actions: TablePath
    """Folder of triplets whose actions are tried, each only in sources of the same subset."""
    subset: str = ""
    """Column that separates subsets, such as class_label; empty: any action in any source."""
    out: OutputPath
    """Folder for out/triplets, out/rejects and out/run.json."""
    limit: int = Field(default=0, ge=0)
    """Use so many sources, spread evenly over the set; 0: all."""
    actions_each: int = Field(default=2, ge=1)
    """Actions tried in each source."""
    search: TrySearch = TrySearch()
    """How a prediction is searched for."""
    filters: AcceptanceSettings = AcceptanceSettings()
    """Which predictions are accepted."""
    dataset: str = "imagined"
    """Name for the dataset column."""
    split: str = "train"
    """Name for the split column."""
    seed: int = Field(default=0, ge=0, lt=2**62)
    """Seed of the pairing and of the sampling."""
