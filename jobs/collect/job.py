"""Make a prediction set of what another system wrote for a bench: its images, its actions, or both. Every row of the
bench is found, or is a reject with the reason."""

from collections import Counter
from contextlib import closing
from pathlib import Path

from jobs.collect.recipe import CollectRecipe
from jobs.collect.report import print_plan, print_result
from jobs.collect.shards import Shard, write_shard
from jobs.shared.tasks import each
from wm import cli
from wm.datasets.card import write_dataset_card
from wm.errors import InputError
from wm.evaluation.aspects import describe_stretched, find_stretched
from wm.evaluation.bench_rows import BenchRow, add_list_rows, read_bench_rows
from wm.evaluation.output_files import Matches, match_outputs
from wm.evaluation.predicted_actions import ACTION_SCHEMA, ActionRow, read_actions
from wm.evaluation.predictions import PREDICTION_SCHEMA
from wm.files.mirror import fetch, shown
from wm.records import REJECT_SCHEMA, reject_row
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.tables import fill_empty_tables, read_table, write_table

_ACTIONS_FILE = "actions-00000.parquet"


def run(recipe: CollectRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the prediction set.

    Args:
        recipe: The files, the system and the bench.
        dry_run: Print which rows have a file, write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: The bench or the files cannot be read, no file fits, or the folder is another run's.
    """
    # 1. Find the files before anything is written: a wrong pattern costs nothing.
    rows = read_bench_rows(recipe.triplets)
    if recipe.bench_file:
        rows = add_list_rows(rows, recipe.bench_file)
    inputs = {"triplets": digest_of(recipe.triplets)}
    inputs |= {name: digest_of(path) for name in ("folder", "actions") if (path := getattr(recipe, name))}
    stage = Run(recipe.out, "collect", recipe, inputs)
    if stage.is_complete():
        print(f"collect: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    matches = _match(recipe, rows) if recipe.folder else Matches([], [], [])
    actions, extra_lines = read_actions(recipe.actions, rows, recipe.system) if recipe.actions else ([], [])
    if recipe.actions and not actions:
        first = f"; {extra_lines[0]}" if extra_lines else ""
        raise InputError(f"{recipe.actions}: no line is of a row of {recipe.triplets}{first}")
    if dry_run:
        print_plan(recipe, rows, matches, actions, extra_lines)
        return {}
    # 2. Write shard by shard: a killed run resumes at the first one that is missing.
    stage.start()
    with stage.timed("images"):
        _write_images(recipe, rows, matches)
    if recipe.actions:
        _write_actions(recipe, rows, actions)
    # 3. Count what was written.
    fill_empty_tables(recipe.out, {"rejects": REJECT_SCHEMA}, "part-00000.parquet")
    write_dataset_card(recipe.out, title=f"predictions of {recipe.system}", split="test")
    counts = _count(recipe, rows, actions)
    counts |= {"extra_files": len(matches.extra), "extra_lines": len(extra_lines)}
    stretched = find_stretched(recipe.out, rows) if recipe.folder else []
    counts |= {"stretched_images": len(stretched)}
    examples = {"extra_file_names": matches.extra[:20], "extra_line_names": extra_lines[:20]}
    examples |= _name_missing(recipe, rows, matches, actions)
    record = stage.finish(counts, **examples)
    print_result(recipe, record)
    if stretched:
        advice = "; if they show the centre square alone, collect them with view=square"
        print(f"warning: {describe_stretched(stretched, record['counts']['distinct_images'])}{advice}")
    return record


def _name_missing(
    recipe: CollectRecipe, rows: list[BenchRow], matches: Matches, actions: list[ActionRow]
) -> dict[str, list[str]]:
    """Name the first rows without a file, and those without an action."""
    names: dict[str, list[str]] = {"missing_file_names": [], "missing_action_ids": []}
    if recipe.folder:
        pairs = zip(matches.expected, matches.files, strict=True)
        names["missing_file_names"] = [name for name, files in pairs if not files][:20]
    if recipe.actions:
        answered_ids = {action["triplet_id"] for action in actions}
        names["missing_action_ids"] = [row.triplet_id for row in rows if row.triplet_id not in answered_ids][:20]
    return names


def _match(recipe: CollectRecipe, rows: list[BenchRow]) -> Matches:
    matches = match_outputs(recipe.folder, recipe.pattern, rows)
    # Nothing at all is a wrong pattern or folder, not a system that failed everywhere.
    if not any(matches.files):
        files = ", ".join(matches.extra[:3]) or "no file"
        raise InputError(
            f"no file below {recipe.folder} fits pattern = {recipe.pattern!r}: expected {matches.expected[0]} and "
            f"the like, found {files}"
        )
    return matches


def _write_images(recipe: CollectRecipe, rows: list[BenchRow], matches: Matches) -> None:
    # 1. The same shards in every run, those that exist left out.
    shards = []
    for number, begin in enumerate(range(0, len(matches.files), recipe.shard_rows)):
        part = slice(begin, begin + recipe.shard_rows)
        shards.append(Shard(number, rows[part], matches.files[part], matches.expected[part]))
    todo = [shard for shard in shards if not (Path(recipe.out) / "predictions" / shard.name).exists()]
    finished = len(matches.files) - sum(len(shard.rows) for shard in todo)
    workers = recipe.resources.num_workers
    # 2. Here, or in tasks on all nodes.
    inputs = [(shard,) for shard in todo]
    recipe_json = recipe.with_absolute_paths().model_dump_json()
    with (
        closing(each(write_shard, inputs, recipe_json, on_ray=workers > 0, max_running=workers or None)) as results,
        cli.progress_bar(len(matches.files), "row", "collect", finished) as bar,
    ):
        for num_rows in results:
            bar.update(num_rows)
    # Tasks of other nodes have theirs in the bucket.
    if shards:
        fetch(recipe.out)


def _write_actions(recipe: CollectRecipe, rows: list[BenchRow], actions: list[ActionRow]) -> None:
    """Write the actions, and a reject for each row without one in any run."""
    answered_ids = {action["triplet_id"] for action in actions}
    rejects = [
        reject_row(
            uri=f"{row.triplet_id}#action", stage="collect", outcome="failed", reason="missing_action",
            detail=f"{shown(recipe.actions)} has no line for triplet {row.triplet_id}",
            dataset=row.dataset, split=row.split, class_label=row.class_label,
        )
        for row in rows
        if row.triplet_id not in answered_ids
    ]  # fmt: skip
    if rejects:
        write_table(rejects, Path(recipe.out) / "rejects" / _ACTIONS_FILE, REJECT_SCHEMA)
    write_table(actions, Path(recipe.out) / "actions" / _ACTIONS_FILE, ACTION_SCHEMA)


def _count(recipe: CollectRecipe, rows: list[BenchRow], actions: list[ActionRow]) -> dict[str, object]:
    """Count rows and images; every row is found or missing, or something was lost in silence."""
    out = Path(recipe.out)
    reasons = Counter(read_table(out / "rejects", REJECT_SCHEMA, ["reason"]).column("reason").to_pylist())
    counts: dict[str, object] = {"rows": len(rows), "rejects_by_reason": dict(sorted(reasons.items()))}
    if recipe.folder:
        columns = ["triplet_id", "run", "candidates"]
        predictions = read_table(out / "predictions", PREDICTION_SCHEMA, columns).to_pylist()
        image_ids = {row["triplet_id"] for row in predictions}
        by_class = Counter(row.class_label for row in rows if row.triplet_id not in image_ids)
        counts |= {
            "rows_with_images": len(image_ids),
            "rows_without_images": len(rows) - len(image_ids),
            "rows_without_images_by_class": dict(sorted(by_class.items())),
            "images": sum(len(row["candidates"]) for row in predictions),
            "distinct_images": len(predictions),
            "runs": len({row["run"] for row in predictions}),
        }
    if recipe.actions:
        answered_ids = {action["triplet_id"] for action in actions}
        unanswered = Counter(row.class_label for row in rows if row.triplet_id not in answered_ids)
        counts |= {
            "rows_with_actions": len(answered_ids),
            "rows_without_actions": len(rows) - len(answered_ids),
            "rows_without_actions_by_class": dict(sorted(unanswered.items())),
        }
    return counts


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(CollectRecipe, run, name="collect", description=__doc__ or "")
