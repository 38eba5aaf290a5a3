"""Read the commands and the Python of Markdown pages, hold commands against their recipes, and run both.

```sh blocks hold commands that a reader can give as they are, upper-case words apart (MODEL, VIDEOS), which stand for
paths of the reader's; ```console blocks hold what no test runs. A ```python block after a line ``<!-- run -->`` is run,
those of a page one after the other with the same names.
"""

import re
import shlex
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from docs.generate.commands import KINDS, recipe_class
from jobs.__main__ import COMMANDS, main
from jobs.bootstrap import BootstrapRecipe, plan
from jobs.compare.job import to_settings as to_systems
from jobs.look.job import to_settings
from wm.cli import load_recipe
from wm.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "pages"

_PLACEHOLDER = re.compile(r"\b[A-Z][A-Z0-9_]+\b")


def shell_commands(text: str) -> list[list[str]]:
    """List the words of every command in the ```sh blocks of a Markdown text, those after ``&&`` and ``--`` too."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands: list[list[str]] = []
    for line in lines:
        words = shlex.split(line, comments=True)
        # ray job submit … -- COMMAND
        words = words[words.index("--") + 1 :] if "--" in words else words
        while words:
            end = next((words.index(mark) for mark in ("&&", "|", ">>", ">", "&") if mark in words), len(words))
            commands.append(words[:end])
            words = words[end + 1 :]
    return [words for words in commands if words]


def wm_commands(text: str) -> list[list[str]]:
    """List the commands of a Markdown text that are ours, as the words after ``wm``."""
    commands = []
    for words in shell_commands(text):
        if words[0] == "wm":
            commands.append(words[1:])
        elif words[:2] == ["python", "-m"] and words[2].split(".")[0] in ("jobs", "serve_apps"):
            name = "serve" if words[2] == "serve_apps" else words[2].removeprefix("jobs.")
            commands.append([name, *words[3:]])
    return commands


def check_command(words: Sequence[str]) -> None:
    """Hold a command against its recipe: file, keys and types of values.

    Args:
        words: After ``wm``.

    Raises:
        InputError: There is no such command, or its recipe does not take the words.
    """
    name, *settings = words
    if name in ("completion", "--help") or name.startswith("serve_apps."):
        return
    if name not in COMMANDS:
        raise InputError(f"command {name!r}; expected one of {', '.join(COMMANDS)}")
    if name in KINDS:
        if settings == ["--help"]:
            return
        name = f"{name} {settings.pop(0)}"
    if name == "look":
        settings = to_settings(settings)
    if name == "compare":
        settings = to_systems(settings)
    recipe = load_recipe(recipe_class(name), [word for word in settings if not word.startswith("--")])
    if isinstance(recipe, BootstrapRecipe):
        assert len(plan(recipe)) > 5


def run_command(words: Sequence[str], values: Mapping[str, str]) -> int:
    """Run a command in this process.

    Args:
        words: After ``wm``.
        values: What stands in for the upper-case words in its arguments.

    Returns:
        The exit status.
    """
    arguments = sys.argv
    try:
        return main([fill(word, values) for word in words])
    finally:
        sys.argv = arguments  # the front names the command there


def fill(word: str, values: Mapping[str, str]) -> str:
    """Replace the upper-case words of an argument's value.

    Args:
        word: The argument.
        values: Upper-case word to its replacement.

    Raises:
        KeyError: One has no replacement.
    """
    key, sign, value = word.partition("=")
    # The videos of wm look stand alone.
    if not sign:
        return values.get(word, word)
    return f"{key}{sign}{_PLACEHOLDER.sub(lambda match: values[match[0]], value)}"


def python_blocks(text: str) -> list[str]:
    """List the ```python blocks of a Markdown text that are to be run."""
    return re.findall(r"^<!-- run -->\n+```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def tab_python(text: str, name: str) -> str:
    """Return the Python in a tab of a Markdown text.

    Args:
        text: The page.
        name: Of the tab.
    """
    block = re.search(rf'^=== "{name}"\n\n    ```python\n(.*?)^    ```', text, re.MULTILINE | re.DOTALL)
    assert block is not None, f"no tab {name!r} with Python"
    return textwrap.dedent(block[1])


def run_python(text: str, names: dict[str, object]) -> None:
    """Run the marked Python of a Markdown text, block after block.

    Args:
        text: The page.
        names: What the blocks may use, and where their own names go.
    """
    for block in python_blocks(text):
        exec(compile(block, "<page>", "exec"), names)
