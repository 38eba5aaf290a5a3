"""Read AURORA's layout (McGill-NLP/AURORA): a JSON list of ``{instruction, input, output}`` and images beside it.

Paths are relative to the root. Rows of AURORA-Bench also carry ``task``; those of tasks that are judged without a
target image carry no ``output``. The tabletop's supervised set is written in the same layout.
"""

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
    return ImagePair(uri, task, str(row["input"]), str(row["output"]), str(instruction).strip())


LAYOUT = Layout(
    recognise_table=lambda head: bool({"instruction", "input", "output"} & json_keys(head)),
    table_example="a JSON list of instruction, input, output (AURORA)",
    list_image_pairs=list_image_pairs,
)
