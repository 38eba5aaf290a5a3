"""Read and write counterfactual actions: for each triplet of a bench one that contradicts its own.

Not known here: who thinks of them (:mod:`wm.evaluation.contradictions`, the nano world) and what they are used for.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from wm.errors import InputError, to_line
from wm.records import TRIPLET_SCHEMA
from wm.runs import parse_json, write_text
from wm.tables import checked_files, open_parquet, triplets_folder
from wm.words import same_text

COUNTERFACTUALS_FILE = "counterfactuals.jsonl"
COLUMN = "counterfactual_action"
"""Column of a bench that may hold them."""
_EXPECTED = 'expected {"triplet_id": text, "action": text}'


@dataclass(frozen=True)
class Counterfactuals:
    """Counterfactual actions of a bench's rows."""

    actions: list[str | None]  # of each row; None where there is none
    source: str  # where they are from, for people
    num_same: int = 0  # rows whose counterfactual reads as their own action, which are without one

    @property
    def num_absent(self) -> int:
        """Return how many rows have none."""
        return sum(action is None for action in self.actions)


def write_counterfactuals(actions: Mapping[str, str], path: Path) -> None:
    """Write a file of lines ``{"triplet_id": …, "action": …}``, complete or not at all.

    Args:
        actions: Counterfactual action by triplet id.
        path: The file.
    """
    # Texts of any script stay readable.
    lines = (json.dumps({"triplet_id": key, "action": text}, ensure_ascii=False) for key, text in actions.items())
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_counterfactuals(path: str | Path) -> dict[str, str]:
    """Read a file of lines ``{"triplet_id": …, "action": …}``; further fields are passed over.

    Args:
        path: The file, or a folder that holds it as :data:`COUNTERFACTUALS_FILE`.

    Returns:
        Counterfactual action by triplet id.

    Raises:
        InputError: It names the line, which is no such object, has an empty action, or is of a triplet that came
            before.
    """
    file = Path(path) / COUNTERFACTUALS_FILE if Path(path).is_dir() else Path(path)
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise InputError(
            f"counterfactuals = {str(path)!r:.300}: cannot read {file}: {error.strerror}; expected a file of lines "
            f"with triplet_id and action, or an output folder of wm contradict"
        ) from error
    actions: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        where = f"{file}, line {number}"
        # People end files with empty lines.
        if not line.strip():
            continue
        entry = parse_json(line, where)
        fields = (entry.get("triplet_id"), entry.get("action")) if isinstance(entry, dict) else (None, None)
        triplet_id, action = fields
        # An empty action is no contradiction: rows without one have no line.
        if not isinstance(triplet_id, str) or not isinstance(action, str) or not action.strip():
            raise InputError(f"{where}: {entry!r:.80}; {_EXPECTED}")
        if triplet_id in actions:
            raise InputError(f"{where}: a second action for triplet {triplet_id}")
        actions[triplet_id] = action.strip()
    return actions


def read_counterfactual_column(folder: str | Path) -> dict[str, str]:
    """Read the bench's own column :data:`COLUMN`.

    Args:
        folder: Folder of triplets, or of a stage that has them below ``triplets``.

    Returns:
        Counterfactual action by triplet id; empty where no file has the column.

    Raises:
        InputError: A file is damaged, or the column holds something else than texts.
    """
    actions: dict[str, str] = {}
    for file in checked_files(triplets_folder(folder), TRIPLET_SCHEMA):
        with open_parquet(file) as parquet:
            # The column is nobody's but the user's: most benches lack it.
            if COLUMN not in parquet.schema_arrow.names:
                continue
            kind = parquet.schema_arrow.field(COLUMN).type
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)):
                raise InputError(f"{file} has {COLUMN} as {kind}, expected string")
            try:
                rows = parquet.read(columns=["triplet_id", COLUMN]).to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise InputError(f"{file} is damaged: {to_line(error)}") from error
        actions |= {row["triplet_id"]: row[COLUMN].strip() for row in rows if (row[COLUMN] or "").strip()}
    return actions


def match_counterfactuals(
    by_id: Mapping[str, str], ids: Sequence[str], actions: Sequence[str], source: str
) -> Counterfactuals:
    """Give each row of a bench its counterfactual action.

    Args:
        by_id: Counterfactual action by triplet id; others than the bench's are passed over.
        ids: Of the rows.
        actions: The rows' own actions. A counterfactual that reads as its row's own action contradicts nothing.
        source: Where they are from.

    Returns:
        One a row, or none.

    Raises:
        InputError: No row has one: they are another bench's.
    """
    # One stray match is not asked for more: a small limit may leave few rows.
    if not any(triplet_id in by_id for triplet_id in ids):
        raise InputError(
            f"{source}: none of its {len(by_id):,} counterfactual actions is of one of the {len(ids):,} triplets; were "
            "they made for another bench?"
        )
    matched: list[str | None] = []
    num_same = 0
    for triplet_id, action in zip(ids, actions, strict=True):
        text = by_id.get(triplet_id)
        # Counted apart: a model that repeats what it was to contradict is worth knowing.
        is_same = text is not None and same_text(text) == same_text(action)
        num_same += is_same
        matched.append(None if is_same else text)
    return Counterfactuals(matched, source, num_same)
