"""Stages of a made-up run, which do as their recipe says and need no model: for the scheduler of jobs.bootstrap."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Literal

from jobs.bootstrap.graph import Demand, Graph, find_inputs
from jobs.bootstrap.plan import Stage
from wm.config import Recipe
from wm.errors import InputError
from wm.paths import INPUT, OutputPath

LIMIT_S = 60.0
"""Longest wait for another stage: far more than it takes."""


class FakeRecipe(Recipe):
    out: OutputPath
    reads: Annotated[list[str], INPUT] = []
    act: Literal["write", "meet", "fail", "hang", "interrupt", "die", "break"] = "write"
    other: str = ""
    """With meet, hang and fail: name of a stage that must have begun."""


def run(recipe: FakeRecipe) -> None:
    out = Path(recipe.out)
    out.mkdir()
    (out / "begun").touch()
    if recipe.other:
        _wait_for(out.parent / recipe.other / "begun")
    print(f"{out.name} reads {len(recipe.reads)}")
    match recipe.act:
        case "fail":
            raise InputError("value = 3: expected 4")
        case "hang":
            try:
                _wait_for(out / "never")
            except KeyboardInterrupt:
                (out / "interrupted").write_text("once")
                raise
        case "interrupt":
            parent = multiprocessing.parent_process()
            assert parent is not None and parent.pid is not None
            os.kill(parent.pid, signal.SIGINT)
            _wait_for(out / "never")
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "break":
            raise KeyError("a mistake of the program")
    facts = [os.environ.get("CUDA_VISIBLE_DEVICES", "none"), os.environ.get("OF_THE_RUN", ""), str(Path.cwd())]
    (out / "done").write_text("\n".join(facts))
    sys.stderr.write("half a line")


def run_stage(stage: Stage) -> None:
    stage.run(stage.recipe)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + LIMIT_S
    while not path.exists():
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not come")
        time.sleep(0.02)


def build(
    out: Path, recipes: dict[str, FakeRecipe], *, max_stages: int = 2, gpus: dict[str, int] | None = None
) -> Graph:
    gpus = gpus or {}
    stages = [Stage(name, run, recipe) for name, recipe in recipes.items()]
    demands = {name: Demand(1, gpus.get(name, 0)) for name in recipes}
    capacity = Demand(8, max(gpus.values(), default=0))
    return Graph(stages, find_inputs(stages, out), demands, capacity, max_stages)


def recipe(out: Path, name: str, *reads: str, act: str = "write", other: str = "") -> FakeRecipe:
    values = {"out": f"{out}/{name}", "reads": [f"{out}/{source}" for source in reads], "act": act, "other": other}
    return FakeRecipe.parse(values, "test")
