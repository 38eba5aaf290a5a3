"""Run a job from the command line: recipe file, ``key=value``, ``--dry-run``, ``--help``, errors in one line.

Not known here: which jobs there are. Neither Ray nor torch is imported.
"""

import argparse
import errno
import os
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NoReturn, TextIO, TypeVar

from tqdm import tqdm

from wm import logs
from wm.buckets import show_uris
from wm.config import Recipe
from wm.errors import InputError, MissingPathError
from wm.files.mirror import shown
from wm.interrupts import TERMINATED, TerminatedError, quiet_when_unread, raise_on_terminate
from wm.paths import name_key
from wm.preflight import run_checks
from wm.recipe_help import describe_fields

RecipeT = TypeVar("RecipeT", bound=Recipe)

_KEYS_HEADING = """keys of the recipe, in the TOML file or as key=value, which overrides the file:
  a key of a table is given by its dotted name, or in the file below [table]:  sampling.top_p=0.9
  texts need no quotes on the command line, lists and tables are TOML:         seeds='[0, 1]'"""

PROGRESS_INTERVAL = "WM_PROGRESS_INTERVAL_S"
"""Variable with the seconds between two states of a progress bar, for a process whose output another one shows."""

_LOG_INTERVAL_S = 10.0
_LOG_FORMAT = "{desc}: {percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
"""Without a bar of blocks: a log is read as text."""

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


def main(
    recipe_class: type[RecipeT],
    run: Callable[..., object],
    *,
    name: str,
    description: str,
    argv: Sequence[str] | None = None,
    prog: str | None = None,
) -> int:
    """Parse the command line, load the recipe and call ``run(recipe, dry_run=…)``.

    Args:
        recipe_class: Whose keys the command takes.
        run: The job.
        name: Of the command, as in ``wm NAME``.
        description: For ``--help``.
        argv: Arguments; None: those of this process.
        prog: How the command is called, where it is not ``wm NAME``.

    Returns:
        The exit status. 0: done, or nothing left to do. 1: the disk is full or not writable, or memory does not
        suffice. 2: bad input. 130: interrupted. 143: stopped by SIGTERM, as ``ray job stop`` and Kubernetes send it.
        Each of the last four is reported in one line.
    """
    with quiet_when_unread(), raise_on_terminate():
        return _run(recipe_class, run, name=name, description=description, argv=argv, prog=prog)


def _run(
    recipe_class: type[RecipeT],
    run: Callable[..., object],
    *,
    name: str,
    description: str,
    argv: Sequence[str] | None,
    prog: str | None,
) -> int:
    """Parse, load and run; returns the exit status, errors being printed in one line."""
    parser = _build_parser(recipe_class, prog or f"wm {name}", description)
    arguments, options = parser.parse_known_intermixed_args(argv)
    out, recipe = "", None
    try:
        logs.configure()
        logs.bind(command=name)
        # Before the job starts: an error names the file or the key.
        if options:
            raise InputError(f"no such option: {options[0]:.200}; keys are given without dashes, as key=value")
        recipe = load_recipe(recipe_class, arguments.settings)
        out = str(getattr(recipe, "out", ""))
        run_checks(recipe)
        with show_uris(recipe):
            run(recipe, dry_run=arguments.dry_run)
    except TerminatedError:
        return TERMINATED  # reported when the signal came: there may be seconds left
    except KeyboardInterrupt:
        logs.report_error("interrupted; what is finished is kept, the same command resumes")
        return 130
    except Exception as error:
        cause = cause_to_report(error)
        if cause is None:
            raise  # a mistake of this program: its traceback is wanted
        if isinstance(cause, InputError):
            key = name_key(recipe, cause.path) if isinstance(cause, MissingPathError) and recipe is not None else None
            logs.report_error(f"error: {f'{key}: ' if key else ''}{shown(cause)}")
            return 2
        if _is_about_memory(cause):
            logs.report_error(f"error: out of memory: {str(cause).splitlines()[0]:.300}")
            return 1
        folder = f" (out = {out!r})" if out and getattr(cause, "filename", None) is None else ""
        logs.report_error(f"error: {shown(cause)}{shown(folder)}\nwhat is finished is kept, the same command resumes")
        return 1
    return 0


def _build_parser(recipe_class: type[Recipe], prog: str, description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"{_KEYS_HEADING}\n\n{describe_fields(recipe_class)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "settings",
        nargs="*",
        metavar="recipe.toml | key=value",
        help="one recipe at most: a file (any path that exists is one), or the name of an installed one, such as "
        "nano/demo; then overrides",
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, say what would be done, do nothing")
    return parser


def load_recipe(recipe_class: type[RecipeT], settings: Sequence[str]) -> RecipeT:
    """Load the recipe that a command line names: one file at most, and ``key=value`` overrides.

    Args:
        recipe_class: Whose keys are known.
        settings: A path that exists is the file, whatever characters it has; of the others, those with ``=`` are
            overrides.

    Raises:
        InputError: Two files are named, a text may be read both ways, or the recipe is wrong.
    """
    for text, following in pairwise([*settings, ""]):
        # A shell makes two or three arguments of key= value and key = value.
        is_cut = text.endswith("=") and following and "=" not in following and not os.path.isfile(following)  # noqa: PTH113
        if is_cut or text.startswith("=") or following.startswith("="):
            raise InputError(f"{text!r:.200} {following!r:.200}: write key=value without blanks around the sign")
    files = [text for text in settings if "=" not in text or _is_recipe_file(recipe_class, text)]
    if len(files) > 1:
        raise InputError(f"one recipe file at most, got {', '.join(files)}")
    # A misspelt path with = is caught here, before it is taken for an unknown key.
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
    """Return whether a text with ``=`` is a file; raise :class:`InputError` where it may as well be an override."""
    if not os.path.isfile(text):  # noqa: PTH113 - of a text that is too long for a path Path.is_file raises
        return False
    key = text.partition("=")[0].split(".")[0]
    # A .toml is meant as a recipe even where its name begins with a key.
    if key in recipe_class.model_fields and not text.lower().endswith(".toml"):
        raise InputError(
            f"{text!r:.200} is the key {key} with a value, and there is a file of that name here; write ./{text} for "
            "the file, or rename it"
        )
    return True


class _LogLines:
    """A log as a bar writes to it: each state is a line of its own, since what reads a log waits for complete lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._last_line = ""

    def write(self, text: str) -> None:
        line = text.strip()
        # A bar that is closed is written once more, and then the end of a line.
        if line and line != self._last_line:
            self._last_line = line
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(total: int, unit: str, description: str, done: int = 0) -> "tqdm[NoReturn]":
    """Build a tqdm bar that is redrawn twice a second on a terminal; where stderr is a log, a line every ten seconds,
    in JSON where the log is.

    Args:
        total: Number of units.
        unit: Their name.
        description: Text before the bar.
        done: Units that were finished before.
    """
    redraw_s = os.environ.get(PROGRESS_INTERVAL)
    is_json = logs.log_format() == "json"
    if not is_json and (redraw_s or sys.stderr.isatty()):
        interval_s = float(redraw_s or 0.5)
        return tqdm(total=total, initial=done, unit=unit, desc=description, mininterval=interval_s, dynamic_ncols=True)
    if is_json:
        interval_s = float(redraw_s or _LOG_INTERVAL_S)
        return logs.LoggedBar(total=total, initial=done, unit=unit, desc=description, mininterval=interval_s)
    return tqdm(
        total=total,
        initial=done,
        unit=unit,
        desc=description,
        mininterval=_LOG_INTERVAL_S,
        bar_format=_LOG_FORMAT,
        file=_LogLines(sys.stderr),
    )


def cause_to_report(error: BaseException) -> BaseException | None:
    """Find the bad input, or the trouble with disk or memory, that an exception is or comes from.

    Args:
        error: As it was caught.

    Returns:
        The exception to report in one line, or None if it is a mistake of this program.
    """
    visited: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in visited:
        visited.add(id(current))
        # Ray wraps what was raised in a worker: its exceptions carry it, and pretend to be of its class.
        wrapped = getattr(current, "cause", None)
        if isinstance(wrapped, BaseException):
            current = wrapped
        elif isinstance(current, InputError) or _is_about_the_disk(current) or _is_about_memory(current):
            return current
        else:
            current = current.__cause__
    return None


def _is_about_the_disk(error: BaseException) -> bool:
    # safetensors raises an exception of its own with the number in its words only.
    return (isinstance(error, OSError) and error.errno in _DISK_ERRORS) or f"os error {errno.ENOSPC})" in str(error)


def _is_about_memory(error: BaseException) -> bool:
    # torch's exception for a GPU is known by its name, as torch is not imported for this; for a CPU it has none.
    kind = type(error)
    is_torchs = kind.__name__ == "OutOfMemoryError" and kind.__module__.startswith("torch")
    return is_torchs or "DefaultCPUAllocator: can't allocate memory" in str(error)
