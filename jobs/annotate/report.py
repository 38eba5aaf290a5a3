"""Print what ``annotate`` would do and has done. Knows nothing of how it is done."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.annotate.budget import report_of
from jobs.annotate.recipe import AnnotateRecipe
from wm.datasets.statistics import count_table7
from wm.datasets.videos.budget import describe_budget
from wm.datasets.videos.listing import passed_over_of
from wm.datasets.videos.passed_over import describe


def print_plan(recipe: AnnotateRecipe, listing: pa.Table, is_complete: bool) -> dict[str, Any]:
    """Print what a dry run would do, or that nothing is left to do.

    Args:
        recipe: As it was given.
        listing: The videos, a row each.
        is_complete: True if the output is complete already.

    Returns:
        Number of ``videos``, and ``whole``: is_complete.
    """
    # A wrong layout shows in the number of classes.
    classes = pc.count_distinct(listing.column("class_label")).as_py()
    print(
        f"annotate: {'already complete in' if is_complete else 'would write'} {recipe.out}: "
        f"{listing.num_rows:,} videos of {classes:,} classes from {recipe.videos}, IDM {recipe.model_name}"
    )
    print_passed_over(listing)
    if is_complete:
        # From the tables: a run of an earlier version may not have counted it, or has no such tables at all.
        if all((Path(recipe.out) / name).is_dir() for name in ("clips", "pairs")):
            print_table7(count_table7(recipe.out))
    else:
        settings = recipe.model_dump(exclude={"videos", "idm", "out"}, exclude_none=True)
        print(f"  {', '.join(_list_settings(settings))}")
    return {"videos": listing.num_rows, "whole": is_complete}


def print_without_codes(recipe: AnnotateRecipe) -> None:
    """Print what is left out where neither model nor recipe has a codec."""
    print(
        f"annotate: {recipe.model_name} reads pixels and no codec is given: triplets get no image codes, and "
        "filters.unchanged is not applied; wm encode adds codes later"
    )


def _list_settings(settings: Mapping[str, Any], table: str = "") -> list[str]:
    """Write each setting as ``key = value``; keys of tables are dotted, as a command line takes them."""
    texts: list[str] = []
    for key, value in settings.items():
        texts += _list_settings(value, f"{key}.") if isinstance(value, dict) else [f"{table}{key} = {value}"]
    return texts


def print_passed_over(listing: pa.Table) -> None:
    """Print which part of the videos a budget took, and what the listing passed over."""
    budget = report_of(listing)
    if budget is not None:
        print(f"  {describe_budget(budget)}")
    for line in describe(passed_over_of(listing)):
        print(f"  {line}")


def print_result(recipe: AnnotateRecipe, record: Mapping[str, Any]) -> None:
    """Print the counts of a complete run, the columns of the paper's Table 7, and times by stage.

    Args:
        recipe: As it was given.
        record: The run's ``run.json``.
    """
    # 1. What became of the videos, and why not more.
    counts, seconds = record["counts"], max(record["wall_s"], 1e-9)
    print(
        f"annotate: {counts['videos']:,} videos ({counts['video_s']:,.0f} s, {counts['frames']:,} frames) → "
        f"{counts['triplets']:,} triplets of {counts['videos_with_triplets']:,} in {recipe.out}/triplets, "
        f"{counts['filtered']:,} filtered and {counts['failed']:,} failed in {recipe.out}/rejects; "
        f"{record['annotated_now'] / seconds:.1f} videos/s"
    )
    for reason, count in counts["rejects_by_reason"].items():
        print(f"  {reason}: {count}")
    findings = ", ".join(f"{reason} {count}" for reason, count in counts["findings"].items())
    print(f"  filters found among {counts['pairs']:,} pairs, those that only score too: {findings or 'nothing'}")
    readers = ", ".join(f"{reader} {count}" for reader, count in counts["readers"].items())
    print(f"  frames read by: {readers or 'none'}; decord gave up on {counts['decord_fallbacks']}")
    if recipe.keyframes.motion == "farneback":
        print(f"  {describe_devices(counts)}")
    # 2. The columns of the paper's Table 7.
    print_table7(counts["table7"])
    # 3. Where the time went, summed over actors.
    stages = ", ".join(f"{stage} {value:,.1f} s" for stage, value in counts["stage_s"].items() if value)
    print(f"  time of all actors: {stages}")
    # 4. What the network had to carry; nothing is known of what an earlier, killed command annotated.
    traffic = record["traffic"]
    if traffic["block_bytes"]:
        share = traffic["moved_bytes"] / traffic["block_bytes"]
        print(f"  decoders passed on {traffic['block_bytes'] / 1e6:,.1f} MB now, {share:.0%} of it to another node")


def describe_devices(counts: Mapping[str, Any]) -> str:
    """Describe who measured the motion of how many videos, and why a GPU did not."""
    return "motion measured on: " + "; ".join(f"{name} {count:,}" for name, count in counts["measured_on"].items())


def print_table7(table: Mapping[str, float | None]) -> None:
    """Print the columns of the paper's Table 7."""
    print("  mean length   total length   samples   observations/video   actions/video   words/action")
    # A mean over nothing is a dash, never 0.
    means = {name: "–" if value is None else f"{value:.2f}" for name, value in table.items()}
    per_video = f"{means['observations_per_video']:>20} {means['actions_per_video']:>15}"
    print(
        f"  {means['mean_length_s']:>9} s {table['total_length_h'] or 0:>12.4f} h {table['samples'] or 0:>9,.0f} "
        f"{per_video} {means['words_per_action']:>14}"
    )
