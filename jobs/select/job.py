"""Choose the best annotated triplets: stratified top-K over classes (Algorithm 1). Writes ids, never images.

Rows are counted and sorted by tasks that each hold a few files or one part; this process holds counts by class and
score. Several selections (another k, score, classes) go over one annotation, each into its own folder, and read only
the columns they need. What is chosen depends on the rows alone: not on their order, on the files they are in, or on
where the tasks ran.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from tqdm import tqdm

from jobs.select.files import Files
from jobs.select.passes import (
    WORK,
    choose_all,
    clear,
    count_all,
    find_files,
    find_unchanged,
    input_folders,
    leave_out_repeats,
)
from jobs.select.recipe import SelectRecipe
from jobs.select.report import print_counts
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.datasets.card import write_dataset_card
from wm.datasets.changes import Changes
from wm.datasets.selection.algorithm import make_plan
from wm.datasets.selection.rows import COLUMNS, Criteria
from wm.datasets.selection.tally import Tally
from wm.errors import InputError
from wm.runs import Run, digest_of, read_run

BAR_ROWS = 1_000_000


def run(recipe: SelectRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Select, write ``out/selection`` and ``out/run.json``; returns the run's record.

    Args:
        recipe: Triplets, and how many are chosen.
        dry_run: Print what would be chosen, write nothing.
    """
    stage = Run(recipe.out, "select", recipe, {"triplets": digest_of(recipe.triplets)})
    if stage.is_complete():
        record = read_run(recipe.out) or {}
        print_counts(record["counts"], f"already complete in {recipe.out}:")
        return record
    # 1. What is there, and whether it is worth tasks.
    on_ray = {"auto": None, "here": False, "ray": True}[recipe.run_on]
    files, remote = find_files(input_folders(recipe.triplets)[0], COLUMNS, recipe.triplets, on_ray)
    num_rows = sum(rows for _, rows in files)
    classes = frozenset(recipe.classes) if recipe.classes else None
    is_filtered = _is_filtered(recipe)
    # Codes are 4 kB a row: they are read only where the annotation has not filtered on them.
    min_changed_codes = 0 if is_filtered else recipe.min_changed_codes
    criteria = Criteria(recipe.score, recipe.min_score, classes, min_changed_codes)
    # 2. Count, then choose: a dry run needs the counts only.
    with _create_bar(num_rows if dry_run else 2 * num_rows) as bar:
        with stage.timed("count_s"):
            counts, changes = count_all(files, criteria, remote, bar)
        _check_classes(recipe, counts)
        if dry_run:
            plan = make_plan(counts, recipe.k, recipe.rows_per_part)
            quotas = zip(plan.labels, plan.quota_C.tolist(), strict=True)
            summary = _build_summary(counts, {label: (rows, None, None) for label, rows in quotas})
        else:
            stage.start(leave=["*.parquet", "*.arrow"])  # of a killed run nothing is used
            counted = (counts, changes)
            summary = _select(recipe, stage, files, criteria, counted=counted, on_ray=remote, bar=bar)
        summary |= _count_changes(recipe, changes, is_filtered)
    if dry_run:
        doubt = " (equal images not yet left out)" if recipe.deduplicate == "exact" else ""
        print_counts(summary, f"would choose{doubt}")
        return {}
    # 3. The card before the record: only a complete folder has one.
    title = f"the {summary['chosen']:,} best of {summary['triplets']:,} triplets"
    write_dataset_card(recipe.out, title=title, rows={"selection": summary["chosen"]})
    record = stage.finish(summary)
    print_counts(record["counts"], f"→ {recipe.out}/selection:")
    return record


def _select(
    recipe: SelectRecipe,
    stage: Run,
    files: Files,
    criteria: Criteria,
    *,
    counted: tuple[Tally, Changes],
    on_ray: bool,
    bar: "tqdm[None]",
) -> dict[str, Any]:
    """Select after the first count; nothing is left of it when the rows are not fit to be selected from."""
    out = Path(recipe.out).absolute()
    clear(out, WORK, "selection")  # of a run that was killed
    counts, changes = counted
    available = counts
    try:
        # 1. Leave repeats out first: a quota must not be spent on rows that go later.
        if recipe.deduplicate == "exact":
            with stage.timed("deduplicate_s"):
                num_triplets = int(counts.seen_C.sum())
                unchanged = find_unchanged(files, criteria, on_ray) if changes.unchanged else pa.array([], pa.string())
                pairs = input_folders(recipe.triplets)[1]
                files = leave_out_repeats(pairs, criteria, num_triplets, out / WORK, unchanged=unchanged, on_ray=on_ray)
                bar.total += sum(rows for _, rows in files)
                available, _ = count_all(files, criteria, on_ray, bar)
        # 2. Quotas follow from counts alone, so that no pass holds all rows.
        plan = make_plan(available, recipe.k, recipe.rows_per_part)
        bar.total += int(plan.quota_C.sum())
        with stage.timed("select_s"):
            by_class = choose_all(files, plan, criteria, out, on_ray=on_ray, bar=bar)
    except InputError:
        clear(out, "selection")
        stage.abandon()
        raise
    finally:
        clear(out, WORK)
    if available is counts:
        return _build_summary(counts, by_class)
    # Unchanged rows are not among the repeats: they were left out before.
    num_repeats = int(counts.seen_C.sum() - available.seen_C.sum()) - changes.unchanged
    return _build_summary(counts, by_class) | {"repeats": num_repeats}


def _is_filtered(recipe: SelectRecipe) -> bool:
    """Return whether the annotation has left the unchanged pairs out itself, so that no code need be read."""
    record = read_run(input_folders(recipe.triplets)[1].parent) or {}
    settings = record.get("recipe")
    filters = settings.get("filters") if isinstance(settings, dict) else None
    if record.get("stage") != "annotate" or not isinstance(filters, dict) or filters.get("unchanged") != "on":
        return False
    # An older run has no such key; a file that was edited may hold anything.
    bound = filters.get("min_changed_codes")
    return isinstance(bound, int) and bound >= recipe.min_changed_codes


def _count_changes(recipe: SelectRecipe, changes: Changes, is_filtered: bool) -> dict[str, int]:
    """Count rows left out because too few codes change, and rows of which that is not known; nothing where no row was
    looked at."""
    if not recipe.min_changed_codes:
        return {}
    # The annotation has taken them out itself.
    if is_filtered:
        return {"unchanged_codes": 0}
    counts = {"unchanged_codes": changes.unchanged} if changes.without_codes < changes.rows else {}
    return counts | ({"without_codes": changes.without_codes} if changes.without_codes else {})


def _create_bar(num_rows: int) -> "tqdm[None]":
    """Create a progress bar, disabled where a run is too short to look at it."""
    return progress_bar(num_rows, "row", "select") if num_rows >= BAR_ROWS else tqdm(total=num_rows, disable=True)


def _check_classes(recipe: SelectRecipe, counts: Tally) -> None:
    absent = sorted(set(recipe.classes) - set(counts.labels))
    if absent:
        raise InputError(f"classes names {absent[0]!r}, which no triplet in {recipe.triplets} has")


def _build_summary(counts: Tally, by_class: Mapping[str, tuple[int, float | None, float | None]]) -> dict[str, Any]:
    """Build the counts for ``run.json``; ``by_class``: (chosen rows, lowest score, highest score) of each class."""
    # Classes of which nothing was chosen are left out: there may be very many.
    rows_of = dict(zip(counts.labels, counts.seen_C.tolist(), strict=True))
    return {
        "triplets": int(counts.seen_C.sum()),
        "chosen": sum(rows for rows, _, _ in by_class.values()),
        "classes": len(counts.labels),
        "by_class": {
            label: {"triplets": rows_of[label], "chosen": rows, "lowest": lowest, "highest": highest}
            for label, (rows, lowest, highest) in sorted(by_class.items())
            if rows
        },
    }


def main() -> int:
    """Run the command line."""
    return cli_main(SelectRecipe, run, name="select", description=__doc__ or "")
