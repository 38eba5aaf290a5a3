"""Plan, row filter and images of an export, against brute force."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.triplet_files import picture, triplet, write_output
from wm.datasets.export import PROVENANCE, Context, Part, RowFilter, Slice, plan_export, read_selection, write_part
from wm.datasets.export.plan import _Cutter
from wm.datasets.export.rows import file_key, first_image_size, image_of, iterate_rows, json_row
from wm.datasets.selection.algorithm import SELECTION_SCHEMA
from wm.errors import InputError
from wm.images import fit_square
from wm.records import TRIPLET_SCHEMA, stable_id
from wm.tables import write_table

ALL = RowFilter()


@pytest.fixture(scope="module")
def triplets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [triplet(number, (40, 60), split="test" if number % 5 == 0 else "train") for number in range(11)]
    return write_output(tmp_path_factory.mktemp("export"), rows) / "triplets"


@given(
    groups=st.lists(st.tuples(st.integers(0, 2), st.lists(st.booleans(), max_size=9)), max_size=6),
    max_rows=st.integers(1, 5),
    row_bytes=st.sampled_from([0.0, 1.0, 3.5, 100.0]),
)
@settings(max_examples=150, deadline=None)
def test_parts_hold_every_wanted_row_once_and_in_order(
    groups: list[tuple[int, list[bool]]], max_rows: int, row_bytes: float
) -> None:
    """Row groups of files 0, 1 and 2, each with a mask; a part may hold ten bytes."""
    cutter, masks = _Cutter(10, max_rows), {}
    for file in range(3):
        masks[file] = [keep for number, mask in groups if number == file for keep in mask]
        first = 0
        for number, mask in groups:
            if number == file:
                cutter.add(str(file), first, np.array(mask, bool), row_bytes)
                first += len(mask)
    parts = cutter.finish()
    expected = [(file, row) for file in range(3) for row, keep in enumerate(masks[file]) if keep]
    actual = []
    for number, part in enumerate(parts):
        rows = [
            (int(piece.file), row)
            for piece in part.slices
            for row in range(piece.start, piece.stop)
            if masks[int(piece.file)][row]
        ]
        assert (part.number, part.first_row, part.rows) == (number, len(actual), len(rows))
        assert 1 <= len(rows) <= max_rows and (len(rows) == 1 or len(rows) * row_bytes <= 10)
        actual += rows
    assert actual == expected
    if row_bytes == 0:
        assert len(parts) == -(-len(expected) // max_rows)


IDS = st.text(st.sampled_from("ab\u00e9\U0001f964"), max_size=4)


@given(chosen=st.lists(IDS.filter(bool), min_size=1, max_size=8), asked=st.lists(IDS, max_size=12))
@settings(max_examples=150, deadline=None)
def test_a_filter_finds_ids_as_a_set_does(chosen: list[str], asked: list[str]) -> None:
    rows = RowFilter(ids=np.unique(np.array([text.encode() for text in chosen])))
    table = pa.table({"triplet_id": pa.array(asked, pa.string())})
    assert rows.wanted(table).tolist() == [text in set(chosen) for text in asked]
    places = rows.positions(table.column("triplet_id"))
    assert all(
        rows.ids[position].decode() == text for position, text in zip(places, asked, strict=True) if position >= 0
    )


def test_a_plan_counts_and_splits_a_real_data_set(triplets: Path) -> None:
    heard: list[tuple[int, int]] = []
    plan = plan_export(triplets, ALL, max_bytes=2**30, max_rows=3, on_file=lambda *counts: heard.append(counts))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert [part.rows for part in plan.parts] == [3, 3, 3, 2]
    assert plan.parts[1].slices == (
        Slice(str(triplets / "shard-000000.parquet"), 3, 4),
        Slice(str(triplets / "shard-000001.parquet"), 0, 2),
    )
    assert (plan.rows, plan.exported, plan.not_selected, plan.other_split, plan.files) == (11, 11, 0, 0, 3)
    stored = sum(
        len(triplet(number, (40, 60))[f"{side}_image"]["bytes"])
        for number in range(11)
        for side in ("source", "target")
    )
    assert stored * 0.9 < plan.num_bytes < stored * 1.2
    small = plan_export(triplets, ALL, max_bytes=int(plan.num_bytes / 11 * 2.5), max_rows=100)
    assert {part.rows for part in small.parts[:-1]} == {2}
    ids = np.array([f"{number:024x}".encode() for number in (1, 5, 6, 10)])
    plan = plan_export(triplets, RowFilter("train", ids), max_bytes=2**30, max_rows=100, with_tasks=True)
    assert (plan.rows, plan.exported, plan.not_selected, plan.other_split) == (11, 2, 7, 2)
    assert plan.splits == ["train"] and plan.tasks.to_pylist() == sorted(
        {triplet(number)["action"] for number in (1, 6)}
    )
    context = Context("", RowFilter("train", ids))
    assert [row["triplet_id"] for row in iterate_rows(plan.parts[0], context)] == [
        f"{number:024x}" for number in (1, 6)
    ]


def test_rows_come_complete_from_any_slice_of_any_row_group(tmp_path: Path) -> None:
    rows = [triplet(number) for number in range(40)]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=TRIPLET_SCHEMA), path, row_group_size=7)
    for start, stop in ((0, 40), (0, 1), (6, 8), (7, 14), (17, 33), (39, 40)):
        part = Part(0, 0, stop - start, (Slice(str(path), start, stop),))
        actual = list(iterate_rows(part, Context("", ALL)))
        names = [*PROVENANCE, "source_image", "target_image"]
        assert actual == [{name: row[name] for name in names} for row in rows[start:stop]]


def test_an_older_file_without_the_reader_column_is_read(tmp_path: Path) -> None:
    table = pa.Table.from_pylist([triplet(0)], schema=TRIPLET_SCHEMA)
    columns = [name for name in table.column_names if name != "reader"]
    pq.write_table(table.select(columns), tmp_path / "old.parquet")
    plan = plan_export(tmp_path, ALL, max_bytes=1, max_rows=1)
    [row] = iterate_rows(plan.parts[0], Context("", ALL))
    assert all(row[name] == triplet(0)[name] for name in PROVENANCE if name in columns)
    assert row.get("reader") is None and json_row(row).keys() == set(PROVENANCE)


def encoded(kind: str, size: tuple[int, int] = (12, 20)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0, *size)).save(buffer, kind)
    return buffer.getvalue()


def test_images_keep_their_bytes_and_are_named_by_what_they_are() -> None:
    context = Context("", ALL)
    for kind, suffix in (("PNG", "png"), ("JPEG", "jpg"), ("WEBP", "webp"), ("BMP", "bmp")):
        row = {"triplet_id": "x", "source_image": {"bytes": encoded(kind), "path": None}}
        assert image_of(row, "source_image", context) == (encoded(kind), suffix)
        assert image_of(row, "source_image", replace(context, image_size=(12, 20)))[1] == suffix
        with pytest.raises(InputError, match="source_image of triplet x has 20 x 12 pixels, the first image 12 x 12"):
            image_of(row, "source_image", replace(context, image_size=(12, 12)))
    data, suffix = image_of({**row, "source_image": {"bytes": encoded("PNG")}}, "source_image", Context("", ALL, 8))
    np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(data))), fit_square(picture(0), 8))
    assert suffix == "png"
    for bad, sized in ((b"GIF89a..", None), (b"\x89PNG\r\n\x1a\nhalf", (1, 1)), (b"RIFF1234WAVE", None)):
        with pytest.raises(InputError, match=r"source_image of triplet x is no"):
            image_of({**row, "source_image": {"bytes": bad}}, "source_image", replace(context, image_size=sized))


def test_names_and_json_values() -> None:
    assert file_key("0a_B-9") == "0a_B-9"
    for odd in ("a.b", "../x", "", "é", "x" * 101, "a/b"):
        assert file_key(odd) == stable_id(odd)
    row = dict.fromkeys(PROVENANCE) | {"action_logprob": -np.inf, "motion": float("nan"), "source_time_s": 1.5}
    assert json_row(row) == dict.fromkeys(PROVENANCE) | {"source_time_s": 1.5}


def test_a_size_is_read_from_the_first_exported_row(triplets: Path) -> None:
    plan = plan_export(triplets, ALL, max_bytes=1, max_rows=1)
    assert first_image_size(plan, Context("", ALL)) == (40, 60)
    assert first_image_size(plan, Context("", ALL, 64)) == (64, 64)


def test_rows_that_cannot_be_exported_are_named(tmp_path: Path) -> None:
    good = triplet(0)
    for number, (changes, message) in enumerate(
        (
            ({"target_image": None}, "triplet 0{24} in .*has no target_image; export needs both"),
            ({"source_image": {"bytes": None, "path": "a.png"}}, "has no source_image"),
            ({"action": None}, "has no action"),
            ({"triplet_id": None}, "triplet None in .*has no triplet_id"),
        )
    ):
        folder = tmp_path / str(number)
        write_table([good | changes], folder / "a.parquet", TRIPLET_SCHEMA)
        plan = plan_export(folder, ALL, max_bytes=2**30, max_rows=9)
        with pytest.raises(InputError, match=message):
            list(iterate_rows(plan.parts[0], Context("", ALL)))
    for name in "ab":
        write_table([good], tmp_path / "twice" / f"{name}.parquet", TRIPLET_SCHEMA)
    plan = plan_export(tmp_path / "twice", ALL, max_bytes=2**30, max_rows=9)
    with pytest.raises(InputError, match=r"triplet_id 0{24} occurs twice; the second time in .*b\.parquet"):
        list(iterate_rows(plan.parts[0], Context("", ALL)))
    chosen = RowFilter(ids=np.array([b"0" * 24]))
    with pytest.raises(InputError, match=r"triplet_id 0{24} occurs twice in the triplets"):
        plan_export(tmp_path / "twice", chosen, max_bytes=2**30, max_rows=9)
    write_table([good, good], tmp_path / "pair" / "a.parquet", TRIPLET_SCHEMA)
    with pytest.raises(InputError, match=r"triplet_id 0{24} occurs twice in the triplets"):
        plan_export(tmp_path / "pair", chosen, max_bytes=2**30, max_rows=9)


def test_a_file_that_changed_or_broke_after_the_plan_is_named(triplets: Path, tmp_path: Path) -> None:
    file = tmp_path / "in" / "a.parquet"
    write_table([triplet(number) for number in range(3)], file, TRIPLET_SCHEMA)
    plan = plan_export(file.parent, ALL, max_bytes=2**30, max_rows=9)
    (tmp_path / "out").mkdir()
    context = Context(str(tmp_path / "out"), ALL)
    write_table([triplet(0)], file, TRIPLET_SCHEMA)
    with pytest.raises(InputError, match=r"part 0 of the export has 1 rows instead of 3; .*changed while"):
        write_part("webdataset", context, plan.parts[0])
    file.write_bytes(b"PAR1 broken")
    with pytest.raises(InputError, match=r"a\.parquet is damaged"):
        write_part("webdataset", context, plan.parts[0])
    assert not list((tmp_path / "out").glob(".*"))


def test_a_selection_is_read_from_either_folder(tmp_path: Path) -> None:
    rows = [{"triplet_id": text, "class_label": "", "score": 0.0, "rank_in_class": 0, "order": 0} for text in "cabé"]
    write_table(rows, tmp_path / "selection" / "part.parquet", SELECTION_SCHEMA)
    for folder in (tmp_path, tmp_path / "selection"):
        assert read_selection(folder).tolist() == [b"a", b"b", b"c", "é".encode()]
    write_table([], tmp_path / "selection" / "part.parquet", SELECTION_SCHEMA)
    with pytest.raises(InputError, match="holds no row"):
        read_selection(tmp_path)
