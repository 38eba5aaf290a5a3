"""Read AURORA's layout (McGill-NLP/AURORA): a JSON list of ``{instruction, input, output}`` and images beside it.

Paths are relative to the root. Rows of AURORA-Bench also carry ``task``; those of tasks that are judged without a
target image carry no ``output``. The tabletop's supervised set is written in the same layout.
"""

from collections.abc import Mapping
from pathlib import Path

from wm.datasets.layouts.base import ImagePair, Layout, Problem
from wm.datasets.videos.tables import json_keys, load_json_list
from wm.errors import InputError
from wm.files.uris import escape_text, is_text


def list_image_pairs(path: Path, name: str) -> list[ImagePair | Problem]:
    """List the rows in order; a row with a missing field or a wrong type is a :class:`Problem`.

    Args:
        path: The JSON file.
        name: Its name for messages and ids.

    Raises:
        InputError: The file is no JSON list, is empty, or has no usable row at all.
    """
    default_task = path.parent.name
    rows = [_read_row(row, f"{name}#{number}", default_task) for number, row in enumerate(load_json_list(path, name))]
    problems = [row for row in rows if isinstance(row, Problem)]
    # Not one usable row means another layout, not a data set of rejects.
    if len(problems) == len(rows):
        raise InputError(f"{path}: no usable row; the first: {problems[0].detail}")
    return rows


def _read_row(row: object, uri: str, default_task: str) -> ImagePair | Problem:
    if not isinstance(row, dict):
        return Problem(uri, default_task, "not_a_row", f"{uri}: {row!r:.60}; expected an object")
    # Without a task of its own a row is of the file's folder, which is the subset.
    task = row.get("task", default_task)
    task = task if isinstance(task, str) and task and is_text(task) else default_task
    instruction = read_instruction(row)
    values = {"instruction": instruction, "input": row.get("input"), "output": row.get("output")}
    if problem := check_fields(row, values, uri, task):
        return problem
    return ImagePair(uri, task, str(row["input"]), str(row["output"]), str(instruction).strip())


def read_instruction(row: Mapping[str, object]) -> object:
    """Return a row's instruction; of several annotators' words for one edit the first, so a row stays one triplet."""
    instruction = row.get("instruction")
    if isinstance(instruction, list):
        return instruction[0] if instruction else None
    return instruction


def check_fields(row: Mapping[str, object], values: Mapping[str, object], uri: str, task: str) -> Problem | None:
    """Check the texts without which a row cannot be a triplet.

    Args:
        row: As the file has it, for messages.
        values: The texts by the name of their field.
        uri: Name of the row.
        task: Its class label.

    Returns:
        What is wrong with the first bad one; None if all are texts.
    """
    for name, value in values.items():
        if value is None:
            fields = escape_text(", ".join(map(str, row)))
            return Problem(uri, task, "missing_field", f"{uri}: no {name!r}; found {fields}")
        if not isinstance(value, str) or not value.strip():
            return Problem(uri, task, "bad_field", f"{uri}: {name} = {value!r:.60}; expected non-empty text")
        if not is_text(value):
            return Problem(uri, task, "bad_field", f"{uri}: {name} = {value!r:.60} is no Unicode text")
    return None


LAYOUT = Layout(
    recognise_table=lambda head: bool({"instruction", "input", "output"} & json_keys(head)),
    table_example="a JSON list of instruction, input, output (AURORA)",
    list_image_pairs=list_image_pairs,
)
