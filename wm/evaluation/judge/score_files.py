"""Define the table of judgements by item, ``scores.parquet``, and read it. Knows no figure of them."""

from pathlib import Path

import pyarrow as pa

from wm.evaluation.judge.figures import ItemScore
from wm.tables import read_table

SCORES_SCHEMA = pa.schema(
    [
        ("triplet_id", pa.string()),
        ("subset", pa.string()),
        ("system", pa.string()),
        ("run", pa.int32()),
        ("sampling_seed", pa.int32()),
        ("num_candidates", pa.int32()),
        ("repeat", pa.int32()),
        ("editing_success", pa.float64()),
        ("minimal_editing", pa.float64()),
        ("final", pa.float64()),
        ("failure", pa.string()),
        ("key", pa.string()),
    ]
)
"""One row a judgement. Scores from 0 to 10; null, with a ``failure``, where there is none. ``key``: of the line in
``judgements``."""


def read_scores(folder: str | Path) -> list[ItemScore]:
    """Read the judgements of a complete judging, failed ones with their reason.

    Args:
        folder: Output folder of ``judge``.

    Returns:
        In the order of the table.

    Raises:
        InputError: The table is missing or damaged.
    """
    names = list(ItemScore.__annotations__)
    rows = read_table(Path(folder) / "scores.parquet", SCORES_SCHEMA, names).to_pylist()
    return [ItemScore(**row) for row in rows]


def list_judged_systems(folder: str | Path) -> list[str]:
    """List the systems of a complete judging, without reading its scores.

    Args:
        folder: Output folder of ``judge``.

    Raises:
        InputError: The table is missing or damaged.
    """
    table = read_table(Path(folder) / "scores.parquet", SCORES_SCHEMA, ["system"])
    names: list[str] = table["system"].unique().to_pylist()
    return names
