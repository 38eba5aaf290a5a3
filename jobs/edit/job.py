"""Have an image editor of diffusers, such as InstructPix2Pix or Qwen-Image-Edit, predict the targets of a bench from
its sources and actions. Every image is a row of one prediction set, or a reject with the reason.

Needs the packages of pip install 'wm[baselines]'.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from jobs.edit.recipe import EditRecipe
from jobs.edit.shards import Shard, cut_shards, write_shard
from jobs.shared.devices import check_device
from wm import cli
from wm.datasets.card import write_dataset_card
from wm.dynamics.editor import ImageEditor
from wm.dynamics.editor_forward import check_editor_folder
from wm.evaluation.aspects import describe_stretched, find_stretched
from wm.evaluation.bench_rows import BenchRow, read_bench_rows
from wm.evaluation.predictions import PREDICTION_SCHEMA
from wm.evaluation.subsets import spread_rows
from wm.models.pipelines import load_pipeline
from wm.records import REJECT_SCHEMA
from wm.runs import Run, RunRecord, digest_of, read_run
from wm.tables import fill_empty_tables, read_table


def run(recipe: EditRecipe, *, dry_run: bool = False) -> RunRecord:
    """Write the prediction set.

    Args:
        recipe: The editor and the bench.
        dry_run: Check folder and bench, print what would be done, load and write nothing.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: diffusers is not installed; the model or the bench cannot be read; a setting is none of the
            pipeline's; or the folder is another run's.
    """
    # 1. Check all that needs no weights: they take minutes to load.
    rows = read_bench_rows(recipe.triplets)
    rows = [rows[index] for index in spread_rows(len(rows), recipe.limit or None)]
    inputs = {"triplets": digest_of(recipe.triplets), "model": digest_of(recipe.model)}
    stage = Run(recipe.out, "edit", recipe, inputs)
    if stage.is_complete():
        print(f"edit: already complete in {recipe.out}")
        return read_run(recipe.out) or {}
    check_device(recipe.resources.device)
    if dry_run:
        check_editor_folder(
            recipe.model, recipe.pipeline, safety_checker=recipe.safety_checker, settings=recipe.settings,
            scheduler=recipe.scheduler,
        )  # fmt: skip
        _print_plan(recipe, rows)
        return {}
    editor = load_editor(recipe)
    # 2. Edit shard by shard: a killed run resumes at the first one that is missing.
    stage.start()
    with stage.timed("images"):
        _write_images(recipe, cut_shards(rows, recipe.shard_rows), editor)
    # 3. Count what was written.
    fill_empty_tables(recipe.out, {"rejects": REJECT_SCHEMA}, "part-00000.parquet")
    write_dataset_card(recipe.out, title=f"predictions of {recipe.system_name()}", split="test")
    stretched = find_stretched(recipe.out, rows)
    counts = _count(recipe, rows) | {"stretched_images": len(stretched)}
    record = stage.finish(counts, settings=editor.list_settings())
    _print_result(recipe, record)
    if stretched:
        print(f"warning: {describe_stretched(stretched, record['counts']['distinct_images'])}")
    return record


def load_editor(recipe: EditRecipe) -> ImageEditor:
    """Load the editor of a recipe.

    Args:
        recipe: Its folder, class, settings and device.

    Returns:
        The editor.

    Raises:
        InputError: The folder holds no such editor, or a setting is none of it.
    """
    resources = recipe.resources
    pipeline = load_pipeline(
        recipe.model,
        recipe.pipeline,
        dtype=resources.dtype,
        device=resources.device,
        scheduler=recipe.scheduler,
        safety_checker=recipe.safety_checker,
    )
    return ImageEditor(pipeline, recipe.settings, recipe.resolution, resources.batch_size, recipe.fit)


def _write_images(recipe: EditRecipe, shards: Sequence[Shard], editor: ImageEditor) -> None:
    todo = [shard for shard in shards if not (Path(recipe.out) / "predictions" / shard.name).exists()]
    # Progress counts images: triplets may have many.
    each = len(recipe.seeds) * recipe.num_candidates
    total = each * sum(len(shard.rows) for shard in shards)
    finished = total - each * sum(len(shard.rows) for shard in todo)
    with cli.progress_bar(total, "image", "edit", finished) as bar:
        for shard in todo:
            write_shard(shard, recipe, editor, bar.update)


def _print_plan(recipe: EditRecipe, rows: Sequence[BenchRow]) -> None:
    images = len(rows) * len(recipe.seeds) * recipe.num_candidates
    print(
        f"edit: would predict {images:,} images of {len(rows):,} triplets of {recipe.triplets} with {recipe.pipeline} "
        f"into {recipe.out}, as system {recipe.system_name()}"
    )
    # Known before any image is made.
    without = sum(not row.action.strip() for row in rows)
    if without:
        print(f"  {without:,} triplets have no action, and would be rejects")


def _count(recipe: EditRecipe, rows: Sequence[BenchRow]) -> dict[str, object]:
    """Count images and rejects; every image that was asked for is one of both."""
    out = Path(recipe.out)
    reasons = Counter(read_table(out / "rejects", REJECT_SCHEMA, ["reason"]).column("reason").to_pylist())
    predictions = read_table(out / "predictions", PREDICTION_SCHEMA, ["triplet_id", "candidates"]).to_pylist()
    image_ids = {row["triplet_id"] for row in predictions}
    by_class = Counter(row.class_label for row in rows if row.triplet_id not in image_ids)
    return {
        "rows": len(rows),
        "rows_with_images": len(image_ids),
        "rows_without_images": len(rows) - len(image_ids),
        "rows_without_images_by_class": dict(sorted(by_class.items())),
        "images": sum(len(row["candidates"]) for row in predictions),
        "distinct_images": len(predictions),
        "rejects_by_reason": dict(sorted(reasons.items())),
    }


def _print_result(recipe: EditRecipe, record: RunRecord) -> None:
    counts = record["counts"]
    print(
        f"edit: {recipe.system_name()}, {counts['images']:,} images of {counts['rows_with_images']:,} triplets, "
        f"{counts['rows_without_images']:,} without → {recipe.out}"
    )
    for name, count in counts["rows_without_images_by_class"].items():
        print(f"  without, {name}: {count:,}")
    for reason, count in counts["rejects_by_reason"].items():
        print(f"  rejects, {reason}: {count:,}")


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(EditRecipe, run, name="edit", description=__doc__ or "")
