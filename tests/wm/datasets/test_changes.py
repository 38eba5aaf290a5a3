"""Changed image codes: counted column by column as a loop over rows counts them."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.triplet_files import triplet
from wm.datasets.changes import Changes, changed_codes, count_changes, count_rows, sum_changes
from wm.errors import InputError
from wm.records import TRIPLET_SCHEMA
from wm.tables import write_table

codes = st.lists(st.integers(0, 3), min_size=3, max_size=3)
rows_of_codes = st.lists(st.one_of(st.none(), st.just(([], [])), st.tuples(codes, codes)), max_size=9)


@settings(max_examples=200, deadline=None)
@given(
    rows_of_codes,
    st.sampled_from([pa.list_(pa.uint16()), pa.large_list(pa.int32())]),
    st.integers(0, 4),
    st.integers(1, 3),
)
def test_counts_equal_a_loop(pairs, kind, cut, bound):
    sides = {
        name: [None if pair is None else pair[side] for pair in pairs]
        for side, name in enumerate(("source_codes", "target_codes"))
    }
    table = pa.table({name: pa.array(values, kind) for name, values in sides.items()})
    table = pa.concat_tables([table.slice(cut), table.slice(0, cut)])  # chunks, with offsets that do not begin at 0
    pairs = pairs[cut:] + pairs[:cut]
    expected = [sum(a != b for a, b in zip(*pair, strict=True)) if pair and pair[0] else None for pair in pairs]
    changed = changed_codes(table)
    assert changed.to_pylist() == expected
    few = sum(count is not None and count < bound for count in expected)
    assert count_rows(changed, bound) == Changes(len(pairs), few, expected.count(None))


def test_a_folder_is_counted_file_by_file(tmp_path: Path):
    copy = {"source_codes": [1, 2], "target_codes": [1, 2], "change": [0.0, 0.0]}
    write_table([triplet(0), triplet(2, **copy)], tmp_path / "a.parquet", TRIPLET_SCHEMA)
    write_table([triplet(4, **copy), triplet(1), triplet(6)], tmp_path / "b.parquet", TRIPLET_SCHEMA)
    assert count_changes(tmp_path) == Changes(rows=5, unchanged=2, without_codes=1)
    assert sum_changes([]) == Changes(0, 0, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no Parquet file below"):
        count_changes(tmp_path / "empty")
