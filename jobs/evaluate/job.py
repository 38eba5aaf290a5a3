"""Evaluate models on held-out triplets: text metrics, preference probe, verification at several K,
examples."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jobs.evaluate import report
from jobs.evaluate.bench import build_bench
from jobs.evaluate.entries import build_entries, reads_opposites, record_kinds
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.evaluate.workers import parts_folder, run_units
from jobs.shared.cluster_size import fit_to_cluster
from wm import cli
from wm.datasets.card import write_dataset_card
from wm.evaluation.adaptive import adaptive_rows
from wm.evaluation.aurora_bench import order_subsets
from wm.evaluation.bench import Bench, Entry
from wm.evaluation.gallery import write_gallery
from wm.evaluation.heldout import choose_subset
from wm.evaluation.predicted_actions import ACTION_SCHEMA, ActionRow, actions_folder
from wm.evaluation.predictions import predictions_folder
from wm.evaluation.rows import Tables
from wm.evaluation.sensitivity_table import write_sensitivity
from wm.evaluation.tables import Collected, build_tables
from wm.evaluation.unit_predictions import list_unit_actions
from wm.evaluation.units import Unit, collect, list_units, load_part
from wm.records import SEED_SCHEME
from wm.runs import Run, digest_of, read_run, write_json
from wm.tables import open_parquet, read_table, table_files, triplets_folder, write_table

MAX_KEPT_ITEMS = 1000
"""Triplets up to which predicted images are kept where the recipe leaves it open."""


def run(recipe: EvaluateRecipe, *, dry_run: bool = False) -> dict[str, Any]:
    """Evaluate every model and write ``tables.json``, ``examples.json`` and ``examples/`` below ``out``.

    A stopped evaluation resumes with the units whose files are missing.

    Args:
        recipe: The models, the held-out triplets and the settings.
        dry_run: Check the recipe and report the number of units only.

    Returns:
        The record that ``run.json`` holds; empty on a dry run.

    Raises:
        InputError: On a model, triplets or a folder that does not fit.
    """
    # 1. Check everything. Inputs are read before the folder is made, so that bad input leaves nothing behind.
    entries = build_entries(recipe := fit_to_cluster(recipe))
    units = list_units(
        entries, recipe.seeds, greedy=recipe.greedy, with_probe=recipe.probe, with_margins=recipe.action_margins
    )
    # What was found of each folder is recorded, as the column of subsets is.
    recipe = record_kinds(recipe, entries)
    # The column itself is recorded: an earlier run under another one keeps its figures, and is not resumed.
    if is_auto := recipe.subset == "auto":
        recipe = recipe.model_copy(update={"subset": choose_subset(recipe.triplets)})
    job = Run(recipe.out, "evaluate", recipe, _digest_inputs(recipe, entries))
    if job.is_complete():
        report.print_complete(recipe)
        return read_run(recipe.out) or {}
    with job.timed("read"):
        bench = build_bench(recipe)
    _print_notices(recipe, bench, is_auto)
    counts = {"triplets": len(bench.held_out), "models": len(entries), "units": len(units)}
    # Everything that can fail without a model has been checked by now.
    if dry_run:
        report.print_plan(recipe, counts)
        return {}
    # 2. Ask every model, a file a unit.
    job.start()
    parts = parts_folder(recipe)
    keeps_images = len(bench.held_out) <= MAX_KEPT_ITEMS if recipe.keep_images is None else recipe.keep_images
    images = (
        predictions_folder(job.out) if keeps_images and "fdm" in {entry.role for entry in entries.values()} else None
    )
    with job.timed("models"), cli.progress_bar(len(units), "unit", "evaluate") as bar:
        for unit in run_units(recipe, bench, units, parts, images):
            bar.set_postfix_str(f"{unit.entry} {unit.ask}")
            bar.update()
    # 3. Make tables of the files alone: a resumed run gives what an uninterrupted one would.
    with job.timed("tables"):
        tables = _complete_tables(recipe, collect(bench, units, parts, recipe.search.num_candidates))
        _write_tables(job.out, tables)
        examples = write_gallery(bench, units, parts, job.out, recipe.examples)
        write_json(job.out / "examples.json", examples)
    counts["examples"] = len(examples)
    counts |= _count_editor_failures(entries, units, parts)
    counts |= _finish_predictions(job.out, images, list_unit_actions(entries, bench.held_out.ids, units, parts))
    record = job.finish(counts, **_list_decodings(entries, units, parts))
    report.print_tables(tables, counts, job.out / "tables.json")
    return record


def _write_tables(out: Path, tables: Tables) -> None:
    """Write ``tables.json``, and action sensitivity as tables of its own."""
    write_json(out / "tables.json", tables)
    write_sensitivity(out, tables["sensitivity"])


def _digest_inputs(recipe: EvaluateRecipe, entries: Mapping[str, Entry]) -> dict[str, str]:
    """Digest what the figures are of: triplets, models, contradicting actions, and how rows get their seeds."""
    inputs = {"triplets": digest_of(recipe.triplets)}
    inputs |= {f"model {name}": digest_of(entry.path) for name, entry in entries.items()}
    if recipe.counterfactuals and reads_opposites(recipe, entries):
        inputs["counterfactuals"] = digest_of(recipe.counterfactuals)
    inputs["seeds"] = SEED_SCHEME  # parts of another scheme would be mixed with new ones
    return inputs


def _print_notices(recipe: EvaluateRecipe, bench: Bench, is_auto: bool) -> None:
    """Print what the figures are of, where the recipe does not say it."""
    if len(set(bench.held_out.subsets)) == 1 and len(labels := _list_classes(recipe)) > 1:
        report.print_crossing(recipe, labels)
    if is_auto and recipe.subset == "class_label":
        report.print_choice(recipe, _list_classes(recipe))
    if reads_opposites(recipe, bench.entries):
        report.print_counterfactuals(bench.counterfactuals)


def _list_decodings(entries: Mapping[str, Entry], units: Sequence[Unit], parts: Path) -> dict[str, Any]:
    """List how the codes of each forward model were decoded, by its entry; nothing where there is none of codes."""
    decodings: dict[str, Any] = {}
    for unit in units:
        # Files of earlier versions do not say it.
        if unit.ask == "sample" and entries[unit.entry].kind == "codes":
            decodings |= {unit.entry: value} if (value := load_part(unit.file(parts))[0].get("decoding")) else {}
    return {"decoding": decodings} if decodings else {}


def _count_editor_failures(entries: Mapping[str, Entry], units: Sequence[Unit], parts: Path) -> dict[str, int]:
    """Count and print the images that editors withheld, and the actions that they cut; return the counts above 0."""
    counts: Counter[str] = Counter()
    for name in [name for name, entry in entries.items() if entry.kind == "editor"]:
        facts = {unit: load_part(unit.file(parts))[0] for unit in units if unit.entry == name}
        sampled, contradicted = Counter[str](), Counter[str]()
        for unit, of_unit in facts.items():
            (contradicted if unit.ask == "margin" else sampled).update(of_unit.get("withheld", {}))
        # The same actions are cut whatever the sampling seed.
        cut_actions = max((of_unit.get("cut_actions", 0) for of_unit in facts.values()), default=0)
        report.print_editor_failures(name, sampled, contradicted, cut_actions)
        counts.update({"withheld": sampled.total() + contradicted.total(), "cut_actions": cut_actions})
    return {name: count for name, count in counts.items() if count}


def _finish_predictions(out: Path, images: Path | None, actions: list[ActionRow]) -> dict[str, int]:
    """Write what makes the folder a prediction set beside the images: the actions, and a card; return the counts."""
    counts: dict[str, int] = {}
    if images is not None:
        counts["predictions"] = sum(open_parquet(file).metadata.num_rows for file in table_files(images))
    if actions:
        counts["actions"] = write_table(actions, actions_folder(out) / "part-00000.parquet", ACTION_SCHEMA)
    if counts:
        write_dataset_card(out, title="predictions of an evaluation", split="test")
    return counts


def _list_classes(recipe: EvaluateRecipe) -> list[str]:
    """List the different class labels of the triplets, those of AURORA-Bench in the paper's order."""
    column = read_table(triplets_folder(recipe.triplets), columns=["class_label"]).column("class_label")
    return order_subsets(label for label in column.unique().to_pylist() if label)


def _complete_tables(recipe: EvaluateRecipe, collected: Collected) -> Tables:
    """Build the tables, with the settings that a reader of them needs."""
    search = recipe.search
    return {
        **build_tables(collected),
        "judge": recipe.judge,
        "seeds": recipe.seeds,
        "sampling": recipe.sampling.model_dump(mode="json"),
        "max_unchanged": search.max_unchanged,
        "adaptive": adaptive_rows(collected.banks, search.min_gains_nats, search.min_candidates, collected.subsets)
        if search.min_gains_nats
        else [],
    }


def main() -> int:
    """Run the command line; return its exit status."""
    return cli.main(EvaluateRecipe, run, name="evaluate", description=__doc__ or "")
