"""Every job as a clumsy user meets it: one line that names the thing, status 2, nothing on the disk."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

JOBS = ("tabletop", "pretrain", "ingest", "train", "annotate", "select", "evaluate", "report", "bootstrap")
Call = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Runs a job's command line in this process; returns its one line of complaint."""

    def call(job: str, *argv: str) -> str:
        monkeypatch.setattr(sys, "argv", [job, *argv])
        assert importlib.import_module(f"jobs.{job}").main() == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("error: "), told.err
        return told.err

    return call


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder: an empty folder, one with a text only, and a file."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("hello")
    (tmp_path / "file").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("job", JOBS)
def test_recipes_are_strict(job: str, refused: Call, here: Path) -> None:
    before = contents(here)
    assert "no such recipe file: nope.toml" in refused(job, "nope.toml")
    assert "unknown key 'colour'" in refused(job, "out=o", "colour=red")
    assert "out is missing" in refused(job)
    (here / "bad.toml").write_text("out = = 3")
    assert "bad.toml is not valid TOML" in refused(job, "bad.toml")
    (here / "bad.toml").unlink()
    assert contents(here) == before


TRAIN = ("task=idm", "base=empty", "triplets=empty", "out=o", "steps=2")


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["steps=ten"], "steps = 'ten': input should be a valid integer"),
        (["lora.colour=1"], "unknown key 'lora.colour'"),
        (["epochs=1"], "error: the command line: give steps or epochs, one of them (steps = 2, epochs = 1.0)"),
        (["global_batch=3"], "error: the command line: global_batch = 3 is no multiple of num_workers = 2"),
        (["lora.targets=("], "lora.targets = '(': no regular expression: missing )"),
        (["out="], "the command line: out is empty"),
        (["base="], "the command line: base is empty"),
        (["triplets="], "the command line: path is empty"),
    ],
)
def test_a_wrong_value_is_named_in_its_own_words(argv: list[str], told: str, refused: Call, here: Path) -> None:
    assert told in refused("train", *TRAIN, *argv)


@pytest.mark.parametrize("flags", [[], ["--dry-run"]])
def test_places_that_can_hold_no_output(flags: list[str], refused: Call, here: Path, tiny_base: Path) -> None:
    (here / "rows.json").write_text(json.dumps([{"instruction": "a", "input": "b", "output": "c"}]))
    given = [f"root={here}", "file=rows.json", *flags]
    assert "out = 'file': file is a file; expected a folder" in refused("ingest", *given, "out=file")
    assert "out = 'file/sub': file is a file; expected a folder" in refused("ingest", *given, "out=file/sub")
    assert "File name too long" in refused("ingest", *given, "out=" + "x" * 300)
