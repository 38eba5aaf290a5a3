"""Score prediction sets of any systems side by side: of images L1 over the full target, CLIP-I, CLIP-T and DINO, of
actions ROUGE, BLEU and BERTScore; by subset, with the mean over subsets, the mean over items, and how many they are."""

import csv
import io
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from jobs.score.actions import load_scorer, score_actions
from jobs.score.batches import build_references, cut_batches
from jobs.score.recipe import ScoreRecipe
from jobs.score.report import print_plan, print_scores
from jobs.score.tasks import load_models, score_and_store, values_file
from jobs.shared.devices import check_device
from jobs.shared.tasks import each
from wm import cli
from wm.errors import InputError
from wm.evaluation.aurora_bench import footnote, order_subsets
from wm.evaluation.bench_rows import BenchRow, check_bench_ids, read_bench_rows
from wm.evaluation.image_scoring import VALUE_SCHEMA, ScoreBatch
from wm.evaluation.predicted_actions import ActionRow, actions_folder, list_actions
from wm.evaluation.predictions import (
    PredictionFacts,
    check_complete,
    check_systems,
    list_predictions,
    predictions_folder,
)
from wm.evaluation.report.summary import suggest_comparison
from wm.evaluation.rows import CEILING, COPY
from wm.evaluation.score_tables import ScoreRow, build_score_rows
from wm.files.mirror import fetch
from wm.runs import Run, RunRecord, digest_of, read_run, write_json, write_text
from wm.tables import read_table

_EXAMPLES = {
    "clip": "openai/clip-vit-base-patch32",
    "dino": "facebook/dino-vits16",
    "blip": "Salesforce/blip-image-captioning-large",
}
_TABLE_ROWS = 1024
_NEEDS = {
    "clip_i": ["clip"],
    "clip_t_target": ["clip", "blip"],
    "clip_t_prediction": ["clip", "blip"],
    "dino": ["dino"],
}


def run(recipe: ScoreRecipe, *, dry_run: bool = False) -> RunRecord:
    """Score every image, and write ``scores.json``, ``scores.csv`` and ``values/`` below ``out``.

    Args:
        recipe: The sets, the bench and the models.
        dry_run: Check everything and print what would be scored.

    Returns:
        The run's record; empty on a dry run.

    Raises:
        InputError: A set is incomplete, of another bench, or shares a system with another; a model cannot be read.
    """
    # 1. Check everything before a folder is made.
    rows = read_bench_rows(recipe.triplets)
    facts, actions = _list_images(recipe, rows), _list_actions(recipe, rows)
    if not facts and not actions:
        raise InputError("nothing to score: give predictions, with_copy = true or codec")
    batches = cut_batches(facts, rows, recipe.images_per_task)
    job = Run(recipe.out, "score", recipe, _digest_inputs(recipe))
    if job.is_complete():
        print(f"{recipe.out} is complete: nothing to do")
        return read_run(recipe.out) or {}
    check_device(recipe.resources.device)
    absent = _list_absent(recipe)
    recipe_json = recipe.with_absolute_paths().model_dump_json()
    # In this process too: a wrong folder shows before any work.
    load_models(recipe_json)
    load_scorer(recipe)
    if dry_run:
        print_plan(recipe, facts, actions, len(rows), absent)
        return {}
    # 2. Score batch by batch: a killed run resumes at those that are missing.
    job.start()
    counts = _count(rows, facts, actions)
    with job.timed("images"):
        _score(recipe, recipe_json, batches, counts["images"])
    # All that is known of 100,000 images takes hundreds of MB: it makes room for their values.
    del facts, batches
    # 3. Make the tables of the files alone.
    with job.timed("tables"):
        subsets = order_subsets(row.subset(recipe.subset) for row in rows)
        table = _build_table(recipe, rows, counts["images"])
        texts = score_actions(recipe, actions, rows) if actions else None
        note = footnote(len(rows), (row.class_label for row in rows))
        scores = {
            "items": len(rows), "subset": recipe.subset, "subsets": subsets, "rows": table, "absent": absent,
            "actions": texts, "note": note,
        }  # fmt: skip
        write_json(job.out / "scores.json", scores)
        write_text(job.out / "scores.csv", _to_csv([*table, *(texts["rows"] if texts else [])]))
    record = job.finish(counts)
    print_scores(table, texts, subsets, absent, note)
    _print_hint(recipe, table)
    print(
        f"scored {counts['images']:,} images and {len(actions):,} actions of {len(rows):,} triplets: "
        f"{job.out / 'scores.json'}"
    )
    return record


def _print_hint(recipe: ScoreRecipe, table: Sequence[ScoreRow]) -> None:
    systems = [name for name in dict.fromkeys(row["system"] for row in table) if name not in (COPY, CEILING)]
    if hint := suggest_comparison(recipe.out, systems):
        print(hint)


def _digest_inputs(recipe: ScoreRecipe) -> dict[str, str]:
    models = {name: getattr(recipe, name) for name in (*_EXAMPLES, "codec")} | {"bertscore": recipe.bertscore.model}
    inputs = {"triplets": digest_of(recipe.triplets)}
    inputs |= {f"predictions {number}": digest_of(path) for number, path in enumerate(recipe.predictions)}
    return inputs | {name: digest_of(path) for name, path in models.items() if path}


def _count(rows: Sequence[BenchRow], facts: Sequence[PredictionFacts], actions: Sequence[ActionRow]) -> dict[str, int]:
    systems = {row["system"] for row in facts} | {row["system"] for row in actions}
    return {"triplets": len(rows), "images": len(facts), "actions": len(actions), "systems": len(systems)}


def _list_images(recipe: ScoreRecipe, rows: list[BenchRow]) -> list[PredictionFacts]:
    references = build_references(rows, with_copy=recipe.with_copy, with_ceiling=bool(recipe.codec))
    sets = [(recipe.triplets, references)]
    for folder in recipe.predictions:
        check_complete(folder)
        # A set may hold actions alone.
        has_images = predictions_folder(folder).is_dir() or not actions_folder(folder).is_dir()
        facts = list_predictions(folder) if has_images else []
        check_bench_ids(rows, [row["triplet_id"] for row in facts], f"prediction set {folder}")
        # These are measured here, of the bench's own images.
        if reserved := sorted({row["system"] for row in facts} & {COPY, CEILING}):
            raise InputError(f"{folder} holds a system named {reserved[0]!r}, which is the name of a reference")
        sets.append((folder, facts))
    check_systems(sets)
    return [row for _, facts in sets for row in facts]


def _list_actions(recipe: ScoreRecipe, rows: list[BenchRow]) -> list[ActionRow]:
    owners: dict[str, str] = {}
    actions: list[ActionRow] = []
    for folder in recipe.predictions:
        own = list_actions(folder)
        check_bench_ids(rows, [row["triplet_id"] for row in own], f"{folder}/actions")
        for system in dict.fromkeys(row["system"] for row in own):
            if owners.setdefault(system, folder) != folder:
                raise InputError(
                    f"{owners[system]} and {folder} both hold actions of a system named {system!r}; give another system"
                )
        actions += own
    return actions


def _list_absent(recipe: ScoreRecipe) -> dict[str, str]:
    """Say of each metric that cannot be had which key is missing."""
    reasons = {}
    for metric, keys in _NEEDS.items():
        if missing := [key for key in keys if not getattr(recipe, key)]:
            folders = " and ".join(f"{key} (a folder such as {_EXAMPLES[key]})" for key in missing)
            reasons[metric] = f"needs {folders}"
    return reasons


def _score(recipe: ScoreRecipe, recipe_json: str, batches: Sequence[ScoreBatch], num_images: int) -> None:
    todo = [batch for batch in batches if not values_file(recipe.out, batch).exists()]
    workers = recipe.resources.num_workers
    finished = num_images - sum(len(batch.facts) for batch in todo)
    tasks = each(
        score_and_store,
        [(batch,) for batch in todo],
        recipe_json,
        workers > 0,
        on_ray=workers > 0,
        # No more at a time than asked for: each worker holds models of its own.
        max_running=workers or None,
    )
    with closing(tasks) as results, cli.progress_bar(num_images, "image", "score", finished) as bar:
        for num_scored in results:
            bar.update(num_scored)
    # Tasks of other nodes have theirs in the bucket.
    if batches:
        fetch(Path(recipe.out) / "values")


def _build_table(recipe: ScoreRecipe, rows: list[BenchRow], num_images: int) -> list[ScoreRow]:
    if not num_images:
        return []
    columns = [name for name in VALUE_SCHEMA.names if name not in ("pixels_sha256", "caption", "target_caption")]
    table = read_table(Path(recipe.out) / "values", VALUE_SCHEMA, columns)
    # Every image has a value, or something was lost in silence.
    if table.num_rows != num_images:
        raise InputError(f"{recipe.out}/values holds {table.num_rows} rows, expected {num_images}; remove the folder")
    # A part at a time: as Python objects all values would take far more memory than Arrow's columns of them.
    values = (row for part in table.to_batches(_TABLE_ROWS) for row in part.to_pylist())
    return build_score_rows(values, {row.triplet_id: row.subset(recipe.subset) for row in rows})


def _to_csv(table: Sequence[ScoreRow]) -> str:
    """Write one line a system, choice, metric and subset; the means are those of all subsets and of all items."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "choice", "k", "metric", "subset", "mean", "num_items", "num_missing"])
    for row in table:
        for metric, figure in row["metrics"].items():
            means = {**figure["by_subset"], "macro mean": figure["macro_mean"], "micro mean": figure["micro_mean"]}
            for subset, mean in means.items():
                value = "" if mean is None else repr(mean)
                head = [row["system"], row["choice"], row["k"], metric, subset, value]
                # A subset's mean is of its own items, of which its own may be missing.
                is_subset = subset in figure["by_subset"]
                num_items = figure["num_items_by_subset"][subset] if is_subset else figure["num_items"]
                num_missing = row["missing_by_subset"].get(subset, 0) if is_subset else row["num_missing"]
                writer.writerow([*head, num_items, num_missing])
    return text.getvalue()


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(ScoreRecipe, run, name="score", description=__doc__ or "")
