"""Print what ``bootstrap`` would do, does and has done. Knows nothing of how it is done."""

import shlex
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.bootstrap.graph import Graph
from jobs.bootstrap.plan import Stage
from jobs.bootstrap.recipe import BootstrapRecipe
from jobs.bootstrap.times import STAGES, Times, format_time
from jobs.evaluate.recipe import EvaluateRecipe
from jobs.predict.recipe import PredictRecipe
from jobs.predict.triplet_storyboard import STORYBOARD
from jobs.pretrain import PretrainRecipe
from jobs.pretrain import schedule_warnings as pretrain_warnings
from jobs.shared.terminal import show_image
from wm.runs import read_run
from wm.training import TrainRecipe
from wm.training.planning.schedule import schedule_warnings


def print_plan(graph: Graph, out: Path) -> None:
    """Print every stage, what it waits for, whether it is complete, and what is wrong with its schedule.

    Args:
        graph: The stages.
        out: Folder of the run.
    """
    print(f"bootstrap: {len(graph.stages)} stages into {out}, at most {graph.max_stages} at a time")
    for number, stage in enumerate(graph.stages, 1):
        # As a user would type it.
        command = stage.run.__module__.removesuffix(".job")
        print(f"  {number:>2} {stage.name:<24} {command:<16} {_describe_state(stage, out / stage.name)}")
        for line in _list_warnings(stage):
            print(f"     warning: {line}")


def show_preview(stage: Stage, out: Path) -> None:
    """Show the image of a preview in a terminal that can; of other stages nothing.

    Args:
        stage: That has ended; it has printed the image's path.
        out: Folder of the run.
    """
    path = out / stage.name / STORYBOARD
    if isinstance(stage.recipe, PredictRecipe) and path.is_file():
        show_image(path)


def print_superseded(stage: Stage, reason: Exception, destination: Path) -> None:
    """Print that a stage's old output was moved.

    Args:
        stage: That is run again.
        reason: Why its old output does not fit.
        destination: Where that output is now.
    """
    print(f"{stage.name}: {reason}; the old one is now {destination}")


def print_result(recipe: BootstrapRecipe, graph: Graph, times: Times) -> None:
    """Print the time of each stage, where the report is, and what to do next.

    Args:
        recipe: Of the run.
        graph: The stages.
        times: Of this run.
    """
    out = Path(recipe.out)
    # 1. Where the time went; what ran side by side adds up to more than the run.
    width = max(map(len, times.stages), default=0)
    print(f"\n{'stage':<{width}}  seconds  beside")
    for entry in times.stages.values():
        print(f"{entry.name:<{width}}  {entry.seconds:>7.1f}  {', '.join(entry.beside)}".rstrip())
    # 2. What there is, and what a reader may do with it.
    print(f"\nbootstrap: complete in {format_time(times.elapsed_s)} ({out / STAGES})")
    print(f"report: {out / 'report' / 'report.html'}\n\nnext:")
    for meaning, words in list_next_commands(recipe):
        print(f"  {_name_program()} {shlex.join(words)}\n      {meaning}")


def list_next_commands(recipe: BootstrapRecipe) -> list[tuple[str, list[str]]]:
    """List three commands to continue with after a complete run: what each is for, and its words after ``wm``.

    Args:
        recipe: Of the run.
    """
    out = Path(recipe.out)
    # By their folders: nothing needs the checkout.
    models = [f"{role}={out / role / 'model'}" for role in ("fdm", "idm")]
    page = out / "view"
    return [
        ("serve both models, with a playground: http://127.0.0.1:8000", ["serve", *models]),
        (
            f"look at the annotated triplets: {page / 'index.html'}",
            ["view", f"triplets={out / 'annotated'}", f"out={page}"],
        ),
        ("your own videos: motion, key-frames and pairs of each (VIDEOS is your folder)", ["look", "VIDEOS"]),
    ]


def _name_program() -> str:
    """Name ``wm`` so that a shell in this folder finds it: an environment need not be activated."""
    if shutil.which("wm"):
        return "wm"
    # As in make demo, where nobody has activated the environment.
    program = Path(sys.executable).with_name("wm")
    if not program.exists():
        return f"{shlex.quote(sys.executable)} -m jobs"
    folder = Path.cwd()
    return shlex.quote(str(program.relative_to(folder) if program.is_relative_to(folder) else program))


def _describe_state(stage: Stage, folder: Path) -> str:
    """Describe a stage's folder. Changed inputs show only when the stages before have run."""
    record = read_run(folder)
    if record is None:
        return "to do"
    old, new = record.get("recipe") or {}, stage.recipe.model_dump(mode="json")
    if isinstance(stage.recipe, EvaluateRecipe):
        _take_recorded(new, old)
    is_same = stage.recipe.identity_settings(old) == stage.recipe.identity_settings(new)
    return "complete" if is_same else "complete, of another recipe"


def _take_recorded(new: dict[str, Any], old: Mapping[str, Any]) -> None:
    """Put what an evaluation has recorded in place of ``auto``: the column, how each model exchanges images."""
    if new["subset"] == "auto":
        new["subset"] = old.get("subset")
    for name, model in new["models"].items():
        if model["reads"] == "auto":
            model["reads"] = ((old.get("models") or {}).get(name) or {}).get("reads", "auto")


def _list_warnings(stage: Stage) -> list[str]:
    """List what is wrong with the schedule of a stage that trains."""
    recipe = stage.recipe
    if isinstance(recipe, PretrainRecipe):
        return pretrain_warnings(recipe)
    # With ``epochs`` its length follows from triplets that other stages write first: then the stage itself warns.
    return schedule_warnings(recipe, recipe.max_steps) if isinstance(recipe, TrainRecipe) and recipe.max_steps else []
