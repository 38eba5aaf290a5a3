"""Keep an output folder and its ``run.json``: which run it is of, whether it is complete, its counts and times.

Not known here: what a stage writes into the folder.
"""

import errno
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from wm import __version__, logs
from wm.config import Recipe
from wm.errors import InputError, OtherRunError
from wm.files.atomic import replace_file

RunRecord: TypeAlias = dict[str, Any]
"""What ``run.json`` holds: stage, recipe, inputs, counts (by name, nested where a stage likes), seconds, and what the
stage adds."""

_COMPLETE = "run.json"
_UNFINISHED = "run.unfinished.json"


class Run:
    """One stage's output folder.

    ``run.unfinished.json`` is there while the stage works; it becomes ``run.json`` when the output is
    complete. A folder that holds another stage's or another recipe's run is refused, so nothing is overwritten.
    """

    def __init__(self, out: str | Path, stage: str, recipe: Recipe, inputs: Mapping[str, str] | None = None) -> None:
        """Prepare a run; nothing is read or written yet.

        Args:
            out: Its folder.
            stage: Name of the stage.
            recipe: As it was given.
            inputs: Digest of each input by name (see :func:`digest_of`).
        """
        self.out = Path(out)
        self.timings_s: dict[str, float] = {}
        self._started = time.time()
        self._recipe_class = type(recipe)
        self._record: dict[str, object] = {
            "stage": stage,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_digest": recipe.digest(),
            "inputs": dict(inputs or {}),
            "wm_version": __version__,
        }

    @property
    def key(self) -> tuple[str, ...]:
        """Identity of the run: stage, identity settings and inputs, each as JSON."""
        return self._key_of(self._record)

    def _key_of(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        settings = self._recipe_class.identity_settings(record.get("recipe") or {})
        parts = (record.get("stage"), settings, record.get("inputs"))
        return tuple(json.dumps(part, sort_keys=True) for part in parts)

    def is_complete(self) -> bool:
        """Return whether this very run is complete in its folder.

        Raises:
            OtherRunError: The folder holds another run.
            InputError: ``out`` is no folder, or ``run.json`` is damaged.
        """
        check_place(self.out)
        # The complete mark first: a kill between the last two steps of finish() leaves both.
        for name in (_COMPLETE, _UNFINISHED):
            record = read_run(self.out, name)
            if record is None:
                continue
            # Never overwritten: another recipe's output may be somebody's only copy.
            if self._key_of(record) != self.key:
                state = "another run" if name == _COMPLETE else "another run, unfinished"
                way_out = "choose another out" if name == _COMPLETE else "choose another out, or remove that folder"
                raise OtherRunError(
                    f"{self.out} holds {state} ({_difference(record, self._record, self._recipe_class)}); {way_out}"
                )
            if name == _COMPLETE:
                return True
        return False

    def start(self) -> None:
        """Create the folder and mark it unfinished. Call after :meth:`is_complete` returned False.

        Raises:
            InputError: The folder holds files of something else, or cannot be made.
        """
        # Files that no run has marked are the user's own: nothing is written among them.
        is_unmarked = self.out.is_dir() and not (self.out / _UNFINISHED).exists()
        files = sorted(path.name for path in self.out.iterdir() if not path.name.startswith(".")) if is_unmarked else []
        if files:
            raise InputError(f"{self.out} is not empty ({files[0]}) and is no run of wm; choose another out")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # A full disk is no mistake of the recipe: it is reported as such.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"out = {str(self.out)!r}: cannot make this folder: {error.strerror}") from error
        write_json(self.out / _UNFINISHED, self._record)
        logs.bind(stage=str(self._record["stage"]), run=str(self._record["recipe_digest"]), out=str(self.out))

    def reopen(self) -> None:
        """Make a complete run of this very recipe unfinished again: a part of it is to be done anew."""
        os.replace(self.out / _COMPLETE, self.out / _UNFINISHED)

    def abandon(self) -> None:
        """Remove the mark of a run of which nothing is kept, so that another recipe may use the folder."""
        (self.out / _UNFINISHED).unlink(missing_ok=True)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to ``timings_s[name]``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[name] = round(self.timings_s.get(name, 0.0) + time.perf_counter() - begin, 3)

    def finish(self, counts: Mapping[str, object], **more: object) -> dict[str, Any]:
        """Write ``run.json``; the output is complete from here on.

        Args:
            counts: Rows, files and the like by name.
            more: Further fields of the record.

        Returns:
            The record.
        """
        record = self._record | {
            "counts": dict(counts),
            "timings_s": self.timings_s,
            "wall_s": round(time.time() - self._started, 3),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **more,
        }
        # Complete before it is no longer unfinished: a kill between the two loses nothing.
        write_json(self.out / _COMPLETE, record)
        (self.out / _UNFINISHED).unlink(missing_ok=True)
        return record


def read_run(folder: str | Path, name: str = _COMPLETE) -> dict[str, Any] | None:
    """Load the record of a run.

    Args:
        folder: Output folder of the run.
        name: Name of the file.

    Returns:
        The record; None if there is none.

    Raises:
        InputError: It is damaged.
    """
    path = Path(folder) / name
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of too many digits
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is damaged: expected a JSON object")
    return record


def parse_json(text: str | bytes, where: str) -> Any:
    """Parse JSON that somebody else wrote.

    Args:
        text: The text, or its bytes in UTF-8.
        where: Its origin for the message, such as a file and a line.

    Returns:
        What the text holds.

    Raises:
        InputError: It is no JSON, is nested too deeply, or has a number of more digits than Python reads.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise InputError(f"{where}: not valid JSON: nested too deeply") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not valid JSON: {error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not valid JSON: not UTF-8 text") from error
    except ValueError as error:  # Python's limit of digits
        raise InputError(f"{where}: not valid JSON: a number of more digits than are read") from error


def write_json(path: Path, value: object) -> None:
    """Write JSON to a temporary file, then rename it.

    Args:
        path: The file; its folder must exist.
        value: What JSON can hold.
    """
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text to a temporary file, then rename it; a failed attempt leaves nothing.

    Args:
        path: The file; its folder must exist.
        text: Its content.
    """
    with replace_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or a power cut leaves the name without its content


def digest_of(path: str | Path) -> str:
    """Compute a digest of an input.

    Args:
        path: A file or folder. For a stage's output, its ``run.json`` is digested, else names, sizes and times below.

    Returns:
        16 hexadecimal digits.

    Raises:
        InputError: Nothing is there.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(f"no such file or folder: {root}")
    digest = hashlib.sha256()
    # A stage's output, or a table in one: the run says what is in it, also where the files were copied.
    for folder in (root, root.parent):
        record = read_run(folder) if folder.is_dir() else None
        if record is not None:
            identity = {name: record.get(name) for name in ("stage", "recipe", "inputs", "finished_at")}
            digest.update(json.dumps([identity, root.name], sort_keys=True).encode())
            return digest.hexdigest()[:16]
    # Not the content: reading terabytes of videos would take hours.
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.is_file():
            facts = file.stat()
            digest.update(f"{file.relative_to(root)}\x1f{facts.st_size}\x1f{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def check_place(out: Path) -> None:
    """Raise :class:`InputError` if no folder can be made under a name: a file is there, or the name is too long."""
    try:
        # Parents too: a file among them would show only when the folder is made.
        for path in (out, *out.parents):
            if path.exists() and not path.is_dir():
                raise InputError(f"out = {str(out)!r}: {path} is a file; expected a folder")
    except OSError as error:
        raise InputError(f"out = {str(out)!r:.300}: {error.strerror}") from error


def _difference(record: Mapping[str, Any], expected: Mapping[str, Any], recipe_class: type[Recipe]) -> str:
    """Describe the first difference between a recorded run and the expected one."""
    if record.get("stage") != expected["stage"]:
        return f"of stage {record.get('stage')!r}, not {expected['stage']!r}"
    # The first difference is enough to decide what to do.
    old, new = (recipe_class.identity_settings(side.get("recipe") or {}) for side in (record, expected))
    for name in sorted(set(old) | set(new)):
        if name not in old or name not in new or old[name] != new[name]:
            return f"recipe {recipe_difference(name, old, new)}"
    old, new = record.get("inputs") or {}, expected["inputs"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            return f"inputs {name} = {old.get(name)!r:.60} there, {new.get(name)!r:.60} here"
    return "it differs"


def recipe_difference(name: str, old: Mapping[str, object], new: Mapping[str, object]) -> str:
    """Describe the first difference between two recipes at a key, inside of tables too.

    A key that one of them lacks (an older version did not have it) is reported as not set: null would read as a value.

    Args:
        name: The key, which one of them has at least.
        old: The recipe of the recorded run.
        new: The expected recipe.
    """
    old_table, new_table = old.get(name), new.get(name)
    # Down into tables, so that the very key is named.
    if isinstance(old_table, dict) and isinstance(new_table, dict):
        for key in sorted(set(old_table) | set(new_table)):
            if key not in old_table or key not in new_table or old_table[key] != new_table[key]:
                return f"{name}.{recipe_difference(key, old_table, new_table)}"
    before, after = (f"{recipe[name]!r:.60}" if name in recipe else "not set" for recipe in (old, new))
    return f"{name} = {before} there, {after} here"
