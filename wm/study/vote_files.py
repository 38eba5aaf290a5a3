"""Write votes as CSV, and read CSV and Parquet files of votes as answers to be checked. Knows no store."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Final

from wm.errors import InputError
from wm.evaluation.votes.records import Vote
from wm.evaluation.votes.tables import read_votes
from wm.study.imports import Answer, Row
from wm.study.study import Study

COLUMNS: Final = tuple(field.name for field in fields(Vote))
"""Of the CSV: the fields of a vote; ``systems`` is a JSON list, an absent choice is empty."""
NEEDED: Final = ("study_id", "participant", "item_id", "systems", "best", "worst", "seconds")
"""Without these a line says nothing; the others follow from the study, or may be unknown."""


def to_csv(votes: Sequence[Vote]) -> str:
    """Write a line a vote.

    Args:
        votes: In their order.

    Returns:
        CSV with :data:`COLUMNS`.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for vote in votes:
        values = asdict(vote) | {
            "systems": json.dumps(vote.systems, ensure_ascii=False),
            "is_check": int(vote.is_check),
        }
        passed = vote.passed_check
        values["passed_check"] = "" if passed is None else int(passed)
        writer.writerow([values[name] for name in COLUMNS])
    return text.getvalue()


def iterate_csv(study: Study, path: Path) -> Iterator[Row]:
    """Read a CSV of votes.

    Args:
        study: The study that the votes are of.
        path: The file, in UTF-8.

    Yields:
        A row a line: the answer, or why there is none.

    Raises:
        InputError: The file is no UTF-8, or lacks a column.
    """
    try:
        # Spreadsheets write a mark before the first letter.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}") from error
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        found = list(reader.fieldnames or ())
    except csv.Error as error:
        raise InputError(f"{path}: its first line is no CSV: {error}") from error
    if missing := [name for name in NEEDED if name not in found]:
        names = ", ".join(found) or "none"
        raise InputError(f"{path} lacks the column {missing[0]!r}; columns found: {names:.300}")
    # By hand, as an error of the reader ends no loop: the lines behind it are read too.
    while True:
        try:
            values = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(f"line {reader.line_num}", reason="no CSV", detail=str(error))
            continue
        yield _read_line(study, values, f"line {reader.line_num}")


def _read_line(study: Study, values: Mapping[str | None, str | None], line: str) -> Row:
    # Fewer values than columns are None, more are under the name None.
    if None in values or None in [values[name] for name in NEEDED]:
        return Row(line, reason="other number of columns", detail=f"expected {len(values) - (None in values)}")
    if values["study_id"] != study.study_id:
        return Row(line, reason="foreign task", detail=f"study_id {values['study_id']!r:.60}")
    systems = _read_systems(values["systems"] or "")
    if systems is None:
        return Row(line, reason="other systems", detail=f"{values['systems']!r:.100}, expected a JSON list of names")
    # Finite and positive is checked with all other sources.
    try:
        seconds = float(values["seconds"] or "")
    except ValueError:
        return Row(line, reason="no time", detail=f"seconds {values['seconds']!r:.60}")
    return Row(
        line,
        Answer(
            participant=values["participant"] or "",
            item_id=values["item_id"] or "",
            systems=systems,
            best=values["best"] or None,
            worst=values["worst"] or None,
            seconds=seconds,
            stored_at=values.get("stored_at") or "",
            origin=values.get("origin") or "",
        ),
    )


def _read_systems(text: str) -> tuple[str, ...] | None:
    try:
        names = json.loads(text)
    except (ValueError, RecursionError):
        return None
    # Another form would be split into letters.
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_list else None


def iterate_parquet(study: Study, path: Path) -> Iterator[Row]:
    """Read a Parquet file of votes, as ``wm study export`` writes it.

    Args:
        study: The study that the votes are of.
        path: The file.

    Yields:
        A row a vote: the answer, or why there is none.

    Raises:
        InputError: The file is damaged, or of another schema.
    """
    for number, vote in enumerate(read_votes(path), start=1):
        row_name = f"row {number}"
        if vote.study_id != study.study_id:
            yield Row(row_name, reason="foreign task", detail=f"study_id {vote.study_id!r:.60}")
            continue
        # Parquet of other programs may have nulls inside of a list, which no order knows.
        if None in vote.systems:
            yield Row(row_name, reason="other systems", detail=f"{list(vote.systems)!r:.100}")
            continue
        # What follows from the study is taken from there.
        names = ("participant", "item_id", "systems", "best", "worst", "seconds", "stored_at", "origin")
        values = {name: getattr(vote, name) for name in names}
        yield Row(row_name, Answer(**values | {"stored_at": vote.stored_at or ""}))
