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
from wm.evaluation.bench import Bench
from wm.evaluation.units import Unit, run_unit


def run_units(recipe: EvaluateRecipe, bench: Bench, units: Sequence[Unit], parts: Path) -> Iterator[Unit]:
    """Run every unit, in this process or in Ray tasks.

    Args:
        recipe: How many tasks at a time; workers build their own bench from it.
        bench: For this process.
        units: What to ask.
        parts: Folder of the units' files.

    Yields:
        Each unit when its file exists.

    Raises:
        InputError: A model cannot be loaded or asked.
    """
    if recipe.resources.num_workers == 0:
        for unit in units:
            run_unit(bench, unit, parts)
            yield unit
        return
    # As text it keys each worker's cache; paths are absolute, since workers run in another folder.
    recipe_json = json.dumps(recipe.with_absolute_paths().model_dump(mode="json"))
    inputs = [(unit,) for unit in units]
    shared = (str(parts.resolve()), recipe_json)
    # No more at a time than asked for: each worker holds models of its own.
    num_workers = recipe.resources.num_workers
    with closing(each(_run_remote_unit, inputs, *shared, on_ray=True, max_running=num_workers)) as results:
        yield from results


def _run_remote_unit(unit: Unit, parts: str, recipe_json: str) -> Unit:
    """Run a unit in a worker process; return it."""
    torch.set_num_threads(1)  # as many tasks as cores run at a time
    run_unit(_build_worker_bench(recipe_json), unit, Path(parts))
    return unit


@lru_cache(maxsize=1)
def _build_worker_bench(recipe_json: str) -> Bench:
    return build_bench(EvaluateRecipe.model_validate_json(recipe_json))
