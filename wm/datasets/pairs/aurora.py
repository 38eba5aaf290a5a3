"""Read AURORA's layout (McGill-NLP/AURORA): a JSON list of ``{instruction, input, output}`` and images beside it.

Paths are relative to the root. Rows of AURORA-Bench also carry ``task``; those of tasks that are judged without a
target image carry no ``output``. The tabletop's supervised set is written in the same layout.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wm.errors import InputError
from wm.files.uris import escape_text, is_text
from wm.images import Pixels, decode_image


@dataclass(frozen=True)
class Item:
    """A pair of image files and the action between them. ``uri``: ``file.json#row``."""

    uri: str
    task: str
    source: str
    target: str
    action: str


@dataclass(frozen=True)
class Problem:
    """A row that cannot become a triplet. ``reason`` is a slug to count by; ``detail`` names the thing."""

    uri: str
    task: str
    reason: str
    detail: str


def list_items(root: str | Path, file: str) -> list[Item | Problem]:
    """List the rows of ``root/file``, in order; a row with a missing field or a wrong type is a :class:`Problem`.

    Raises:
        InputError: Root or file is missing, is no JSON list, is empty, or has no usable row at all.
    """
    path = Path(root) / file
    if not os.path.isdir(root):  # noqa: PTH112 - of a name that is too long, pathlib raises
        raise InputError(f"no such folder: root = {root!s:.200}")
    if not os.path.isfile(path):  # noqa: PTH113
        raise InputError(f"no such file: {path!s:.400} (AURORA layout: a JSON list of instruction, input, output)")
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, no UTF-8, a number of too many digits
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise InputError(
            f"{path} holds {type(rows).__name__} of length {len(rows) if isinstance(rows, list) else 1}; "
            "expected a non-empty list of rows"
        )
    default_task = path.parent.name
    entries = [_read_row(row, f"{file}#{index}", default_task) for index, row in enumerate(rows)]
    problems = [entry for entry in entries if isinstance(entry, Problem)]
    # Not one usable row means another layout, not a data set of rejects.
    if len(problems) == len(entries):
        raise InputError(f"{path}: no usable row; the first: {problems[0].detail}")
    return entries


def load_pair(root: str | Path, item: Item) -> tuple[Pixels, Pixels] | Problem:
    """Load both images of an item; a :class:`Problem` names a file that is missing, outside root or no image."""
    images = []
    for relative in (item.source, item.target):
        try:
            # Links are resolved first: a list from elsewhere may name any file of this machine.
            path = (Path(root) / relative).resolve()
            if not path.is_relative_to(Path(root).resolve()):
                return Problem(item.uri, item.task, "path_outside_root", f"{relative} leads out of {root}")
            if not path.is_file():
                return Problem(item.uri, item.task, "missing_file", f"no such image file: {relative}")
            images.append(decode_image(path.read_bytes(), relative))
        except InputError as error:
            return Problem(item.uri, item.task, "not_an_image", str(error))
        except (OSError, ValueError, RuntimeError) as error:
            # A name with a zero byte, a name too long, a loop of links, a file that may not be read.
            return Problem(item.uri, item.task, "unreadable_file", f"cannot read {relative[:200]!r}: {error}")
    return images[0], images[1]


def _read_row(row: Any, uri: str, default_task: str) -> Item | Problem:
    if not isinstance(row, dict):
        return Problem(uri, default_task, "not_a_row", f"{uri}: {row!r:.60}; expected an object")
    task = row.get("task", default_task)
    task = task if isinstance(task, str) and task and is_text(task) else default_task
    instruction = row.get("instruction")
    if isinstance(instruction, list):
        # Several people's words for one edit: the first is taken, so a row stays one triplet.
        instruction = instruction[0] if instruction else None
    values = {"instruction": instruction, "input": row.get("input"), "output": row.get("output")}
    for name, value in values.items():
        if value is None:
            fields = escape_text(", ".join(map(str, row)))
            return Problem(uri, task, "missing_field", f"{uri}: no {name!r}; found {fields}")
        if not isinstance(value, str) or not value.strip():
            return Problem(uri, task, "bad_field", f"{uri}: {name} = {value!r:.60}; expected non-empty text")
        if not is_text(value):
            return Problem(uri, task, "bad_field", f"{uri}: {name} = {value!r:.60} is no Unicode text")
    return Item(uri, task, str(row["input"]), str(row["output"]), str(instruction).strip())
