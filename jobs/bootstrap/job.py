"""Run the complete method stage by stage: base → inverse model → annotate videos → select → forward models → evaluate →
report. Stages exchange files: one whose output is complete and whose inputs are unchanged is not run again. Those that
do not depend on each other run side by side.
"""

import functools
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from jobs.annotate.recipe import AnnotateRecipe
from jobs.bootstrap import report
from jobs.bootstrap.console import Console
from jobs.bootstrap.graph import Graph, build_graph, fit_stages
from jobs.bootstrap.plan import Stage, plan
from jobs.bootstrap.recipe import BootstrapRecipe
from jobs.bootstrap.scheduler import run_side_by_side
from jobs.bootstrap.stage_process import wait_until_warm, warm_up
from jobs.bootstrap.times import STAGES, Times, load_expected
from jobs.ingest.recipe import IngestRecipe
from jobs.judge.recipe import NANO_JUDGE, JudgeRecipe
from jobs.train.job import check_machine
from wm.buckets import prepare_buckets, show_uris
from wm.cli import main as cli_main
from wm.config import Recipe
from wm.datasets.layouts.labelled import list_labelled
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError, OtherRunError
from wm.evaluation.report.findings import SUPERSEDED
from wm.files.lease import Lease
from wm.files.mirror import fetch, list_below, publish, remove, uri_of
from wm.files.writer_lock import WriterLock
from wm.models import load_codec
from wm.run_files import COMPLETE
from wm.runs import RunRecord, check_place, read_run
from wm.training import TrainRecipe

_LOCK_S = 40.0
"""Stages of a run that was killed end by themselves, within this time."""


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
    stages, size = fit_stages(plan(recipe))
    out = Path(recipe.out)
    if size is not None:
        shared = f"{size.cpus:g} CPUs and {size.gpus:g} GPUs"
        print(f"bootstrap: stages that leave their workers out use the cluster's {shared}")
    if recipe.max_stages > 1 and not dry_run:
        warm_up()  # beside the checks
    _check_inputs(recipe, stages)
    graph = build_graph(stages, out, recipe.max_stages, size)
    if dry_run:
        with show_uris(recipe):
            report.print_plan(graph, out)
        return {}
    with _sole_run(out) as lock, _sole_node(out):
        times = Times(graph, load_expected(recipe))
        run_all = _run_here if recipe.max_stages == 1 else _run_in_processes
        run_all(graph, out, lock, times)
        times.store(recipe)
        publish(out / STAGES)
    with show_uris(recipe):
        report.print_result(recipe, graph, times)
    return {stage.name: read_run(out / stage.name) for stage in stages}


def _check_inputs(recipe: BootstrapRecipe, stages: Sequence[Stage]) -> None:
    """Check what the user brings before the first stage: the one that needs it may come hours later."""
    # 1. The output folder is not that of a single stage.
    check_place(Path(recipe.out))
    record = read_run(recipe.out)
    if record is not None:
        raise InputError(f"{recipe.out} holds another run (of stage {record.get('stage')!r}); choose another out")
    # 2. The user's model.
    prepare_buckets(recipe)
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
        elif isinstance(settings, JudgeRecipe):
            _check_key(settings)
        checked.add(type(settings))  # the videos are the same for every round


def _check_key(judge: JudgeRecipe) -> None:
    if judge.model != NANO_JUDGE and not judge.base_url and not os.environ.get(judge.api_key_variable):
        raise InputError(
            f"{judge.api_key_variable} is not set, and the judge {judge.model!r} asks OpenAI's API; set it, or give "
            "judge.base_url of an endpoint of your own, or scoring.judge = false"
        )


@contextmanager
def _sole_run(out: Path) -> Iterator[int]:
    """Refuse a second run into the same folder while another one, or a stage that it started, works there.

    Yields:
        Descriptor of the locked file; the lock ends with the last process that holds it, however that ends.

    Raises:
        InputError: Another run works there, or the folder cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out = {str(out)!r}: cannot make this folder: {error.strerror}") from error
    lock = WriterLock(out, "bootstrap")
    # Stages of a run that was killed hold its lock until they have ended.
    lock.acquire(_LOCK_S)
    try:
        yield lock.descriptor
    except BaseException:
        # After a second Ctrl-C stages may not have ended: without the file their lock would keep nobody out.
        lock.close()
        raise
    lock.release()


@contextmanager
def _sole_node(out: Path) -> Iterator[None]:
    """Refuse a run into a folder of a bucket while another node runs stages into it; elsewhere do nothing.

    Raises:
        InputError: Another node does.
    """
    uri = uri_of(out)
    if uri is None:
        yield
        return
    lease = Lease(uri, "bootstrap")
    lease.acquire()
    try:
        yield
    finally:
        lease.release()


def _run_here(graph: Graph, out: Path, lock: int, times: Times) -> None:
    """Run one stage after another in this process."""
    finished = set[str]()
    for stage in graph.stages:
        print(times.begin(stage.name, finished, set()), flush=True)
        run_stage(stage, out)  # a complete one returns at once
        print(times.end(stage.name), flush=True)
        finished.add(stage.name)
        report.show_preview(stage, out)


def _run_in_processes(graph: Graph, out: Path, lock: int, times: Times) -> None:
    """Run stages side by side, each in a process of its own."""
    wait_until_warm()
    console = Console([stage.name for stage in graph.stages])
    work = functools.partial(run_stage, out=out)
    show = functools.partial(report.show_preview, out=out)
    run_side_by_side(graph, work, console, lock=lock, times=times, on_finish=show)


def run_stage(stage: Stage, out: Path) -> None:
    """Run a stage; an output of another recipe or of other inputs is moved first, never overwritten.

    Args:
        stage: What runs.
        out: Folder of the run.

    Raises:
        Exception: Whatever the stage raises.
    """
    with show_uris(stage.recipe):
        # Its inputs are outputs of other stages: those of this node are here, others are fetched.
        prepare_buckets(stage.recipe)
        try:
            stage.run(stage.recipe)
        except OtherRunError as error:
            # Kept, since it may have cost days: the user decides what goes.
            destination = _find_free_name(out / SUPERSEDED, stage.name)
            _move(out / stage.name, destination)
            report.print_superseded(stage, error, destination)
            stage.run(stage.recipe)


def _move(folder: Path, destination: Path) -> None:
    """Move a stage's output; a bucket has no rename, so that there it is written anew before the old one goes."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    if uri_of(folder) is None:
        shutil.move(folder, destination)
        return
    shutil.copytree(fetch(folder), destination, ignore=shutil.ignore_patterns(COMPLETE))
    publish(destination)
    # The mark last, as where it was written.
    if (folder / COMPLETE).is_file():
        shutil.copyfile(folder / COMPLETE, destination / COMPLETE)
        publish(destination / COMPLETE)
    remove(folder)


def _find_free_name(folder: Path, name: str) -> Path:
    number = 1
    while _is_there(folder / f"{name}-{number}"):
        number += 1
    return folder / f"{name}-{number}"


def _is_there(folder: Path) -> bool:
    return folder.exists() if uri_of(folder) is None else bool(list_below(folder, missing_ok=True))


def main() -> int:
    """Run the command line; return the exit status."""
    return cli_main(BootstrapRecipe, run, name="bootstrap", description=__doc__ or "")
