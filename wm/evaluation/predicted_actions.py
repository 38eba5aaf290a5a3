"""Define the table of actions that other systems read from a bench's pairs, and read such actions from JSON lines."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict, cast

import pyarrow as pa

from wm.errors import InputError
from wm.evaluation.bench_rows import BenchRow
from wm.runs import parse_json
from wm.tables import read_table

ACTION_SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("system", pa.string()),
        ("run", pa.int32()),
        ("action", pa.string()),
        ("origin", pa.string()),
    ]
)
"""One row = the action that a system read from source and target of a triplet in one run."""


class ActionRow(TypedDict):
    """A row of :data:`ACTION_SCHEMA`."""

    triplet_id: str
    system: str
    run: int
    action: str
    origin: str


def actions_folder(folder: str | Path) -> Path:
    """Return the folder of a prediction set's actions."""
    return Path(folder) / "actions"


def list_actions(folder: str | Path) -> list[ActionRow]:
    """List the actions of a prediction set; none where it has images only.

    Raises:
        InputError: A file is damaged or of another form.
    """
    if not actions_folder(folder).is_dir():
        return []
    return [cast(ActionRow, row) for row in read_table(actions_folder(folder), ACTION_SCHEMA).to_pylist()]


def read_actions(path: str | Path, rows: Sequence[BenchRow], system: str) -> tuple[list[ActionRow], list[str]]:
    """Read a file with ``{"triplet_id" | "row": …, "action": …, "run": …}`` in each line; ``run`` may be left out.

    Args:
        path: The file, UTF-8.
        rows: The bench; lines of other rows are named, not taken.
        system: Name of the system that made the actions.

    Returns:
        The actions, by run and then in the order of the bench, and the lines of no row of the bench, such as
        ``line 3: row 250``.

    Raises:
        InputError: It names the line, which is no such object, has no text, or is of a row and run that came before.
    """
    by_id = {row.triplet_id: index for index, row in enumerate(rows)}
    by_number = {row.number: index for index, row in enumerate(rows) if row.number is not None}
    actions: dict[tuple[int, int], ActionRow] = {}
    extra: list[str] = []
    try:
        lines = Path(path).read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"actions = {str(path)!r:.300}: cannot read it: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        entry = parse_json(line, where)
        index = _find_row(entry, by_id, by_number, where)
        # A list may cover more than the bench, such as its rows without a target.
        if index is None:
            name = next(name for name in ("triplet_id", "row") if name in entry)
            extra.append(f"line {number}: {name} {entry[name]!r:.60}")
            continue
        run, text = entry.get("run", 0), entry.get("action")
        if not isinstance(text, str) or not isinstance(run, int) or isinstance(run, bool) or not 0 <= run < 1 << 31:
            raise InputError(
                f"{where}: action = {text!r:.60}, run = {run!r:.20}; expected a text and a number from 0 up"
            )
        if (run, index) in actions:
            raise InputError(f"{where}: a second action for triplet {rows[index].triplet_id} in run {run}")
        # An empty action is an answer too, and a wrong one.
        actions[run, index] = ActionRow(
            triplet_id=rows[index].triplet_id, system=system, run=run, action=text.strip(), origin="external"
        )
    return [actions[key] for key in sorted(actions)], extra


def _find_row(entry: object, by_id: dict[str, int], by_number: dict[int, int], where: str) -> int | None:
    """Find the index of a line's row in the bench; None for a row of none."""
    expected = 'expected {"triplet_id": text or "row": number, "action": text}'
    if not isinstance(entry, dict) or ("triplet_id" in entry) == ("row" in entry):
        raise InputError(f"{where}: {entry!r:.80}; {expected}")
    # Without numbers of rows there is only one name that is certain.
    if "triplet_id" in entry:
        return by_id.get(str(entry["triplet_id"]))
    number = entry["row"]
    if not isinstance(number, int) or isinstance(number, bool):
        raise InputError(f"{where}: row = {number!r:.40}; {expected}")
    if not by_number:
        raise InputError(
            f"{where}: row = {number}, but the triplets are not of wm ingest; give triplet_id, or bench_file"
        )
    return by_number.get(number)
