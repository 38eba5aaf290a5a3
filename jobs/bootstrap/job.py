"""Run the complete method stage by stage: base → inverse model → annotate videos → select → forward models → evaluate →
report. Stages exchange files: one whose output is complete and whose inputs are unchanged is not run again.
"""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.annotate.recipe import AnnotateRecipe
from jobs.bootstrap import report
from jobs.bootstrap.plan import Stage, plan
from jobs.bootstrap.recipe import BootstrapRecipe
from jobs.ingest.recipe import IngestRecipe
from jobs.train.job import check_machine
from wm.cli import main as cli_main
from wm.config import Recipe
from wm.datasets.layouts.labelled import list_labelled
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError, OtherRunError
from wm.evaluation.report.findings import SUPERSEDED
from wm.models import load_codec
from wm.runs import RunRecord, check_place, read_run
from wm.training import TrainRecipe


def run(recipe: BootstrapRecipe, *, dry_run: bool = False) -> dict[str, RunRecord | None]:
    """Run every stage whose output is not complete.

    Args:
        recipe: Settings of all stages.
        dry_run: Check everything and print the stages.

    Returns:
        Run record by stage; empty on a dry run.

    Raises:
        InputError: The input is wrong; what can be checked is checked before the first stage.
    """
    stages, out = plan(recipe), Path(recipe.out)
    _check_inputs(recipe, stages)
    if dry_run:
        report.print_plan(stages, out)
        return {}
    begin = time.monotonic()
    records = {}
    for number, stage in enumerate(stages, 1):
        report.print_stage(stage, number, len(stages), time.monotonic() - begin)
        # In this process; a complete stage returns at once.
        _run_stage(stage, out)
        records[stage.name] = read_run(out / stage.name)
    report.print_result(out, time.monotonic() - begin)
    return records


def _check_inputs(recipe: BootstrapRecipe, stages: Sequence[Stage]) -> None:
    """Check what the user brings before the first stage: the one that needs it may come hours later."""
    # 1. The output folder is not that of a single stage.
    check_place(Path(recipe.out))
    record = read_run(recipe.out)
    if record is not None:
        raise InputError(f"{recipe.out} holds another run (of stage {record.get('stage')!r}); choose another out")
    # 2. The user's model.
    if recipe.base_model:
        load_codec(recipe.base_model)
    # 3. The user's data, as the stages will list them, which read them hours later; CPUs and GPUs, for which Ray would
    # wait without an end.
    data, checked = recipe.data, set[type[Recipe]]()
    for settings in [stage.recipe for stage in stages]:
        if isinstance(settings, IngestRecipe) and data.supervised_root is not None:
            list_labelled(settings.root, settings.file, settings.dataset_layout)
        elif isinstance(settings, AnnotateRecipe) and data.videos is not None and AnnotateRecipe not in checked:
            list_videos(settings.videos, layout=settings.dataset_layout, annotations=settings.annotations)
        elif isinstance(settings, TrainRecipe):
            check_machine(settings)
        checked.add(type(settings))  # the videos are the same for every round


def _run_stage(stage: Stage, out: Path) -> None:
    """Run a stage; an output of another recipe or of other inputs is moved first, never overwritten."""
    try:
        stage.run(stage.recipe)
    except OtherRunError as error:
        # Kept, since it may have cost days: the user decides what goes.
        destination = _find_free_name(out / SUPERSEDED, stage.name)
        destination.parent.mkdir(exist_ok=True)
        shutil.move(out / stage.name, destination)
        report.print_superseded(stage, error, destination)
        stage.run(stage.recipe)


def _find_free_name(folder: Path, name: str) -> Path:
    number = 1
    while (folder / f"{name}-{number}").exists():
        number += 1
    return folder / f"{name}-{number}"


def main() -> int:
    """Run the command line; return the exit status."""
    return cli_main(BootstrapRecipe, run, name="bootstrap", description=__doc__ or "")
