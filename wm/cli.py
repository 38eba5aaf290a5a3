"""What every job's command line shares: recipe file, ``key=value``, ``--dry-run``, ``--help``, errors in one line."""

import argparse
import errno
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from tqdm import tqdm

from wm.config import Recipe
from wm.errors import InputError

RecipeT = TypeVar("RecipeT", bound=Recipe)

_PLACE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def main(
    recipe_class: type[RecipeT],
    run: Callable[..., Any],
    *,
    name: str,
    description: str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> int:
    """Parse the command line, load the recipe, call ``run(recipe, dry_run=…)``; returns the exit status.

    ``prog`` is how the command is called, where it is no ``python -m jobs.NAME``.

    0: done (or nothing left to do). 1: the disk is full or may not be written, or memory does not suffice. 2: bad
    input. 130: interrupted.
    Each of the last three is told in one line.
    """
    parser = argparse.ArgumentParser(
        prog=prog or f"python -m jobs.{name}",
        description=description,
        epilog="recipe keys:\n" + describe_fields(recipe_class),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="recipe.toml | key=value",
        help="one recipe file at most (any path that exists is one), then overrides",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, do nothing")
    arguments = parser.parse_intermixed_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("wm.sampling").setLevel(logging.INFO)  # it tells which batch it chose
    out = ""
    try:
        recipe = load_recipe(recipe_class, arguments.settings)
        out = str(getattr(recipe, "out", ""))
        run(recipe, dry_run=arguments.dry_run)
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, the same command goes on", file=sys.stderr)
        return 130
    except Exception as error:
        found = cause_to_tell(error)
        if found is None:
            raise
        if isinstance(found, InputError):
            print(f"error: {found}", file=sys.stderr)
            return 2
        if _is_about_memory(found):
            print(f"error: out of memory: {str(found).splitlines()[0]:.300}", file=sys.stderr)
            return 1
        place = f" (out = {out!r})" if out and getattr(found, "filename", None) is None else ""
        print(f"error: {found}{place}\nwhat is finished is kept, the same command goes on", file=sys.stderr)
        return 1
    return 0


def load_recipe(recipe_class: type[RecipeT], settings: Sequence[str]) -> RecipeT:
    """Load the recipe that a command line names: one file at most, and ``key=value`` overrides.

    Args:
        recipe_class: Whose keys are known.
        settings: A path that exists is the file, whatever characters it has; of the others, those with ``=`` are
            overrides.

    Raises:
        InputError: Two files are named, a text may be read both ways, or the recipe is wrong.
    """
    files = [text for text in settings if "=" not in text or _is_recipe_file(recipe_class, text)]
    if len(files) > 1:
        raise InputError(f"one recipe file at most, got {', '.join(files)}")
    overrides = [text for text in settings if text not in files]
    for text in overrides:
        key = text.partition("=")[0]
        if os.sep in key:  # no key has one
            kind = "a folder" if os.path.isdir(text) else "no such file"  # noqa: PTH112 - takes any text
            raise InputError(f"{text!r:.200}: as a recipe file, {kind}; as key=value, {key!r} is no key")
    try:
        return recipe_class.load(files[0] if files else None, overrides)
    except InputError as error:
        # A misspelt path is read as an override: where that fails, say the other reading too.
        for text in overrides:
            key = text.partition("=")[0]
            if text.lower().endswith(".toml") and re.search(rf"\b{re.escape(key)}\b", str(error)):
                raise InputError(f"{error}; if {text!r:.200} is meant as a recipe file: no such file") from error
        raise


def _is_recipe_file(recipe_class: type[Recipe], text: str) -> bool:
    """Whether a text with ``=`` is a file; :class:`InputError` where it may as well be an override."""
    if not os.path.isfile(text):  # noqa: PTH113 - of a text that is too long for a path Path.is_file raises
        return False
    key = text.partition("=")[0].split(".")[0]
    if key in recipe_class.model_fields and not text.lower().endswith(".toml"):
        raise InputError(
            f"{text!r:.200} is the key {key} with a value, and there is a file of that name here; write ./{text} for "
            "the file, or rename it"
        )
    return True


def progress_bar(total: int, unit: str, description: str, done: int = 0) -> Any:
    """A tqdm bar that is redrawn twice a second on a terminal, and every ten seconds where stderr is a log."""
    interval_s = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, unit=unit, desc=description, mininterval=interval_s, dynamic_ncols=True)


def cause_to_tell(error: BaseException) -> BaseException | None:
    """The bad input, or the trouble with disk or memory, that an exception is, or comes from.

    Ray wraps what was raised in a worker: its exceptions carry it as ``cause``, and pretend to be of its class.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        inside = getattr(current, "cause", None)
        if isinstance(inside, BaseException):
            current = inside
        elif isinstance(current, InputError) or _is_about_the_disk(current) or _is_about_memory(current):
            return current
        else:
            current = current.__cause__
    return None


def _is_about_the_disk(error: BaseException) -> bool:
    # safetensors raises an exception of its own with the number in its words only.
    return (isinstance(error, OSError) and error.errno in _PLACE_ERRORS) or f"os error {errno.ENOSPC})" in str(error)


def _is_about_memory(error: BaseException) -> bool:
    """torch's exception for a GPU is known by its name (it is not imported for this); for a CPU it has none."""
    kind = type(error)
    is_torchs = kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch")
    return is_torchs or "DefaultCPUAllocator: can't allocate memory" in str(error)


def describe_fields(recipe_class: type[BaseModel], prefix: str = "") -> str:
    """One line a key: name, type, default, help."""
    lines = []
    for name, field in recipe_class.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            lines.append(describe_fields(kind, f"{prefix}{name}."))
            continue
        inside = _table_inside(kind)
        default = "required" if field.default is PydanticUndefined and field.default_factory is None else ""
        default = default or f"default {field.get_default(call_default_factory=True)!r}"
        kind_name = kind.__name__ if isinstance(kind, type) else str(kind).replace("typing.", "")
        help_text = " ".join((field.description or "").split())
        lines.append(f"  {prefix}{name}: {kind_name}, {default}. {help_text}")
        if inside is not None:
            place = f"{name}.NAME." if get_origin(kind) is dict else f"{name}[]."
            lines.append(describe_fields(inside, f"{prefix}{place}"))
    return "\n".join(lines)


def _table_inside(kind: Any) -> type[BaseModel] | None:
    """The recipe class that a list or dict of tables holds."""
    held = get_args(kind)[-1] if get_origin(kind) in (list, dict) else None
    return held if isinstance(held, type) and issubclass(held, BaseModel) else None
