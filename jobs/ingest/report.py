"""Print what ``ingest`` would do and has done. Knows nothing of how it is done."""

from collections.abc import Mapping
from typing import Any

from jobs.ingest.recipe import IngestRecipe
from wm.datasets.videos.passed_over import describe


def print_plan(recipe: IngestRecipe, num_rows: int, passed_over: Mapping[str, Any], is_finished: bool) -> None:
    """Print what a dry run would do, or that nothing is left to do.

    Args:
        recipe: As it was given.
        num_rows: Rows that it takes.
        passed_over: Record of videos without a row and rows without a video.
        is_finished: The output is complete already.
    """
    print_passed_over(passed_over)
    codec = f"codes by {recipe.codec}" if recipe.codec else "no codes (no codec given)"
    state = "already complete in" if is_finished else "would write"
    print(f"ingest: {state} {recipe.out}: {num_rows:,} rows of {recipe.file}, {codec}")


def print_passed_over(passed_over: Mapping[str, Any]) -> None:
    """Print what the listing of videos passed over."""
    for line in describe(passed_over):
        print(f"  {line}")


def print_result(recipe: IngestRecipe, counts: Mapping[str, Any]) -> None:
    """Print the counts of a complete run.

    Args:
        recipe: As it was given.
        counts: Of its ``run.json``.
    """
    print(
        f"ingest: {counts['rows']:,} rows → {counts['triplets']:,} triplets in {recipe.out}/triplets, "
        f"{counts['rejects']:,} rejects in {recipe.out}/rejects"
    )
    for reason, count in counts["rejects_by_reason"].items():
        print(f"  {reason}: {count}")
    # They teach copying, but what people labelled is theirs to judge.
    if counts.get("unchanged_codes"):
        print(f"  {counts['unchanged_codes']:,} triplets, not left out, have the same image codes in source and target")
