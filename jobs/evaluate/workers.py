"""Run the units of an evaluation, in this process or as Ray tasks."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import torch

from jobs.evaluate.bench import build_bench
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.shared.tasks import each
from wm.buckets import localise
from wm.evaluation.bench import Bench
from wm.evaluation.predictions import predictions_folder
from wm.evaluation.unit_predictions import write_unit_predictions
from wm.evaluation.units import Unit, run_unit
from wm.files.mirror import fetch, publish


def parts_folder(recipe: EvaluateRecipe) -> Path:
    """Return the folder of the units' files."""
    return Path(recipe.out) / "parts"


def run_units(
    recipe: EvaluateRecipe, bench: Bench, units: Sequence[Unit], parts: Path, images: Path | None = None
) -> Iterator[Unit]:
    """Run every unit, in this process or in Ray tasks.

    Args:
        recipe: How many tasks at a time; workers build their own bench from it.
        bench: For this process.
        units: What to ask.
        parts: Folder of the units' files.
        images: Folder of the files of predicted images; None: they are not kept.

    Yields:
        Each unit when its file exists.

    Raises:
        InputError: A model cannot be loaded or asked.
    """
    if recipe.resources.num_workers == 0:
        for unit in units:
            _run_unit(recipe, bench, unit, parts, images)
            yield unit
        return
    # As text it keys each worker's cache; paths are absolute, since workers run in another folder.
    recipe_json = json.dumps(recipe.with_absolute_paths().model_dump(mode="json"))
    inputs = [(unit,) for unit in units]
    # No more at a time than asked for: each worker holds models of its own.
    num_workers = recipe.resources.num_workers
    with closing(
        each(_run_remote_unit, inputs, recipe_json, images is not None, on_ray=True, max_running=num_workers)
    ) as results:
        yield from results
    # Units of other nodes are in the bucket; elsewhere they are here already.
    for folder in (parts, images):
        if folder is not None and units:
            fetch(folder)


def _run_remote_unit(unit: Unit, recipe_json: str, keeps_images: bool) -> Unit:
    """Run a unit in a worker process; return it."""
    torch.set_num_threads(1)  # as many tasks as cores run at a time
    recipe, bench = _build_worker_bench(recipe_json)
    _run_unit(recipe, bench, unit, parts_folder(recipe), predictions_folder(recipe.out) if keeps_images else None)
    return unit


def _run_unit(recipe: EvaluateRecipe, bench: Bench, unit: Unit, parts: Path, images: Path | None) -> None:
    publish(run_unit(bench, unit, parts))
    # Of the unit's file, so that a run stopped between the two writes the images when it resumes.
    if images is not None:
        write_unit_predictions(bench, unit, parts, images, recipe.search.num_candidates)


@lru_cache(maxsize=1)
def _build_worker_bench(recipe_json: str) -> tuple[EvaluateRecipe, Bench]:
    recipe = localise(EvaluateRecipe.model_validate_json(recipe_json))
    return recipe, build_bench(recipe)
