"""What a stage left behind, opened by the tools people use."""

from pathlib import Path

import datasets
import duckdb
import pandas as pd
import pytest

from wm.records import REJECT_SCHEMA, TRIPLET_SCHEMA

TRIPLET_TYPES = {"source_image": datasets.Image(), "source_codes": datasets.List(datasets.Value("uint16"))}


def check_table(out: Path, name: str | None, columns: list[str], rows: int, split: str = "train") -> None:
    """Open a table of a folder by ``datasets``, in a stream and whole, and compare its columns and rows."""
    args = (str(out),) if name is None else (str(out), name)
    streamed = datasets.load_dataset(*args, split=split, streaming=True)
    assert list(streamed.features) == columns and len(list(streamed)) == rows
    if rows:
        table = datasets.load_dataset(*args, split=split)
        assert list(table.features) == columns and len(table) == rows
    else:  # no version of datasets holds a split without rows in memory
        with pytest.raises(ValueError, match="corresponds to no data"):
            datasets.load_dataset(*args, split=split)


def check_stage(out: Path, triplets: int, rejects: int) -> None:
    """Open both tables of a stage's output, the triplets as the default, by ``datasets``, pandas and DuckDB."""
    check_table(out, None, TRIPLET_SCHEMA.names, triplets)
    check_table(out, "triplets", TRIPLET_SCHEMA.names, triplets)
    check_table(out, "rejects", REJECT_SCHEMA.names, rejects)
    features = datasets.load_dataset(str(out), split="train", streaming=True).features
    assert {name: features[name] for name in TRIPLET_TYPES} == TRIPLET_TYPES
    for name, schema, rows in (("triplets", TRIPLET_SCHEMA, triplets), ("rejects", REJECT_SCHEMA, rejects)):
        table = pd.read_parquet(out / name)
        assert (list(table.columns), len(table)) == (schema.names, rows)
        assert duckdb.sql(f"SELECT count(*) FROM '{out}/{name}/*.parquet'").fetchall() == [(rows,)]
