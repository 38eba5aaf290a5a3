"""List the rows of a bench of triplets without its images: ids, subsets, actions, names of the image files.

Not known here: codecs, models, predictions.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import pyarrow as pa

from wm.errors import InputError, MissingPathError, to_line
from wm.evaluation.recorded_inputs import fetch_recorded
from wm.evaluation.subsets import SubsetColumn
from wm.files.mirror import to_path
from wm.records import stable_id
from wm.runs import parse_json, read_run
from wm.tables import checked_files, open_parquet, triplets_folder

_COLUMNS = ["triplet_id", "dataset", "split", "class_label", "action", "source_image.path", "target_image.path"]


@dataclass(frozen=True)
class BenchRow:
    """A triplet of a bench, and where its images are."""

    triplet_id: str
    dataset: str
    split: str
    class_label: str
    action: str
    source_path: str  # name of the source's file as it was ingested; empty where unknown
    target_path: str
    file: str  # Parquet file of the triplet
    row: int  # row in that file
    number: int | None = None  # row in the set's own list, such as test.json; None where unknown
    list_id: str = ""  # the list's own id of the row; empty where it has none

    def subset(self, column: SubsetColumn) -> str:
        """Return the name of the subset that the row belongs to."""
        return {"dataset": self.dataset, "split": self.split, "class_label": self.class_label}[column]


def read_bench_rows(folder: str | Path) -> list[BenchRow]:
    """List the triplets below a folder; of a set that ``wm ingest`` wrote, with their rows in the set's list.

    Args:
        folder: Folder of triplets, or of a stage that has them below ``triplets``.

    Returns:
        The rows, in the order of the files' names.

    Raises:
        InputError: There is no triplet, a file is damaged, or two triplets share an id.
    """
    rows: list[BenchRow] = []
    for file in checked_files(triplets_folder(folder)):
        try:
            table = open_parquet(file).read(columns=_COLUMNS)
        except (pa.ArrowException, OSError) as error:
            raise InputError(f"{file} is damaged: {to_line(error)}") from error
        for number, row in enumerate(table.to_pylist()):
            source_path, target_path = ((row[f"{side}_image"] or {}).get("path") or "" for side in ("source", "target"))
            triplet_id, dataset, split, class_label, action = (row[name] or "" for name in _COLUMNS[:5])
            rows.append(
                BenchRow(triplet_id, dataset, split, class_label, action, source_path, target_path, str(file), number)
            )
    if not rows:
        raise InputError(f"no triplet in {folder}")
    # Predictions name triplets by their ids.
    ids: set[str] = set()
    for bench_row in rows:
        if bench_row.triplet_id in ids:
            raise InputError(f"{folder}: two triplets have the id {bench_row.triplet_id}")
        ids.add(bench_row.triplet_id)
    numbers = _list_numbers(folder)
    return [replace(row, number=numbers.get(row.triplet_id)) for row in rows]


def _list_numbers(folder: str | Path) -> dict[str, int]:
    """Map the ids of a set that ``wm ingest`` wrote to rows of its list; empty for other sets."""
    for stage_folder in (Path(folder), Path(folder).parent):
        record = read_run(stage_folder) or {}
        if record.get("stage") == "ingest":
            recipe, counts = record["recipe"], record["counts"]
            # The job makes an id of the row's name: all of them are made again.
            names = (f"{recipe['file']}#{number}" for number in range(_count_listed(record)))
            ids = (stable_id(recipe["dataset"], recipe["split"], name) for name in names)
            return {triplet_id: number for number, triplet_id in enumerate(ids)} if counts else {}
    return {}


def _count_listed(record: dict[str, dict[str, int]]) -> int:
    # A sample's rows may be anywhere in the list, whose length is only in the file.
    recipe = record["recipe"]
    path = Path(to_path(str(recipe["root"]))) / str(recipe["file"])
    if recipe.get("sample") and Path(fetch_recorded(str(path))).is_file():
        return len(parse_json(path.read_bytes(), str(path)))
    return int(record["counts"]["rows"])


def add_list_rows(rows: Sequence[BenchRow], path: str | Path) -> list[BenchRow]:
    """Add number and id of each triplet's row in a list of AURORA's layout, found by the names of both images.

    Args:
        rows: The triplets.
        path: The list, such as ``test.json``.

    Returns:
        The rows with ``number`` and ``list_id``.

    Raises:
        InputError: The file is no such list, or has no row with the images of a triplet.
    """
    if not Path(path).is_file():
        raise MissingPathError(path, "file", "; expected the bench's own list, such as test.json")
    entries = parse_json(Path(path).read_bytes(), str(path))
    if not isinstance(entries, list) or not all(isinstance(row, dict) for row in entries):
        raise InputError(f"{path}: expected a JSON list of objects with input and output")
    # As JSON, as a field of a foreign list may be anything, lists among them.
    by_names: dict[tuple[object, object], list[int]] = {}
    for number, row in enumerate(entries):
        key = (json.dumps(row.get("input")), json.dumps(row.get("output")))
        by_names.setdefault(key, []).append(number)
    numbered_rows = []
    for bench_row in rows:
        numbers = by_names.get((json.dumps(bench_row.source_path), json.dumps(bench_row.target_path)), [])
        if len(numbers) != 1:
            raise InputError(
                f"{path}: {len(numbers)} rows have the images of triplet {bench_row.triplet_id} "
                f"({bench_row.source_path}, {bench_row.target_path}); expected 1"
            )
        list_id = cast(dict[str, object], entries[numbers[0]]).get("id")
        numbered_rows.append(replace(bench_row, number=numbers[0], list_id="" if list_id is None else str(list_id)))
    return numbered_rows


def check_bench_ids(rows: Sequence[BenchRow], ids: Sequence[str], where: str) -> None:
    """Check that every id is one of the bench's triplets.

    Args:
        rows: The bench.
        ids: Ids that something else names.
        where: What names them, for the message.

    Raises:
        InputError: It names the first id that is not, and how many there are.
    """
    bench_ids = {row.triplet_id for row in rows}
    unknown = sorted({triplet_id for triplet_id in ids if triplet_id not in bench_ids})
    if unknown:
        raise InputError(
            f"{where} is of another bench: {len(unknown)} of its triplets, {unknown[0]!r:.60} the first, are not among "
            f"the {len(rows)} of {Path(rows[0].file).parent}"
        )
