"""``wm study NAME``: every name is listed with a line, runs its module, and a misspelt one is one line."""

import sys
from types import ModuleType

import pytest

from jobs.__main__ import main as run_wm
from jobs.study.job import SUBCOMMANDS, main


@pytest.fixture(autouse=True)
def same_arguments(monkeypatch):
    """The front names the command in the process's arguments."""
    monkeypatch.setattr(sys, "argv", [*sys.argv])


@pytest.mark.parametrize("words", [[], ["--help"], ["help"]])
def test_help_lists_the_six_and_the_whole_way(words, capsys):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert list(SUBCOMMANDS) == ["make", "serve", "report", "export", "import", "simulate"]
    for name in SUBCOMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {name} ")]
        assert len(line) <= 120 and len(line.split(maxsplit=1)[1]) > 30
    steps = [line.split()[2] for line in lines if line.startswith("  wm study")]
    assert steps == ["make", "serve", "report", "simulate", "report"]


@pytest.mark.parametrize(
    ("word", "message"), [("mak", "did you mean 'make'?"), ("zzz", "expected one of make, serve, report,")]
)
def test_an_unknown_name_is_one_line(word, message, capsys):
    assert main([word]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_name_runs_its_module_with_the_rest(name, monkeypatch):
    calls = []
    module = ModuleType(SUBCOMMANDS[name])
    module.main = lambda: calls.append(sys.argv) or 7
    monkeypatch.setitem(sys.modules, SUBCOMMANDS[name], module)
    assert run_wm(["study", name, "study=S", "--dry-run"]) == 7
    assert calls == [[f"wm study {name}", "study=S", "--dry-run"]]
