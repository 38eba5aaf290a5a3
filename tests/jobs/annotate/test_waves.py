"""Shards go to Ray in waves, and marks are read side by side: order, numbers and memory by counting."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.annotate.marks import read_all
from jobs.annotate.waves import run_waves


class Blocks:
    """Stands for a data set of Ray's: its rows are the blocks' shard numbers."""

    def __init__(self, tables: list[pa.Table]) -> None:
        self.tables = tables

    def iter_rows(self) -> Any:
        return ({"shard": table["shard"][0].as_py(), "rows": table.num_rows} for table in self.tables)


def test_a_wave_is_begun_once_the_one_before_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray.data

    waves: list[int] = []

    def from_blocks(tables: list[pa.Table]) -> Blocks:
        waves.append(len(tables))
        return Blocks(tables)

    monkeypatch.setattr(ray.data, "from_blocks", from_blocks)
    listing = pa.table({"uri": [f"s3://b/{number}.mp4" for number in range(10)]})
    pending = {number: (2 * number, 2) for number in range(5)}
    rows = run_waves(listing, pending, lambda shards: shards, shards_a_wave=2)
    assert next(rows) == {"shard": 0, "rows": 2} and waves == [2]
    assert [row["shard"] for row in rows] == [1, 2, 3, 4] and waves == [2, 2, 1]
    assert list(run_waves(listing, {}, lambda shards: shards)) == []


def test_files_come_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / str(number) for number in range(50)]
    for number, path in enumerate(paths):
        path.write_text(str(number * number))
    # Whatever is read at a time.
    for at_once in (1, 7, 50, 8192):
        monkeypatch.setattr("jobs.annotate.marks._FILES_AT_ONCE", at_once)
        assert list(read_all(Path.read_text, paths)) == [(path, str(n * n)) for n, path in enumerate(paths)]
    assert list(read_all(Path.read_text, [])) == []
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list(read_all(Path.read_text, [*paths, tmp_path / "nowhere"]))
