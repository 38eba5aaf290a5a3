"""Match the files that a system wrote with the rows of a bench, by a pattern of the rows' fields. Opens no file."""

import os
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from string import Formatter
from typing import NamedTuple

from wm.errors import InputError, MissingPathError
from wm.evaluation.bench_rows import BenchRow

FIELDS = {
    "task": "class_label of the triplet",
    "stem": "name of the source's file without its ending",
    "folder": "name of the folder of the source's file",
    "target_stem": "name of the target's file without its ending",
    "row": "row in the bench's own list, from 0; {row:05} with zeros in front",
    "id": "the list's own id of the row",
    "triplet_id": "id of the triplet",
}
"""Fields of a pattern that a row of the bench fills."""
NUMBERS = ("run", "candidate")
"""Fields of a pattern that stand for any number in a file's name."""

_NUMBER = "[0-9]{1,9}"
_WIDTH = re.compile("0?[0-9]{1,2}d?")


class OutputFile(NamedTuple):
    """A file that belongs to a row of the bench."""

    path: str  # below the folder
    run: int
    candidate: int


@dataclass(frozen=True)
class Matches:
    """Which files belong to which rows."""

    files: list[list[OutputFile]]  # of each row, by run and candidate; empty: none was found
    expected: list[str]  # the name that the pattern gives each row
    extra: list[str]  # files of no row, sorted


def match_outputs(folder: str | Path, pattern: str, rows: Sequence[BenchRow]) -> Matches:
    """Find the files of each row of a bench.

    Args:
        folder: The system's output folder.
        pattern: Path below the folder, with :data:`FIELDS` and :data:`NUMBERS` in braces.
        rows: The bench.

    Returns:
        The files of each row, and those of none.

    Raises:
        InputError: The pattern has an unknown field, or names one file for two rows; a row lacks a field; a row has two
            files of one run and candidate; or the folder is missing.
    """
    if not os.path.isdir(folder):  # noqa: PTH112 - of a name that is too long, pathlib raises
        raise MissingPathError(folder, "folder")
    segments = _parse_pattern(pattern)
    # 1. The name of each row, which must be its own.
    names = [_fill_pattern(segments, pattern, row) for row in rows]
    owners: dict[str, BenchRow] = {}
    for name, row in zip(names, rows, strict=True):
        other = owners.setdefault(name, row)
        if other is not row:
            raise InputError(_describe_clash(pattern, name, other, row))
    # 2. The files of each name.
    tree = _list_tree(folder)
    files = [sorted(_find_files(tree, name.split("/")), key=lambda file: file[1:]) for name in names]
    matched = _check_owners(files, rows)
    paths = (f"{parent}/{name}" if parent else name for parent, children in tree.items() for name in children)
    extra = sorted(path for path in paths if path not in tree and path not in matched)
    return Matches(files, [_to_text(name) for name in names], extra)


def _check_owners(files: Sequence[Sequence[OutputFile]], rows: Sequence[BenchRow]) -> set[str]:
    """Check that no file is of two rows, and no row has two files of one run and candidate; return the files."""
    owners: dict[str, str] = {}
    for of_row, row in zip(files, rows, strict=True):
        for file in of_row:
            owner = owners.setdefault(file.path, row.triplet_id)
            # Without a separator before a number, a1 and its candidate 2 look like a and its candidate 12.
            if owner != row.triplet_id:
                raise InputError(f"{file.path} fits the pattern for the triplets {owner} and {row.triplet_id}")
        for first, second in pairwise(of_row):
            if first[1:] == second[1:]:
                raise InputError(
                    f"{first.path} and {second.path} are both run {first.run}, candidate {first.candidate}"
                )
    return set(owners)


def _parse_pattern(pattern: str) -> list[tuple[str, str, str]]:
    """Cut a pattern into segments of literal text, the field after it, and the field's format."""
    expected = (
        f"expected a path below the folder, such as {{task}}/{{row}}.png; fields: {', '.join([*FIELDS, *NUMBERS])}"
    )
    try:
        segments = [(text, name or "", spec or "") for text, name, spec, _ in Formatter().parse(pattern)]
    except ValueError as error:
        raise InputError(f"pattern = {pattern!r:.200}: {error}; {expected}") from error
    used = [name for _, name, _ in segments if name]
    for _, name, spec in segments:
        if name and name not in (*FIELDS, *NUMBERS):
            raise InputError(f"pattern = {pattern!r:.200}: unknown field {name!r}; {expected}")
        if spec and (name != "row" or not _WIDTH.fullmatch(spec)):
            raise InputError(f"pattern = {pattern!r:.200}: format {spec!r}; only row takes one, such as {{row:05}}")
    twice = [name for name in NUMBERS if used.count(name) > 1]
    if twice or not pattern or not set(used) & set(FIELDS):
        problem = f"{{{twice[0]}}} occurs twice" if twice else "no field of a row, so that all rows have one file"
        raise InputError(f"pattern = {pattern!r:.200}: {problem}; {expected}")
    if pattern.startswith("/") or ".." in pattern.split("/"):
        raise InputError(f"pattern = {pattern!r:.200} leads out of the folder; {expected}")
    return segments


def _fields_of(row: BenchRow) -> dict[str, str]:
    """Compute the fields that a row has."""
    source, target = PurePosixPath(row.source_path), PurePosixPath(row.target_path)
    values = {
        "task": row.class_label,
        "stem": source.stem,
        "folder": source.parent.name,
        "target_stem": target.stem,
        "row": "" if row.number is None else str(row.number),
        "id": row.list_id,
        "triplet_id": row.triplet_id,
    }
    return {name: value for name, value in values.items() if value}


def _fill_pattern(segments: Sequence[tuple[str, str, str]], pattern: str, row: BenchRow) -> str:
    """Fill the row's fields in; run and candidate stay, between zero bytes."""
    values, parts = _fields_of(row), []
    for text, name, spec in segments:
        parts.append(text)
        if name in NUMBERS:
            parts.append(f"\0{name}\0")
        elif name:
            if name not in values:
                reason = {
                    "row": "the triplets are not of wm ingest; give bench_file, the bench's own list",
                    "id": "give bench_file, the bench's own list; not every row of AURORA-Bench has an id there",
                }.get(name, "the triplet has none")
                raise InputError(f"pattern = {pattern!r:.200}: no {{{name}}} for triplet {row.triplet_id}: {reason}")
            parts.append(format(int(values[name]), spec) if spec else values[name])
    # A name is looked up in the listing, never on the disk: dots lead nowhere.
    return "/".join(part for part in "".join(parts).split("/") if part not in ("", "."))


def _describe_clash(pattern: str, name: str, first: BenchRow, second: BenchRow) -> str:
    fields, others = _fields_of(first), _fields_of(second)
    differing = [f"{{{key}}}" for key in FIELDS if key in fields and fields[key] != others.get(key)]
    return (
        f"pattern = {pattern!r:.200} names one file, {_to_text(name)}, for the triplets {first.triplet_id} and "
        f"{second.triplet_id}; what differs between them: {', '.join(differing)}"
    )


def _to_text(name: str) -> str:
    return re.sub("\0(run|candidate)\0", r"{\1}", name)


def _list_tree(folder: str | Path) -> dict[str, list[str]]:
    """List a folder: path of each folder below it ("" for itself) → sorted names in it; hidden ones are left out."""
    tree = {}
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        relative = os.path.relpath(path, folder).replace(os.sep, "/")
        names = [*folders, *(name for name in files if not name.startswith("."))]
        tree["" if relative == "." else relative] = sorted(names)
    return tree


def _find_files(
    tree: Mapping[str, Sequence[str]], parts: Sequence[str], folder: str = "", numbers: Mapping[str, int] | None = None
) -> Iterator[OutputFile]:
    """Find the files whose path fits the parts of a filled pattern."""
    numbers = numbers or {}
    for name, more in _find_names(tree.get(folder, ()), parts[0]):
        path = f"{folder}/{name}" if folder else name
        values = {**numbers, **more}
        if len(parts) > 1:
            yield from _find_files(tree, parts[1:], path, values)
        elif path not in tree:  # a folder is no image
            yield OutputFile(path, values.get("run", 0), values.get("candidate", 0))


def _find_names(names: Sequence[str], part: str) -> Iterator[tuple[str, dict[str, int]]]:
    """Find the names in a folder that fit one part of a filled pattern, with their numbers."""
    prefix, *others = part.split("\0")
    start = bisect_left(names, prefix)
    if not others:
        if start < len(names) and names[start] == part:
            yield part, {}
        return
    # Odd segments are names of numbers.
    segments = [
        f"(?P<{segment}>{_NUMBER})" if at % 2 else re.escape(segment) for at, segment in enumerate(part.split("\0"))
    ]
    expression = re.compile("".join(segments))
    for name in names[start:]:
        if not name.startswith(prefix):
            return
        if fit := expression.fullmatch(name):
            yield name, {key: int(value) for key, value in fit.groupdict().items()}
