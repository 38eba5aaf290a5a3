"""Commands of the guides: found in a page's shell blocks, made tiny, run in this process in the order of the page."""

import contextlib
import importlib
import io
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from wm.config import Recipe

PAGES = Path(__file__).resolve().parents[2] / "docs" / "pages"

FEW_VIDEOS = ["videos=2", "train=4", "test=2", "tune=0", "resources.num_workers=1"]
TINY: dict[str, list[str]] = {
    "tabletop": FEW_VIDEOS,
    "ingest": ["resources.num_workers=1"],
    "annotate": [
        "resources.gpus_per_annotator=0",
        "resources.num_decoders=1",
        "resources.max_decoders=0",
        "resources.num_annotators=1",
        "max_new_tokens=6",
        "limits.time_limit_s=30",
        # A random model rarely ends its text, and its codec gives most images the same codes.
        "filters.action=score",
        "filters.unchanged=score",
    ],
    "train": [
        "max_steps=2",
        "epochs=0",
        "global_batch_size=2",
        "micro_batch_size=1",
        "optim.warmup_steps=0",
        "precision=fp32",
        "lora.r=2",
        "resources.num_workers=0",
        "resources.use_gpu=false",
    ],
    "predict": ["search.num_candidates=3", "resources.device=cpu"],
    "evaluate": ["seeds=[0]", "search.num_candidates=[1, 2]", "search.min_gains_nats=[0.5]", "limit=2"],
    "gate": ["limit=2"],
    "serve": ["device=cpu"],
}
"""Settings that make a command tiny, by its name; they come last, so that they count."""


class Command(NamedTuple):
    """A command of a page as words, without what a shell does with its output."""

    words: list[str]
    output: str = ""
    """File that its standard output is appended to; empty: none."""

    @property
    def name(self) -> str:
        """The word that says which recipe it reads."""
        return self.words[1]

    @property
    def arguments(self) -> list[str]:
        return self.words[2:]


def blocks_of(text: str, language: str) -> list[str]:
    """The code blocks of a language in a page; those within a tab or a list are indented."""
    blocks = re.findall(rf"^( *)```{language}[^\n]*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", block, flags=re.MULTILINE) for indent, block in blocks]


def commands_of(text: str, language: str = "sh") -> list[Command]:
    """Every command of this project in a page's blocks, whatever comes before and after it on its line.

    ``python -m jobs.NAME`` and ``python -m serve_apps`` are what ``wm NAME`` and ``wm serve`` are.
    """
    commands = []
    for line in "\n".join(blocks_of(text, language)).replace("\\\n", " ").splitlines():
        for part in re.split(r" && | ; ", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            if (start := _start_of(words)) is not None:
                commands.append(_command_of(words[start:]))
    return commands


def _start_of(words: list[str]) -> int | None:
    for number, word in enumerate(words):
        if word == "wm" and number + 1 < len(words):
            return number
        # python -m jobs.NAME, python -m serve_apps.keys
        if word == "-m" and re.match(r"(jobs\.|serve_apps)", words[number + 1]):
            return number + 1
    return None


def _command_of(words: list[str]) -> Command:
    if words[0] != "wm":
        name = {"serve_apps": "serve", "serve_apps.keys": "keys"}.get(words[0], words[0].removeprefix("jobs."))
        words = ["wm", name, *words[1:]]
    output = words[words.index(">>") + 1] if ">>" in words else ""
    ends = [words.index(sign) for sign in (">>", ">", "|", "&") if sign in words]
    return Command(words[: min(ends, default=len(words))], output)


def fill_in(command: Command, values: Mapping[str, str]) -> Command:
    """Put values where placeholders are: words of capitals such as MODEL."""

    def value(match: re.Match[str]) -> str:
        return values.get(match[0], match[0])

    return command._replace(words=[re.sub(r"\b[A-Z][A-Z_]{2,}\b", value, word) for word in command.words])


def run_command(command: Command, more: list[str]) -> int:
    """Run a command as the shell would, in this process.

    Args:
        command: With values in place of its placeholders.
        more: Settings that come after its own.

    Returns:
        Its exit status.
    """
    options = [word for word in command.arguments if word.startswith("--")]
    settings = [word for word in command.arguments if not word.startswith("--")]
    arguments = [*settings, *TINY.get(command.name, []), *more, *options]
    output = io.StringIO()
    with contextlib.redirect_stdout(output) if command.output else contextlib.nullcontext():
        status = _main_of(command.name, arguments)
    if command.output:
        with Path(command.output).open("a") as file:
            file.write(output.getvalue())
    return status


def _main_of(name: str, arguments: list[str]) -> int:
    if name == "keys":
        return int(importlib.import_module("serve_apps.keys").main(arguments))
    before = sys.argv
    try:
        return int(importlib.import_module("jobs.__main__").main([name, *arguments]))
    finally:
        sys.argv = before


def recipe_class(name: str) -> type[Recipe]:
    """The recipe that ``wm NAME`` reads."""
    if name == "serve":
        return importlib.import_module("serve_apps.__main__").StartRecipe
    if name == "keys":
        return importlib.import_module("serve_apps.keys").KeyLimits
    return getattr(importlib.import_module(f"jobs.{name}"), f"{name.capitalize()}Recipe")
