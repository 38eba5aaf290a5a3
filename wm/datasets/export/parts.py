"""Write the parts of an export and the files above them; a marked part is complete and is not written again.

The marks (JSON with counts) are in ``out/.parts`` until the export is complete.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from wm.datasets.export import aurora, lerobot, lerobot_meta, webdataset
from wm.datasets.export.plan import Part, Plan
from wm.datasets.export.rows import Context, PartFacts
from wm.errors import InputError
from wm.files.mirror import publish, remove, uri_of
from wm.runs import write_json

Tick = Callable[[int], object]
"""Hears how many more rows are written."""


_LEFTOVERS = (".*.tmp", "images/.*.tmp", "data/*/.*.tmp", "meta/.*.tmp", "meta/episodes/*/.*.tmp")
"""What a killed process leaves half written."""


@dataclass(frozen=True)
class ExportFormat:
    """One layout. ``write`` writes a part and returns its facts (``rows``, ``licenses`` and what ``finish`` needs);
    ``finish`` writes what speaks of all parts, from their facts in order."""

    write: Callable[[Context, Part, Tick], PartFacts]
    finish: Callable[[Context, Plan, Sequence[PartFacts]], None]
    numbers_tasks: bool = False
    """Actions are numbered over the complete export, images have one size, rows one split."""


FORMATS: dict[str, ExportFormat] = {
    "aurora": ExportFormat(aurora.write, aurora.finish),
    "webdataset": ExportFormat(webdataset.write, webdataset.finish),
    "lerobot": ExportFormat(lerobot.write, lerobot_meta.finish, numbers_tasks=True),
}


def write_part(name: str, context: Context, part: Part, tick: Tick = lambda rows: None) -> PartFacts:
    """Write one part of an export and its mark.

    Args:
        name: A key of :data:`FORMATS`.
        context: What all parts share.
        part: Its rows.
        tick: Called with the number of rows written since.

    Returns:
        The part's facts.

    Raises:
        InputError: Rows cannot be exported.
        OSError: The disk is full or may not be written.
    """
    facts = FORMATS[name].write(context, part, tick)
    # The plan counted them; other rows now would break the numbering of later parts.
    if facts["rows"] != part.rows:
        raise InputError(
            f"part {part.number} of the export has {facts['rows']} rows instead of {part.rows}; "
            f"{part.slices[0].file} or a file after it changed while it was read"
        )
    # The mark last: it says that the part's files are there.
    folder = marks_folder(context.out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"part-{part.number:06d}.json", facts)
    publish(folder / f"part-{part.number:06d}.json")
    return facts


def read_marks(out: str | Path) -> dict[int, PartFacts]:
    """Load the facts of every complete part, by the part's number."""
    # A mark is renamed into its folder, so that one that is there is complete unless the disk is damaged.
    marks = {}
    for path in sorted(marks_folder(out).glob("part-*.json")):
        try:
            marks[int(path.stem.removeprefix("part-"))] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}; remove it, and its part is written again") from error
    return marks


def finish_export(name: str, context: Context, plan: Plan) -> list[PartFacts]:
    """Write what speaks of all parts; returns the parts' facts. Removes what killed
    processes left half written. The marks stay (see :func:`remove_marks`).

    Args:
        name: A key of :data:`FORMATS`.
        context: What all parts share.
        plan: What was exported.
    """
    # 1. Every part must be there: what speaks of all of them is made of their facts.
    marks = read_marks(context.out)
    missing = [part.number for part in plan.parts if part.number not in marks]
    if missing:
        raise InputError(f"{context.out} lacks part {missing[0]} of {len(plan.parts)}; run the command again")
    facts = [marks[part.number] for part in plan.parts]
    FORMATS[name].finish(context, plan, facts)
    # 2. Now nothing else writes here: what has no final name is of a killed process.
    for pattern in _LEFTOVERS:
        for path in Path(context.out).glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return facts


def remove_marks(out: str | Path) -> None:
    """Remove the marks, which say nothing more once the export is complete."""
    if uri_of(out) is not None:
        remove(marks_folder(out))
    shutil.rmtree(marks_folder(out), ignore_errors=True)


def marks_folder(out: str | Path) -> Path:
    """Return the folder of marks and fragments."""
    return Path(out) / ".parts"
