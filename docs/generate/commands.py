"""Find the recipe of every command, its description and the recipe files that the package has for it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pydantic import BaseModel

from jobs.__main__ import COMMANDS
from jobs.benchmark.job import BENCHMARKS
from jobs.study.job import SUBCOMMANDS
from wm.config import Recipe, read_toml
from wm.errors import InputError
from wm.recipe_fields import table_class

KINDS: Mapping[str, Mapping[str, str]] = {"benchmark": BENCHMARKS, "study": SUBCOMMANDS}
"""Commands of two words: the first one → the second one → its module."""

RECIPES = Path(__file__).resolve().parents[2] / "jobs" / "recipes"


@dataclass(frozen=True)
class Command:
    """A command, whose words may be two."""

    words: str
    """After ``wm``: ``train``, ``benchmark sampling``."""
    recipe: type[Recipe]
    """Whose keys it takes."""
    about: str
    """What ``--help`` says that it does."""

    @property
    def page(self) -> str:
        """Name of its page below ``recipes``, without its ending."""
        return self.words.replace(" ", "-")


def list_commands() -> Iterator[Command]:
    """Iterate over the commands in the order of ``wm --help``, with each benchmark as one."""
    for name in COMMANDS:
        if name in KINDS:
            for kind, module_name in KINDS[name].items():
                words = f"{name} {kind}"
                yield Command(words, recipe_class(words), import_module(module_name).__doc__ or "")
            continue
        module = import_module(module_of(name))
        yield Command(name, recipe_class(name), import_module(module.main.__module__).__doc__ or "")


def module_of(name: str) -> str:
    """Return the module that ``wm NAME`` runs."""
    return "serve_apps.__main__" if name == "serve" else f"jobs.{name}"


def recipe_class(words: str) -> type[Recipe]:
    """Return the recipe class of a command.

    Args:
        words: As in :attr:`Command.words`.
    """
    name, _, kind = words.partition(" ")
    if name in KINDS:
        two_words = "BenchmarkRecipe" if name == "benchmark" else f"{name.capitalize()}{kind.capitalize()}Recipe"
        recipe: type[Recipe] = getattr(import_module(KINDS[name][kind]), two_words)
        return recipe
    # The server's recipe has a few keys of the process that starts it besides.
    class_name = "StartRecipe" if name == "serve" else f"{name.capitalize()}Recipe"
    found: type[Recipe] = getattr(import_module(module_of(name)), class_name)
    return found


def list_recipe_files(recipe: type[Recipe]) -> list[Path]:
    """List the package's recipe files whose keys are all of a recipe, by name."""
    return [file for file in sorted(RECIPES.rglob("*.toml")) if command_of(file) is recipe]


def command_of(file: Path) -> type[Recipe]:
    """Return the recipe class of a file: that of the first command that knows all of its keys.

    Args:
        file: A recipe of the package.

    Raises:
        InputError: No command does.
    """
    values = read_toml(file)
    for command in list_commands():
        if _knows(command.recipe, values):
            return command.recipe
    raise InputError(f"{file}: no command knows all of its keys")


def _knows(table: type[BaseModel], values: Mapping[str, object]) -> bool:
    for name, value in values.items():
        if name not in table.model_fields:
            return False
        inner = table_class(table.model_fields[name].annotation)
        # Whatever else takes a table (a dict, a list) takes keys of one's own choice.
        if inner is not None and isinstance(value, dict) and not _knows(inner, value):
            return False
    return True
