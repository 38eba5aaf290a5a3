"""Every README command that runs a job or the server is one that its recipe takes: file, keys, types of values."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from jobs.bootstrap import BootstrapRecipe, plan
from serve_apps.__main__ import StartRecipe
from wm.config import Recipe
from wm.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
OTHER_FORMS = {"benchmark"}
"""Commands whose first word is not a recipe."""


def commands(text: str) -> list[list[str]]:
    """The words after ``python -m`` of every command in a Markdown text's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if "python -m" in line]
    parts = [line[line.index("-m") + 1 :] for line in words if "-m" in line]
    return [line[: line.index("&&")] if "&&" in line else line for line in parts]


def recipe_class(module: str) -> type[Recipe]:
    """The recipe that a command reads."""
    if module == "serve_apps":
        return StartRecipe
    name = module.removeprefix("jobs.")
    found = importlib.import_module(module)
    return getattr(found, f"{name.capitalize()}Recipe")


COMMANDS = [
    words
    for words in commands((ROOT / "README.md").read_text())
    if words[0].split(".")[-1] not in OTHER_FORMS and (words[0].startswith("jobs.") or words[0] == "serve_apps")
]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_is_what_its_recipe_takes(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    module, *arguments = words
    arguments = [argument for argument in arguments if not argument.startswith("--")]
    file = arguments.pop(0) if "=" not in arguments[0] else None
    recipe = recipe_class(module).load(file, arguments)
    if isinstance(recipe, BootstrapRecipe):
        assert len(plan(recipe)) > 5


def test_commands_are_found_and_an_old_key_would_be_seen() -> None:
    text = "```sh\npython -m jobs.train a.toml base=M \\\n    lr=3 # why\n```\n"
    assert commands(text) == [["jobs.train", "a.toml", "base=M", "lr=3"]]
    assert {words[0] for words in COMMANDS} >= {"jobs.train", "jobs.annotate", "jobs.bootstrap", "serve_apps"}
    with pytest.raises(InputError, match=r"optim\.lr"):
        recipe_class("jobs.train").load(None, ["task=idm", "base=M", "triplets=T", "out=O", "lr=3"])
