"""Print what ``imagine`` would do and has done. Knows nothing of how it is done."""

from collections.abc import Mapping
from typing import Required, TypedDict

from jobs.imagine.recipe import ImagineRecipe
from wm.files.mirror import shown


class CodeCounts(TypedDict, total=False):
    """``unchanged_codes``: triplets that are copies; ``without_codes``: those that have no codes, instead."""

    unchanged_codes: int
    without_codes: int


class Counts(CodeCounts):
    """What ``run.json`` counts; tries are triplets and rejects."""

    tries: Required[int]
    triplets: Required[int]
    rejects: Required[int]
    by_reason: Required[Mapping[str, int]]


def print_plan(recipe: ImagineRecipe, num_tries: int, num_sources: int) -> None:
    """Print what would be tried.

    Args:
        recipe: Names the output.
        num_tries: Pairs of a source and an action.
        num_sources: Images.
    """
    print(f"imagine: would try {num_tries:,} actions in {num_sources:,} sources into {shown(recipe.out)}")


def print_complete(recipe: ImagineRecipe) -> None:
    """Print that nothing is left to do."""
    print(f"imagine: already complete in {shown(recipe.out)}")


def print_result(recipe: ImagineRecipe, counts: Counts) -> None:
    """Print how many tries became triplets, and why the others did not.

    Args:
        recipe: Names the output.
        counts: As in ``run.json``.
    """
    reasons = ", ".join(f"{name} {number}" for name, number in counts["by_reason"].items()) or "-"
    print(
        f"imagine: {counts['tries']:,} tries → {counts['triplets']:,} triplets in {shown(recipe.out)}/triplets, "
        f"{counts['rejects']:,} rejects ({reasons})"
    )
    if counts.get("unchanged_codes"):
        copies = f"{counts['unchanged_codes']:,} triplets have the image codes of their source"
        print(f"  {copies} (filters.max_unchanged = 1)")
