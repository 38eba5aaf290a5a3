"""Keep an output folder and its ``run.json``: which run it is of, whether it is complete, its counts and times.

Not known here: what a stage writes into the folder.
"""

import errno
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from wm import __version__, logs
from wm.config import Recipe
from wm.errors import InputError, OtherRunError
from wm.files.mirror import UNFINISHED, fetch, list_below, publish, remove, shown, uri_of
from wm.files.writer_lock import WriterLock
from wm.run_files import COMPLETE, digest_of, parse_json, read_run, write_json, write_text

if TYPE_CHECKING:
    from wm.files.lease import Lease

__all__ = [
    "Run",
    "RunRecord",
    "check_place",
    "digest_of",
    "parse_json",
    "read_run",
    "recipe_difference",
    "write_json",
    "write_text",
]

RunRecord: TypeAlias = dict[str, Any]
"""What ``run.json`` holds: stage, recipe, inputs, counts (by name, nested where a stage likes), seconds, and what the
stage adds."""


class Run:
    """One stage's output folder.

    ``run.unfinished.json`` is there while the stage works; it becomes ``run.json`` when the output is
    complete. A folder that holds another stage's or another recipe's run is refused, so nothing is overwritten; so is a
    second writer while the first lives.

    A folder may stand for one of a bucket (:mod:`wm.files.mirror`): then the bucket's marks count, and what is not
    published earlier is uploaded at the end, ``run.json`` last.
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
        self._right: Lease | WriterLock | None = None
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
        for name in (COMPLETE, UNFINISHED):
            record = read_run(self.out, name)
            if record is None:
                continue
            # Never overwritten: another recipe's output may be somebody's only copy.
            if self._key_of(record) != self.key:
                state = "another run" if name == COMPLETE else "another run, unfinished"
                way_out = "choose another out" if name == COMPLETE else "choose another out, or remove that folder"
                difference = _difference(record, self._record, self._recipe_class)
                raise OtherRunError(f"{shown(self.out)} holds {state} ({difference}); {way_out}")
            if name == COMPLETE:
                return True
        return False

    def start(self, *, leave: Sequence[str] = ()) -> None:
        """Create the folder and mark it unfinished. Call after :meth:`is_complete` returned False.

        One process at a time has the right to write, until :meth:`finish` or its end. In a bucket, what an earlier
        attempt has published is fetched.

        Args:
            leave: Names of files (shell patterns) of a bucket that the stage does not need to resume.

        Raises:
            InputError: The folder holds files of something else, cannot be made, or another writer has it.
        """
        uri = uri_of(self.out)
        if uri is not None:
            self._take(uri, leave)
        # Files that no run has marked are the user's own: nothing is written among them.
        is_unmarked = self.out.is_dir() and not any((self.out / name).exists() for name in (UNFINISHED, COMPLETE))
        files = sorted(path.name for path in self.out.iterdir() if not path.name.startswith(".")) if is_unmarked else []
        if files:
            self._let_go()
            raise InputError(f"{shown(self.out)} is not empty ({files[0]}) and is no run of wm; choose another out")
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            # A full disk is no mistake of the recipe: it is reported as such.
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise InputError(f"out = {str(self.out)!r}: cannot make this folder: {error.strerror}") from error
        if uri is None:
            self._lock()
        write_json(self.out / UNFINISHED, self._record)
        publish(self.out / UNFINISHED)
        # From here on the log says whose lines they are; run.json has the same digest.
        stage, digest = str(self._record["stage"]), str(self._record["recipe_digest"])
        logs.bind(stage=stage, run=digest, out=uri or str(self.out))

    def _take(self, uri: str, leave: Sequence[str]) -> None:
        """Become the writer of an output in a bucket, and make the local folder what the bucket has."""
        from wm.files.lease import Lease

        self._right = Lease(uri, str(self._record["stage"]))
        self._right.acquire()
        try:
            # What another attempt has left on this node, and never published, is no part of the output.
            if list_below(self.out, missing_ok=True):
                fetch(self.out, leave=leave, prune=True)
            elif self.out.is_dir():
                shutil.rmtree(self.out)
            self._check_unfinished()
        except BaseException:
            self._let_go()
            raise

    def _lock(self) -> None:
        """Become the writer of a folder that is in no bucket."""
        self._right = WriterLock(self.out, str(self._record["stage"]))
        self._right.acquire()
        try:
            self._check_unfinished()
        except BaseException:
            self._let_go()
            raise

    def _check_unfinished(self) -> None:
        # Another process may have finished this run while this one waited.
        if self.is_complete():
            raise InputError(f"{shown(self.out)} was completed meanwhile; run the command again to see its result")

    def _let_go(self) -> None:
        if self._right is not None:
            self._right.release()
            self._right = None

    def reopen(self) -> None:
        """Make a complete run of this very recipe unfinished again: a part of it is to be done anew."""
        if uri_of(self.out) is None:
            os.replace(self.out / COMPLETE, self.out / UNFINISHED)
            return
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / UNFINISHED, self._record)
        publish(self.out / UNFINISHED)
        remove(self.out / COMPLETE)

    def abandon(self) -> None:
        """Remove the mark of a run of which nothing is kept, so that another recipe may use the folder."""
        remove(self.out / UNFINISHED)
        self._let_go()

    def check_writer(self) -> None:
        """Raise :class:`InputError` if another writer has taken over this output meanwhile; for long work."""
        # Of a folder nobody can take it over while this process lives.
        if self._right is not None and not isinstance(self._right, WriterLock):
            self._right.check()

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
        # All of it before the mark that says so; a second writer's output is not marked as this one's.
        self.check_writer()
        publish(self.out)
        self.check_writer()
        # Complete before it is no longer unfinished: a kill between the two loses nothing.
        write_json(self.out / COMPLETE, record)
        publish(self.out / COMPLETE)
        remove(self.out / UNFINISHED)
        self._let_go()
        return record


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
