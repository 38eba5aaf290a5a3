"""Export triplets to AURORA JSON, WebDataset or LeRobot; images as stored, licence and source kept."""

import sys
from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Literal, NoReturn

from pydantic import Field
from tqdm import tqdm

from jobs.shared.ray_session import num_logical_cpus
from jobs.shared.tasks import each
from wm.cards import MANY_LICENSES, license_sentence
from wm.cli import main as cli_main
from wm.cli import progress_bar
from wm.config import Recipe
from wm.datasets.export import (
    FORMATS,
    Context,
    Part,
    Plan,
    RowFilter,
    count_licenses,
    finish_export,
    first_image_size,
    marks_folder,
    plan_export,
    read_marks,
    read_selection,
    remove_marks,
    write_part,
)
from wm.errors import InputError
from wm.files.mirror import fetch, on_this_node
from wm.paths import InputPath, OptionalInputPath, OutputPath
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.tables import triplets_folder

SMALL_BYTES = 2**30
"""An export of fewer bytes is written by this process: Ray takes seconds to start."""

MANY_FILES = 1000
"""From so many files on the plan takes seconds, and shows a bar."""


class ExportResources(Recipe):
    """Processes that write; they do not change the result."""

    num_workers: int = Field(default=0, ge=0)
    """Processes that write; 1: this one; 0: this one below 1 GiB of images, else one for each logical CPU."""


class ExportRecipe(Recipe):
    """Which triplets, into which layout."""

    RESUMABLE_KEYS: ClassVar[frozenset[str]] = frozenset({"resources"})
    RENAMED_KEYS: ClassVar[Mapping[str, str]] = {"num_workers": "resources.num_workers"}

    triplets: InputPath
    """Folder of triplets, or the output folder of the stage that wrote them (wm annotate, wm ingest, …)."""
    out: OutputPath
    """Folder for the export, new or empty; out/run.json says what was exported."""
    format: Literal["aurora", "webdataset", "lerobot"]
    """aurora: out/SPLIT.json and out/images. webdataset: out/shard-NNNNNN.tar. lerobot: a LeRobot v3.0 data set in
    which each triplet is an episode of two frames (one image size and one split only)."""
    selection: OptionalInputPath = None
    """Folder of a selection (wm select writes it): only its ids are exported, and all of them must be there."""
    split: str | None = None
    """Only rows of this split."""
    side_px: int = Field(default=0, ge=0)
    """Images become PNG squares of this side (short side scaled, centre cut); 0 = the stored bytes, untouched."""
    shard_mb: int = Field(default=256, ge=1)
    """Megabytes of images in a part (a tar file, a Parquet file, an image folder), about."""
    shard_rows: int = Field(default=10_000, ge=1)
    """Rows in a part at most. A killed run resumes at the first unfinished part."""
    resources: ExportResources = ExportResources()
    """Who writes."""


def run(recipe: ExportRecipe, *, dry_run: bool = False) -> RunRecord:
    """Export into ``recipe.out``, or what is missing of an export that was interrupted.

    Args:
        recipe: Which triplets, into which layout.
        dry_run: Print what would be exported, write nothing.

    Returns:
        The run's record; on a dry run the counts.

    Raises:
        InputError: The triplets cannot be exported so, or the folder is another run's.
        OSError: The disk is full or may not be written.
    """
    inputs = {"triplets": digest_of(triplets_folder(recipe.triplets))}
    if recipe.selection:
        inputs["selection"] = digest_of(recipe.selection)
    stage = Run(recipe.out, "export", recipe, inputs)
    if stage.is_complete():
        remove_marks(recipe.out)
        record = read_run(recipe.out) or {}
        print(f"export: already complete in {recipe.out}: {record['counts']['exported']:,} triplets as {recipe.format}")
        return record
    _check_apart(recipe)
    # The plan depends on the input alone, so that a resumed run cuts the same parts.
    with stage.timed("plan_s"):
        rows = RowFilter(recipe.split, read_selection(recipe.selection) if recipe.selection else None)
        plan = _build_plan(recipe, rows)
        context = _build_context(recipe, rows, plan)
    counts = _build_counts(plan)
    if dry_run:
        print(f"export: would write {_describe(counts, plan)} as {recipe.format} into {recipe.out}")
        return {**counts}
    stage.start()
    try:
        with stage.timed("write_s"):
            num_written = _write(recipe, context, plan)
    except InputError as error:
        if any(path.is_file() for path in Path(recipe.out).rglob("[!.]*") if path.name != "run.unfinished.json"):
            raise InputError(f"{error}; what is written is kept, the same command resumes") from error
        stage.abandon()  # nothing is kept: with other settings the folder can be used
        raise
    with stage.timed("finish_s"):
        facts = finish_export(recipe.format, context, plan)
    # Licences stay with the data: they are reported even where rows name none.
    licenses = count_licenses(facts)
    shown = {"licenses": dict(licenses.most_common(MANY_LICENSES)), "different_licenses": len(licenses)}
    record = stage.finish(counts | shown, parts_written_now=num_written)
    remove_marks(recipe.out)
    print(f"export: {_describe(counts, plan)} as {recipe.format} → {recipe.out}")
    print(f"  {license_sentence(licenses)}")
    return record


def _check_apart(recipe: ExportRecipe) -> None:
    """Check that the export is not inside its own input, where it would be read as triplets."""
    out, source = Path(recipe.out).resolve(), Path(recipe.triplets).resolve()
    if out == source or source in out.parents:
        raise InputError(f"out = {recipe.out!r} is in triplets = {recipe.triplets!r}; choose a folder outside it")


def _build_plan(recipe: ExportRecipe, rows: RowFilter) -> Plan:
    bar: tqdm[NoReturn] | None = None

    def on_file(num_read: int, total: int) -> None:
        nonlocal bar
        if bar is None and total >= MANY_FILES:
            bar = progress_bar(total, "file", "export: plan")
        if bar is not None:
            bar.update(num_read - bar.n)

    try:
        # Only footers and small columns: the plan is made before a dry run ends.
        return plan_export(
            recipe.triplets,
            rows,
            max_bytes=recipe.shard_mb * 2**20,
            max_rows=recipe.shard_rows,
            with_tasks=FORMATS[recipe.format].numbers_tasks,
            on_file=on_file,
        )
    finally:
        if bar is not None:
            bar.close()


def _build_context(recipe: ExportRecipe, rows: RowFilter, plan: Plan) -> Context:
    context = Context(str(Path(recipe.out).absolute()), rows, recipe.side_px, tasks=plan.tasks)
    if not FORMATS[recipe.format].numbers_tasks:
        return context
    if len(plan.splits) > 1:
        raise InputError(
            f"{recipe.format} keeps one split a data set; these rows are of {', '.join(plan.splits)}: give split"
        )
    return replace(context, image_size=first_image_size(plan, context))


def _build_counts(plan: Plan) -> dict[str, int]:
    counts = {
        "rows": plan.rows,
        "exported": plan.exported,
        "not_selected": plan.not_selected,
        "other_split": plan.other_split,
        "files": plan.files,
        "parts": len(plan.parts),
    }
    if counts["rows"] != counts["exported"] + counts["not_selected"] + counts["other_split"]:
        raise AssertionError(f"counts do not add up: {counts}")
    return counts


def _describe(counts: Mapping[str, int], plan: Plan) -> str:
    left_out = [
        f"{counts[key]:,} {words}"
        for key, words in (("not_selected", "not selected"), ("other_split", "of another split"))
        if counts[key]
    ]
    omitted = f" ({', '.join(left_out)})" if left_out else ""
    return (
        f"{counts['exported']:,} of {counts['rows']:,} triplets{omitted} in "
        f"{counts['parts']:,} parts, about {plan.num_bytes / 2**20:,.1f} MB of images"
    )


def _write(recipe: ExportRecipe, context: Context, plan: Plan) -> int:
    """Write the parts that are not complete yet; returns how many."""
    marks = read_marks(recipe.out)
    pending = [part for part in plan.parts if part.number not in marks]
    num_done = plan.exported - sum(part.rows for part in pending)
    if num_done:
        print(f"export: resumes, {len(plan.parts) - len(pending):,} of {len(plan.parts):,} parts are finished")
    # Ray takes seconds to start: not worth it for a small export.
    automatic = num_logical_cpus() if plan.num_bytes >= SMALL_BYTES else 1
    workers = min(recipe.resources.num_workers or automatic, len(pending))
    with progress_bar(plan.exported, "row", "export", num_done) as bar:
        if workers > 1:
            tasks = each(
                _write_rows, [(part,) for part in pending], recipe.format, context, on_ray=True, max_running=workers
            )
            with closing(tasks) as results:
                for rows in results:
                    bar.update(rows)
            # What the end needs of parts that other nodes have written.
            fetch(marks_folder(recipe.out))
        else:
            for part in pending:
                write_part(recipe.format, context, part, bar.update)
    return len(pending)


def _write_rows(part: Part, name: str, context: Context) -> int:
    """Write a part in a worker; returns how many rows it has."""
    # Files of a bucket have other paths on another node, and may not be there yet.
    slices = tuple(replace(rows, file=str(fetch(rows.file, hold=False))) for rows in part.slices)
    context = replace(context, out=str(on_this_node(context.out)))
    return write_part(name, context, replace(part, slices=slices))["rows"]


def main() -> int:
    """Run the command line; return the exit status."""
    return cli_main(ExportRecipe, run, name="export", description=__doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
