"""An output folder and its ``run.json``: whose it is, whether it is whole, what was counted and timed."""

import errno
import hashlib
import json
import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wm import __version__
from wm.config import Recipe
from wm.errors import InputError, OtherRunError

_WHOLE = "run.json"
_UNFINISHED = "run.unfinished.json"


class Run:
    """One stage's output folder.

    ``run.unfinished.json`` stands there while the stage works; it is renamed to ``run.json`` when the output is
    whole. A folder that holds another stage's or another recipe's run is refused, so nothing is overwritten.
    """

    def __init__(self, out: str | Path, stage: str, recipe: Recipe, inputs: Mapping[str, str] | None = None) -> None:
        """``inputs``: name → digest of what the stage reads (see :func:`digest_of`)."""
        self.out = Path(out)
        self.timings_s: dict[str, float] = {}
        self._started = time.time()
        self._how = recipe.HOW
        self._record: dict[str, Any] = {
            "stage": stage,
            "recipe": recipe.model_dump(mode="json"),
            "recipe_digest": recipe.digest(),
            "inputs": dict(inputs or {}),
            "wm_version": __version__,
        }

    @property
    def key(self) -> tuple[Any, ...]:
        return self._key_of(self._record)

    def _key_of(self, record: Mapping[str, Any]) -> tuple[Any, ...]:
        parts = [record.get("stage"), self._what(record), record.get("inputs")]
        return tuple(json.dumps(part, sort_keys=True) for part in parts)

    def _what(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """The recipe without the keys that do not change what comes out."""
        return {name: value for name, value in given(record.get("recipe") or {}).items() if name not in self._how}

    def is_whole(self) -> bool:
        """True if ``run.json`` of this very run stands in the folder; :class:`InputError` if another run does."""
        check_place(self.out)
        for name in (_WHOLE, _UNFINISHED):
            found = read_run(self.out, name)
            if found is None:
                continue
            if self._key_of(found) != self.key:
                state = "another run" if name == _WHOLE else "another run, unfinished"
                way_out = "choose another out" if name == _WHOLE else "choose another out, or remove that folder"
                raise OtherRunError(
                    f"{self.out} holds {state} ({_difference(found, self._record, self._how)}); {way_out}"
                )
            if name == _WHOLE:
                return True
        return False

    def start(self) -> None:
        """Create the folder and mark it unfinished. Call after :meth:`is_whole` returned False."""
        strangers = [] if (self.out / _UNFINISHED).exists() else _visible(self.out)
        if strangers:
            raise InputError(f"{self.out} is not empty ({strangers[0]}) and is no run of wm; choose another out")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"out = {str(self.out)!r}: cannot make this folder: {error.strerror}") from error
        write_json(self.out / _UNFINISHED, self._record)

    def reopen(self) -> None:
        """Make a whole run of this very recipe unfinished again: a part of it is to be done anew."""
        os.replace(self.out / _WHOLE, self.out / _UNFINISHED)

    def abandon(self) -> None:
        """Take the mark off a run of which nothing is kept, so that another recipe may use the folder."""
        (self.out / _UNFINISHED).unlink(missing_ok=True)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds spent inside to ``timings_s[name]``."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.timings_s[name] = round(self.timings_s.get(name, 0.0) + time.perf_counter() - begin, 3)

    def finish(self, counts: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Write ``run.json`` (the output is whole from here on) and return it."""
        record = self._record | {
            "counts": dict(counts),
            "timings_s": self.timings_s,
            "wall_s": round(time.time() - self._started, 3),
            "finished_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **more,
        }
        write_json(self.out / _WHOLE, record)
        (self.out / _UNFINISHED).unlink(missing_ok=True)
        return record


def given(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recorded recipe without the keys that are null, in its tables too: not to give a key is the same as not
    to know it, so that a run begun before a key was added is still the same run."""
    return {
        name: given(value) if isinstance(value, Mapping) else value
        for name, value in recipe.items()
        if value is not None
    }


def read_run(folder: str | Path, name: str = _WHOLE) -> dict[str, Any] | None:
    """The parsed ``run.json`` of a folder, or None."""
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
        where: Its place for the message, such as a file and a line.

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


def write_json(path: Path, value: Any) -> None:
    """Write JSON aside, then rename."""
    write_text(path, json.dumps(value, indent=1, sort_keys=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text aside, then rename; nothing is left of a failed attempt."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())  # or a power cut leaves the name without its content
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def digest_of(path: str | Path) -> str:
    """A digest of an input: of its ``run.json`` if it is a stage's output, else of names, sizes and times below it.

    Raises :class:`InputError` if nothing is there.
    """
    root = Path(path)
    if not root.exists():
        raise InputError(f"no such file or folder: {root}")
    digest = hashlib.sha256()
    for folder in (root, root.parent):
        record = read_run(folder) if folder.is_dir() else None
        if record is not None:
            identity = {name: record.get(name) for name in ("stage", "recipe", "inputs", "finished_at")}
            digest.update(json.dumps([identity, root.name], sort_keys=True).encode())
            return digest.hexdigest()[:16]
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.is_file():
            facts = file.stat()
            digest.update(f"{file.relative_to(root)}\x1f{facts.st_size}\x1f{facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def check_place(out: Path) -> None:
    """Refuse a name at which no folder can be made."""
    try:
        for place in (out, *out.parents):
            if place.exists() and not place.is_dir():
                raise InputError(f"out = {str(out)!r}: {place} is a file; expected a folder")
    except OSError as error:
        raise InputError(f"out = {str(out)!r:.300}: {error.strerror}") from error


def _visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any], how: Collection[str]) -> str:
    if found.get("stage") != wanted["stage"]:
        return f"of stage {found.get('stage')!r}, not {wanted['stage']!r}"
    old, new = found.get("recipe") or {}, wanted["recipe"]
    for name in sorted((set(old) | set(new)) - set(how)):
        if name not in old or name not in new or old[name] != new[name]:
            return f"recipe {_recipe_difference(name, old, new)}"
    old, new = found.get("inputs") or {}, wanted["inputs"]
    for name in sorted(set(old) | set(new)):
        if old.get(name) != new.get(name):
            return f"inputs {name} = {old.get(name)!r:.60} there, {new.get(name)!r:.60} here"
    return "it differs"


def _recipe_difference(name: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the key, inside of tables too, in which two recipes differ. A key that one of them lacks (an older version
    did not have it) is reported as not set: null would read as a value."""
    if isinstance(old.get(name), dict) and isinstance(new.get(name), dict):
        for key in sorted(set(old[name]) | set(new[name])):
            if key not in old[name] or key not in new[name] or old[name][key] != new[name][key]:
                return f"{name}.{_recipe_difference(key, old[name], new[name])}"
    before, after = (f"{recipe[name]!r:.60}" if name in recipe else "not set" for recipe in (old, new))
    return f"{name} = {before} there, {after} here"
