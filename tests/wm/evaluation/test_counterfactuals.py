"""Counterfactual actions of a bench: from a file, from a column, matched by id."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.helpers.triplet_files import triplet, write_output
from wm.errors import InputError
from wm.evaluation.counterfactuals import (
    match_counterfactuals,
    read_counterfactual_column,
    read_counterfactuals,
    write_counterfactuals,
)
from wm.tables import table_files


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    actions = {"a": "öffne die Tür", "b": 'move "it"\u2028 left'}
    write_counterfactuals(actions, tmp_path / "counterfactuals.jsonl")
    assert read_counterfactuals(tmp_path) == read_counterfactuals(tmp_path / "counterfactuals.jsonl") == actions


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"triplet_id": "a"}'], "line 1: .*expected .*action"),
        (['{"triplet_id": "a", "action": " "}'], "line 1: "),
        (['{"triplet_id": "a", "action": "x"}', "", "[]"], "line 3: "),
        (['{"triplet_id": "a", "action": "x"}', '{"triplet_id": "a", "action": "y"}'], "line 2: a second action for"),
        (["nonsense"], "line 1"),
    ],
)
def test_a_wrong_line_is_named(lines: list[str], message: str, tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        read_counterfactuals(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a file of lines"):
        read_counterfactuals(tmp_path)


def test_rows_are_matched_by_id() -> None:
    by_id = {"a": "close it", "c": " OPEN  it", "x": "of another bench"}
    matched = match_counterfactuals(by_id, ["a", "b", "c"], ["open it", "open it", "open it"], "f")
    assert matched.actions == ["close it", None, None]
    assert (matched.num_absent, matched.num_same) == (2, 1)
    with pytest.raises(InputError, match="f: none of its 3 counterfactual actions is of one of the 1 triplets"):
        match_counterfactuals(by_id, ["b"], ["open it"], "f")


def test_a_column_of_the_bench_is_read(tmp_path: Path) -> None:
    bench = write_output(tmp_path / "bench", [triplet(number) for number in range(3)])
    assert read_counterfactual_column(bench) == {}
    (file,) = table_files(bench / "triplets")
    table = pq.read_table(file)
    pq.write_table(table.append_column("counterfactual_action", pa.array(["close it", None, " "])), file)
    assert read_counterfactual_column(bench) == {f"{0:024x}": "close it"}
    pq.write_table(table.append_column("counterfactual_action", pa.array([1, 2, 3])), file)
    with pytest.raises(InputError, match="has counterfactual_action as int64, expected string"):
        read_counterfactual_column(bench)
