"""What every job's command line shares: recipe file, ``key=value``, ``--dry-run``, ``--help``, errors in one line."""

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from wm.config import Recipe
from wm.errors import InputError

RecipeT = TypeVar("RecipeT", bound=Recipe)


def main(
    recipe_class: type[RecipeT],
    run: Callable[..., Any],
    *,
    name: str,
    description: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Parse the command line, load the recipe, call ``run(recipe, dry_run=…)``; returns the exit status.

    0: done (or nothing left to do). 2: bad input, told in one line. 130: interrupted.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m jobs.{name}",
        description=description,
        epilog="recipe keys:\n" + describe_fields(recipe_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="recipe.toml | key=value",
        help="one recipe file at most, then overrides",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, do nothing")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        files = [text for text in arguments.settings if "=" not in text]
        if len(files) > 1:
            raise InputError(f"one recipe file at most, got {', '.join(files)}")
        overrides = [text for text in arguments.settings if "=" in text]
        run(recipe_class.load(files[0] if files else None, overrides), dry_run=arguments.dry_run)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130
    return 0


def describe_fields(recipe_class: type[BaseModel], prefix: str = "") -> str:
    """One line a key: name, type, default, help."""
    lines = []
    for name, field in recipe_class.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines.append(describe_fields(kind, f"{prefix}{name}."))
            continue
        default = "required" if field.default is PydanticUndefined and field.default_factory is None else ""
        default = default or f"default {field.get_default(call_default_factory=True)!r}"
        kind_name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        help_text = " ".join((field.description or "").split())
        lines.append(f"  {prefix}{name}: {kind_name}, {default}. {help_text}")
    return "\n".join(lines)
