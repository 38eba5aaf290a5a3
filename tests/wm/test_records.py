"""Triplet and reject tables: rows go out and come back, mistakes are named, files are whole or absent."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from wm import tables
from wm.errors import InputError
from wm.images import encode_png
from wm.records import (
    REJECT_SCHEMA,
    TRIPLET_SCHEMA,
    RejectRow,
    TripletRow,
    check_triplet,
    reject_row,
    stable_id,
    triplet_row,
)
from wm.tables import read_table, table_files, write_table

PNG = encode_png(np.full((2, 3, 3), 7, np.uint8))
IMAGE = {"bytes": PNG, "path": "a.png"}


def values(**more: Any) -> dict[str, Any]:
    plain = {
        "dataset": "d",
        "split": "train",
        "source_image": IMAGE,
        "target_image": IMAGE,
        "action": "put the cup left",
        "origin": "human",
    }
    return plain | more


def coded(**more: Any) -> dict[str, Any]:
    codes = {"codec": "vq-1", "source_codes": [0, 65535], "target_codes": [1, 2], "change": [0.5, 1.25]}
    return values(**(codes | more))


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        triplet_row(**coded(triplet_id="a", video_uri="v.mp4", source_frame=3, target_frame=23, source_time_s=0.12)),
        triplet_row(**values(triplet_id="b", action="schiebe den Würfel", origin="human", license="MIT")),
        triplet_row(**coded(triplet_id="c", origin="idm", action_logprob=-3.5, action_tokens=4, motion=1.5)),
    ]
    assert write_table(rows, tmp_path / "t" / "part.parquet", TRIPLET_SCHEMA) == 3
    table = read_table(tmp_path / "t")
    assert table.schema.equals(TRIPLET_SCHEMA)
    assert table.to_pylist() == rows
    assert rows[1]["source_codes"] is None and rows[1]["status"] == "ok"
    assert read_table(tmp_path / "t", columns=["action"]).column_names == ["action"]


def test_rejects_come_back(tmp_path: Path) -> None:
    row = reject_row(uri="x.mp4", stage="annotate", outcome="failed", reason="no_video_stream", detail="x.mp4: audio")
    write_table([row], tmp_path / "r.parquet", REJECT_SCHEMA)
    assert read_table(tmp_path, REJECT_SCHEMA).to_pylist() == [row]
    assert row["reject_id"] == reject_row(**{**row_arguments(row), "detail": "other words"})["reject_id"]
    assert row["reject_id"] != reject_row(**{**row_arguments(row), "reason": "time_out"})["reject_id"]


def row_arguments(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "reject_id"}


def test_hugging_face_features_cover_every_column(tmp_path: Path) -> None:
    write_table([], tmp_path / "t.parquet", TRIPLET_SCHEMA)
    metadata = pq.read_schema(tmp_path / "t.parquet").metadata
    features = json.loads(metadata[b"huggingface"])["info"]["features"]
    assert list(features) == TRIPLET_SCHEMA.names
    assert features["source_image"] == features["target_image"] == {"_type": "Image"}
    assert features["source_codes"] == {"_type": "List", "feature": {"_type": "Value", "dtype": "uint16"}}
    assert features["change"]["feature"]["dtype"] == "float32"
    kinds = {name: feature["dtype"] for name, feature in features.items() if feature["_type"] == "Value"}
    assert kinds["source_time_s"] == "float64" and kinds["motion"] == "float32"
    assert kinds["source_frame"] == "int32" and kinds["action"] == "string"


def test_ids_depend_on_the_parts_alone() -> None:
    assert stable_id("a", 1, None) == stable_id("a", "1", "")
    assert stable_id("ab", "c") != stable_id("a", "bc")
    assert len(stable_id()) == 24 and stable_id("x") == "2d711642b726b04401627ca9"
    one, two = (triplet_row(**values(video_uri="v", source_frame=0, target_frame=frame)) for frame in (20, 40))
    assert one["triplet_id"] != two["triplet_id"]
    assert one["triplet_id"] == stable_id("d", "v", 0, 20)


@pytest.mark.parametrize(
    ("column", "changes"),
    [
        ("dataset", {"dataset": ""}),
        ("split", {"split": None}),
        ("origin", {"origin": "robot"}),
        ("action", {"action": "  "}),
        ("action", {"action": None}),
        ("action", {"action": 5}),
        ("source_image", {"source_image": None}),
        ("target_image", {"target_image": {"bytes": b"", "path": "x"}}),
        ("change", {"change": None}),
        ("change", {"target_codes": [1, 2, 3]}),
        ("codec", {"codec": None}),
        ("action_logprob", {"origin": "idm"}),
        ("action_logprob", {"origin": "idm", "action_logprob": -1.0, "action_tokens": 0}),
    ],
)
def test_a_bad_row_names_its_column(column: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^triplet T7: {column} = ") as caught:
        triplet_row(**coded(triplet_id="T7", **changes))
    assert "expected" in str(caught.value) and "\n" not in str(caught.value)


def test_typed_rows_have_the_columns_of_their_schemas() -> None:
    assert list(TripletRow.__annotations__) == TRIPLET_SCHEMA.names
    assert list(RejectRow.__annotations__) == REJECT_SCHEMA.names


def test_an_unknown_column_is_named_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"'akshun'.*triplet_id, dataset"):
        triplet_row(**values(akshun="x"))
    check_triplet(triplet_row(**coded()))


@pytest.mark.parametrize("reason", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: BaseException
) -> None:
    path = tmp_path / "t.parquet"
    write_table([triplet_row(**values(triplet_id="old"))], path, TRIPLET_SCHEMA)

    def half(writer: Any, *_: Any) -> None:
        assert any(file.suffix == ".tmp" for file in tmp_path.iterdir())  # the file is open and has its first bytes
        raise reason

    monkeypatch.setattr(tables.pq.ParquetWriter, "write_table", half)
    with pytest.raises(type(reason)):
        write_table([triplet_row(**values(triplet_id="new"))], path, TRIPLET_SCHEMA)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["t.parquet"]
    assert read_table(tmp_path).column("triplet_id").to_pylist() == ["old"]


def test_files_are_found_in_order_and_hidden_ones_left_out(tmp_path: Path) -> None:
    for name in ("b.parquet", "a/z.parquet", ".hidden.parquet", ".aside/c.parquet", "a/.z.parquet.12.tmp", "notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        write_table([triplet_row(**values(triplet_id=name))], path, TRIPLET_SCHEMA)
    assert table_files(tmp_path) == [tmp_path / "a" / "z.parquet", tmp_path / "b.parquet"]
    assert read_table(tmp_path).column("triplet_id").to_pylist() == ["a/z.parquet", "b.parquet"]
    assert read_table(tmp_path / "b.parquet").num_rows == 1
    hidden_parent = tmp_path / ".aside"
    assert table_files(hidden_parent) == [hidden_parent / "c.parquet"]


def test_reading_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such folder of Parquet files: .*nowhere"):
        read_table(tmp_path / "nowhere")
    with pytest.raises(InputError, match=f"no Parquet file below {tmp_path}"):
        read_table(tmp_path)


def test_reading_another_schema_or_a_damaged_file_names_the_file(tmp_path: Path) -> None:
    write_table([], tmp_path / "rejects" / "r.parquet", REJECT_SCHEMA)
    with pytest.raises(InputError, match=r"r\.parquet lacks the column 'triplet_id'; columns found: reject_id"):
        read_table(tmp_path / "rejects")
    for name, data in (("empty", b""), ("text", b"hello"), ("cut", _parquet_bytes(tmp_path)[:-20])):
        path = tmp_path / name / "x.parquet"
        path.parent.mkdir()
        path.write_bytes(data)
        with pytest.raises(InputError, match=rf"{name}/x\.parquet is not a readable Parquet file"):
            read_table(path.parent)


def test_damaged_pages_and_columns_of_other_types_name_the_file(tmp_path: Path) -> None:
    data = bytearray(_parquet_bytes(tmp_path))
    data[4:400] = b"\xff" * 396
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "x.parquet").write_bytes(data)
    with pytest.raises(InputError, match=r"page/x\.parquet is damaged"):
        read_table(tmp_path / "page")
    table = pa.Table.from_pylist([triplet_row(**coded())], schema=TRIPLET_SCHEMA)
    for column, wrong in (("source_codes", pa.array(["0 1"])), ("motion", pa.array(["fast"]))):
        place = table.column_names.index(column)
        other = table.set_column(place, column, wrong)
        (tmp_path / column).mkdir()
        pq.write_table(other, tmp_path / column / "x.parquet")
        with pytest.raises(InputError, match=rf"{column}/x\.parquet has {column} as string, expected"):
            read_table(tmp_path / column)


def _parquet_bytes(folder: Path) -> bytes:
    path = folder / "whole.parquet"
    write_table([triplet_row(**coded(triplet_id=str(number))) for number in range(50)], path, TRIPLET_SCHEMA)
    data = path.read_bytes()
    path.unlink()
    return data


def test_a_data_set_from_before_a_column_came_reads_it_as_null(tmp_path):
    path = tmp_path / "old.parquet"
    pq.write_table(pa.Table.from_pylist([], schema=TRIPLET_SCHEMA).drop_columns(["reader"]), path)
    assert read_table(path).schema.names == TRIPLET_SCHEMA.names
    image = {"bytes": b"x", "path": None}
    row = triplet_row(dataset="d", split="s", source_image=image, target_image=image, action="go", origin="human")
    pq.write_table(pa.Table.from_pylist([row], schema=TRIPLET_SCHEMA).drop_columns(["reader"]), path)
    assert read_table(path, columns=["action", "reader"]).to_pylist() == [{"action": "go", "reader": None}]
