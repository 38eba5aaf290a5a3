"""A folder of annotated triplets to export, and recipes over it."""

from pathlib import Path
from typing import Any

from jobs.export import ExportRecipe
from tests.helpers.triplet_files import triplet, write_output
from wm.datasets.export import PROVENANCE
from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.tables import write_table

COUNT = 10


def write_world(folder: Path) -> Path:
    """Ten triplets of one size in three files."""
    return write_output(folder / "annotated", [triplet(number) for number in range(COUNT)])


def recipe(world: Path, out: Path, **changes: Any) -> ExportRecipe:
    plain = {"triplets": str(world / "triplets"), "out": str(out), "shard_rows": 4}
    return ExportRecipe(**(plain | changes))


def select(folder: Path, numbers: list[int], extra: tuple[str, ...] = ()) -> Path:
    ids = [f"{number:024x}" for number in numbers] + list(extra)
    rows = [{"triplet_id": text, "class_label": "", "score": 0.0, "rank_in_class": 0, "order": 0} for text in ids]
    write_table(rows, folder / "selection" / "part-00000.parquet", SELECTION_SCHEMA)
    return folder


def provenance(number: int, **changes: Any) -> dict[str, Any]:
    row = triplet(number) | changes
    return {name: row[name] for name in PROVENANCE}
