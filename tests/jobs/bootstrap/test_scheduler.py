"""Stages in processes of their own: side by side, ended together, none left behind."""

import multiprocessing
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.bootstrap.console import Console
from jobs.bootstrap.scheduler import run_side_by_side
from jobs.bootstrap.stage_process import StageFailedError, list_preloads
from jobs.bootstrap.times import Times
from tests.helpers.stages import FakeRecipe, build, recipe, run_stage
from wm.errors import InputError


@pytest.fixture
def held(tmp_path: Path) -> Iterator[int]:
    with (tmp_path / "lock").open("w") as file:
        yield file.fileno()


def run(out: Path, recipes: dict[str, FakeRecipe], held: int, **more: Any) -> list[str]:
    graph, finished = build(out, recipes, **more), list[str]()
    times = Times(graph, {})
    run_side_by_side(
        graph,
        run_stage,
        Console(list(recipes)),
        lock=held,
        times=times,
        on_finish=lambda stage: finished.append(stage.name),
    )
    assert set(times.stages) == set(finished) == set(recipes)
    return finished


def test_stages_run_side_by_side_and_after_what_they_read(
    tmp_path: Path, held: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    out.mkdir()
    monkeypatch.setenv("OF_THE_RUN", "yes")
    monkeypatch.chdir(out)
    # Each of the first two waits until the other has begun.
    recipes = {
        "left": recipe(out, "left", act="meet", other="right"),
        "right": recipe(out, "right", act="meet", other="left"),
        "last": recipe(out, "last", "left/model", "right"),
    }
    finished = run(out, recipes, held, gpus={"left": 1, "last": 2})
    assert finished[-1] == "last"
    facts = {name: (out / name / "done").read_text().split("\n") for name in recipes}
    # The fork server is older than this test's variables and folder.
    assert {name: values[1:] for name, values in facts.items()} == {key: ["yes", str(out)] for key in recipes}
    assert facts["left"][0] == "0" and facts["last"][0].count(",") == 1
    lines = capsys.readouterr().out.splitlines()
    assert {"left  | left reads 0", "right | right reads 0", "last  | last reads 2"} <= set(lines)
    assert "last  | half a line" in lines
    assert [re.sub(r"\d+:\d\d", "TIME", line) for line in lines if line.startswith("[3/3]")] == [
        "[3/3] last (TIME so far)"
    ]


def test_with_a_gpu_nothing_is_imported_before_the_fork(tmp_path: Path) -> None:
    assert list_preloads([tmp_path / "nvidiactl"]) == ["jobs.bootstrap.warm"]
    assert list_preloads([tmp_path / "kfd", tmp_path]) == []


def test_the_first_that_fails_ends_the_others(tmp_path: Path, held: int, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = {
        "slow": recipe(tmp_path, "slow", act="hang"),
        "bad": recipe(tmp_path, "bad", act="fail", other="slow"),
        "after": recipe(tmp_path, "after", "bad"),
    }
    with pytest.raises(InputError, match=r"^value = 3: expected 4$"):
        run(tmp_path, recipes, held)
    assert (tmp_path / "slow" / "interrupted").read_text() == "once" and not (tmp_path / "after").exists()
    assert "bad: failed; slow is ended too, and resumes the next time" in capsys.readouterr().out
    assert multiprocessing.active_children() == []


def test_an_interrupt_ends_all_stages(tmp_path: Path, held: int) -> None:
    recipes = {
        "slow": recipe(tmp_path, "slow", act="hang"),
        "sender": recipe(tmp_path, "sender", act="interrupt", other="slow"),
    }
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, recipes, held)
    assert (tmp_path / "slow" / "interrupted").exists() and multiprocessing.active_children() == []


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("die", "stage one was killed: the machine may have run out of memory"),
        ("break", "stage one ended with status 1"),
    ],
)
def test_a_stage_that_ends_without_a_word_is_named(
    tmp_path: Path, held: int, act: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(StageFailedError, match=message):
        run(tmp_path, {"one": recipe(tmp_path, "one", act=act)}, held)
    assert ("one | KeyError: 'a mistake of the program'" in capsys.readouterr().out) == (act == "break")
