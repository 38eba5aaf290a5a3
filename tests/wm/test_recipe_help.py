"""What the documentation says of a key: type, default, bounds, old names."""

from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from tests.helpers.recipes import recipe_classes
from wm.config import Recipe
from wm.recipe_fields import list_key_paths
from wm.recipe_help import KeyHelp, list_key_help, list_renames


class Part(Recipe):
    RENAMED_KEYS: ClassVar[dict[str, str]] = {"size": "count"}
    count: int = Field(default=1, ge=1, lt=2**63)
    """How many."""


class Job(Recipe):
    RENAMED_KEYS: ClassVar[dict[str, str]] = {"old": "part.count"}
    name: str = Field(min_length=1)
    """A name."""
    share: float | None = Field(default=None, gt=0, le=0.5)
    """A share."""
    steps: int = Field(default=0, le=10**12)
    """Steps."""
    mode: Literal["auto", True, False] = "auto"
    """A mode."""
    ratios: list[Annotated[float, Field(ge=0)]] = Field(default=[], max_length=3)
    """Ratios."""
    part: Part = Part()
    """A table."""
    parts: list[Part] = []
    """Tables."""


def test_every_key_is_described_with_its_bounds():
    assert list(list_key_help(Job)) == [
        KeyHelp("name", 0, False, "text", "required", "not empty", "A name."),
        KeyHelp("share", 0, False, "number", "optional", "> 0, ≤ 0.5", "A share."),
        KeyHelp("steps", 0, False, "integer", "0", "≤ 10^12", "Steps."),
        KeyHelp("mode", 0, False, "auto | true | false", '"auto"', "", "A mode."),
        KeyHelp("ratios", 0, False, "list of numbers", "[]", "at most 3 long, ≥ 0", "Ratios."),
        KeyHelp("part", 0, True, "", "", "", "A table."),
        KeyHelp("part.count", 1, False, "integer", "1", "≥ 1, < 2^63", "How many."),
        KeyHelp("parts", 0, False, "list of tables", "[]", "", "Tables."),
        KeyHelp("parts[].count", 1, False, "integer", "1", "≥ 1, < 2^63", "How many."),
    ]


def test_old_names_are_listed_with_those_of_tables():
    assert list_renames(Job) == {"old": "part.count", "part.size": "part.count", "parts[].size": "parts[].count"}


@pytest.mark.parametrize("kind", recipe_classes(), ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_no_key_of_a_recipe_is_missing(kind):
    assert {key.path for key in list_key_help(kind)} >= set(list_key_paths(kind))
