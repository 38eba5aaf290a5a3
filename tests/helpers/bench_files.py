"""A small bench in AURORA's layout, as jobs.ingest would write it, without Ray."""

import json
from pathlib import Path

import numpy as np

from wm.images import Pixels, encode_png
from wm.records import TRIPLET_SCHEMA, stable_id, triplet_row
from wm.runs import write_json
from wm.tables import write_table

TASKS = ("magicbrush", "magicbrush", "something", "something", "kubric")
MISSING_ROW = 5
"""Row of the list whose target is missing, so that it is no triplet."""


def bench_pair(number: int) -> tuple[Pixels, Pixels]:
    """Sample a source and a target of noise, 24 x 16 pixels."""
    rng = np.random.default_rng(100 + number)
    source, target = (rng.integers(0, 256, (16, 24, 3), dtype=np.uint8) for _ in range(2))
    return source, target


def listed_rows() -> list[dict[str, str]]:
    """Build the bench's own list: something's files all have one name, and row 4 shares its source with row 3's."""
    rows = []
    for number, task in enumerate((*TASKS, "kubric")):
        names = {"input": f"data/{task}/{number}/first.jpg", "output": f"data/{task}/{number}/last.jpg"}
        rows.append({"instruction": f"do {number}", "task": task, **names} | ({"id": f"s{number}"} if number else {}))
    return rows


def write_bench(folder: Path) -> Path:
    """Write ``test.json`` and the stage's folder ``bench`` below a folder; return the latter."""
    rows, out = listed_rows(), folder / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "test.json").write_text(json.dumps(rows))
    triplets = []
    for number, row in enumerate(rows[:MISSING_ROW]):
        source, target = bench_pair(number)
        triplets.append(
            triplet_row(
                triplet_id=stable_id("aurora-bench", "test", f"test.json#{number}"),
                dataset="aurora-bench",
                split="test",
                class_label=row["task"],
                action=row["instruction"],
                origin="human",
                source_image={"bytes": encode_png(source), "path": row["input"]},
                target_image={"bytes": encode_png(target), "path": row["output"]},
            )
        )
    write_table(triplets[:3], out / "triplets" / "part-00000.parquet", TRIPLET_SCHEMA)
    write_table(triplets[3:], out / "triplets" / "part-00001.parquet", TRIPLET_SCHEMA)
    recipe = {"root": str(folder), "file": "test.json", "dataset": "aurora-bench", "split": "test"}
    write_json(out / "run.json", {"stage": "ingest", "recipe": recipe, "counts": {"rows": len(rows)}})
    return out
