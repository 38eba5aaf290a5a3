"""Print what ``collect`` would do and has done. Knows nothing of how it is done."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.collect.recipe import CollectRecipe
from wm.evaluation.bench_rows import BenchRow
from wm.evaluation.output_files import Matches
from wm.evaluation.predicted_actions import ActionRow
from wm.runs import RunRecord

_NUM_EXAMPLES = 5
"""Files and rows that are named, of those that are counted."""


def print_plan(
    recipe: CollectRecipe,
    rows: Sequence[BenchRow],
    matches: Matches,
    actions: Sequence[ActionRow],
    extra_lines: Sequence[str],
) -> None:
    """Print which rows have files.

    Args:
        recipe: As it was given.
        rows: The bench.
        matches: Their files.
        actions: The actions that were read.
        extra_lines: Lines of no row.
    """
    print(f"collect: would write {recipe.out} for system {recipe.system}, {len(rows):,} rows of {recipe.triplets}")
    if recipe.folder:
        files = [file for of_row in matches.files for file in of_row]
        runs = len({file.run for file in files})
        per_row = sorted(Counter(len(of_row) for of_row in matches.files if of_row).items())
        sizes = ", ".join(f"{count:,} rows with {size}" for size, count in per_row)
        print(f"  images: {len(files):,} files in {runs} runs fit {recipe.pattern}: {sizes}")
        missing = [name for name, of_row in zip(matches.expected, matches.files, strict=True) if not of_row]
        _print_names("rows without a file", missing)
        _print_names("files of no row", matches.extra)
    if recipe.actions:
        answered_ids = {action["triplet_id"] for action in actions}
        print(f"  actions: {len(actions):,} for {len(answered_ids):,} rows")
        _print_names("rows without an action", [row.triplet_id for row in rows if row.triplet_id not in answered_ids])
        _print_names("lines of no row", extra_lines)


def print_result(recipe: CollectRecipe, record: RunRecord) -> None:
    """Print the counts of a complete run.

    Args:
        recipe: As it was given.
        record: Its ``run.json``.
    """
    counts = record["counts"]
    print(f"collect: {recipe.system}, {counts['rows']:,} rows of {recipe.triplets} → {recipe.out}")
    if recipe.folder:
        print(
            f"  {counts['rows_with_images']:,} rows with images ({counts['images']:,}, of them "
            f"{counts['distinct_images']:,} distinct), {counts['rows_without_images']:,} without"
        )
        _print_missing("images", counts)
        num_missing = counts["rejects_by_reason"].get("missing_file", 0)
        _print_names("rows without a file", record["missing_file_names"], num_missing)
        _print_names("files of no row", record["extra_file_names"], counts["extra_files"])
    if recipe.actions:
        print(f"  {counts['rows_with_actions']:,} rows with actions, {counts['rows_without_actions']:,} without")
        _print_missing("actions", counts)
        _print_names("rows without an action", record["missing_action_ids"], counts["rows_without_actions"])
        _print_names("lines of no row", record["extra_line_names"], counts["extra_lines"])
    for reason, count in counts["rejects_by_reason"].items():
        print(f"  rejects, {reason}: {count:,}")


def _print_missing(kind: str, counts: Mapping[str, Any]) -> None:
    """Count the rows of each class that lack something; where most rows do, something else is wrong."""
    for name, count in counts[f"rows_without_{kind}_by_class"].items():
        print(f"    without, {name!r}: {count:,}")
    num_missing = counts[f"rows_without_{kind}"]
    if 2 * num_missing > counts["rows"]:
        print(f"  warning: {num_missing:,} of {counts['rows']:,} rows have no {kind}; is it the file of this bench?")


def _print_names(title: str, names: Sequence[str], total: int | None = None) -> None:
    total = len(names) if total is None else total
    if total:
        # Of thousands a few are enough to see what is wrong.
        examples = ", ".join(names[:_NUM_EXAMPLES])
        print(f"  {title}: {total:,} ({examples}{', …' if total > _NUM_EXAMPLES else ''})")
