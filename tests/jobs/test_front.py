"""``wm NAME`` is ``python -m jobs.NAME``: every command is listed, runs, and completes in a shell."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def test_every_command_is_listed_once():
    modules = {path.stem for path in (ROOT / "jobs").glob("*.py") if not path.stem.startswith("__")}
    packages = {path.parent.name for path in (ROOT / "jobs").glob("*/__main__.py")}
    assert sorted(COMMANDS) == sorted(modules | packages | {"serve"})


def test_help_lists_each_command_with_a_line(capsys):
    assert main([]) == main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for name in COMMANDS:
        (line, again) = [line for line in lines if line.startswith(f"  {name} ")]
        assert line == again and len(line.split(maxsplit=1)[1]) > 15 and len(line) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["annotat"], "did you mean annotate?"),
        (["curves", "videos=v"], "curves is now look: wm look VIDEOS"),
        (["zzz"], "expected one of bootstrap, ingest, "),
        (["completion", "tcsh"], "expected bash, zsh, fish"),
        (["completion"], "expected bash, zsh, fish"),
    ],
)
def test_an_unknown_word_is_one_line(words, message, capsys):
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(("name", "prog"), [("select", "usage: wm select"), ("serve", "python -m serve_apps")])
def test_a_command_is_the_module_of_its_name(name, prog, tmp_path):
    command = [sys.executable, "-m", "jobs", name]
    shown = subprocess.run([*command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert prog in shown and "keys of the recipe" in shown
    wrong = subprocess.run([*command, "nokey=1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2 and "unknown key 'nokey'" in wrong.stderr


def test_a_closed_pipe_ends_quietly():
    for words in ("--help", "select --help"):
        command = f"{sys.executable} -m jobs {words} | true; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
        # true may have left before or after all was written.
        assert done.stdout in ("0\n", "1\n") and done.stderr == ""


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes_the_names(capsys):
    assert main(["completion", "bash"]) == 0
    text = capsys.readouterr().out
    code = f'{text}\ncomplete -p wm; compgen -W "$(complete -p wm | sed "s/.*-W \'\\(.*\\)\' wm/\\1/")" re'
    words = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert words[-2:] == ["relabel", "report"]
