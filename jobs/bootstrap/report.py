"""Print what ``bootstrap`` would do, does and has done. Knows nothing of how it is done."""

from collections.abc import Sequence
from pathlib import Path

from jobs.bootstrap.plan import Stage
from jobs.pretrain import PretrainRecipe
from jobs.pretrain import schedule_warnings as pretrain_warnings
from wm.runs import read_run
from wm.training import TrainRecipe
from wm.training.planning.schedule import schedule_warnings


def print_plan(stages: Sequence[Stage], out: Path) -> None:
    """Print every stage, whether it is complete, and what is wrong with its schedule.

    Args:
        stages: In their order.
        out: Folder of the run.
    """
    print(f"bootstrap: {len(stages)} stages into {out}")
    for number, stage in enumerate(stages, 1):
        # As a user would type it.
        command = stage.run.__module__.removesuffix(".job")
        print(f"  {number:>2} {stage.name:<24} {command:<16} {_describe_state(stage, out / stage.name)}")
        for line in _list_warnings(stage):
            print(f"     warning: {line}")


def print_stage(stage: Stage, number: int, total: int, elapsed_s: float) -> None:
    """Print which stage begins.

    Args:
        stage: That begins.
        number: From 1.
        total: Number of stages.
        elapsed_s: Since the start of the run.
    """
    print(f"\n[{number}/{total}] {stage.name} ({_format_time(elapsed_s)} so far)", flush=True)


def print_superseded(stage: Stage, reason: Exception, destination: Path) -> None:
    """Print that a stage's old output was moved.

    Args:
        stage: That is run again.
        reason: Why its old output does not fit.
        destination: Where that output is now.
    """
    print(f"{stage.name}: {reason}; the old one is now {destination}")


def print_result(out: Path, elapsed_s: float) -> None:
    """Print how long the run took and where its report is.

    Args:
        out: Folder of the run.
        elapsed_s: Since the start of the run.
    """
    print(f"\nbootstrap: complete in {_format_time(elapsed_s)}. Report: {out / 'report' / 'report.html'}")


def _format_time(elapsed_s: float) -> str:
    minutes, seconds = divmod(int(elapsed_s), 60)
    return f"{minutes}:{seconds:02d}"


def _describe_state(stage: Stage, folder: Path) -> str:
    """Describe a stage's folder. Changed inputs show only when the stages before have run."""
    record = read_run(folder)
    if record is None:
        return "to do"
    old, new = record.get("recipe") or {}, stage.recipe.model_dump(mode="json")
    is_same = stage.recipe.identity_settings(old) == stage.recipe.identity_settings(new)
    return "complete" if is_same else "complete, of another recipe"


def _list_warnings(stage: Stage) -> list[str]:
    """List what is wrong with the schedule of a stage that trains."""
    recipe = stage.recipe
    if isinstance(recipe, PretrainRecipe):
        return pretrain_warnings(recipe)
    # With ``epochs`` its length follows from triplets that other stages write first: then the stage itself warns.
    return schedule_warnings(recipe, recipe.max_steps) if isinstance(recipe, TrainRecipe) and recipe.max_steps else []
