"""AURORA's four training sets and MagicBrush's Parquet files, each in the layout in which it is released."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.ingest.job import IngestRecipe, run
from jobs.ingest.rows import list_rows, load_row
from tests.helpers.video_files import marked_frame, read_mark, write_video
from wm.datasets.layouts.base import Problem, StoredPair
from wm.datasets.layouts.labelled import list_labelled
from wm.datasets.layouts.stored_images import StoredImages
from wm.errors import InputError
from wm.images import decode_image, encode_png
from wm.records import REJECT_SCHEMA
from wm.tables import read_table
from wm.video.isolation import IsolatedProcess

DATA = Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "data"
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
MAGICBRUSH = pa.schema(
    [
        ("img_id", pa.string()),
        ("turn_index", pa.int32()),
        ("source_img", IMAGE),
        ("mask_img", IMAGE),
        ("instruction", pa.string()),
        ("target_img", IMAGE),
    ]
)


def ingest(name: str, root: Path, *overrides: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    out = root.parent / "out"
    record = run(IngestRecipe.load(DATA / name, [f"root={root}", f"out={out}", "resources.num_workers=0", *overrides]))
    rows = read_table(out / "triplets").to_pylist()
    rejects = read_table(out / "rejects", REJECT_SCHEMA).to_pylist()
    assert record["counts"]["rows"] == len(rows) + len(rejects)
    return rows, rejects, record["counts"]


def image(value: int) -> bytes:
    return encode_png(np.full((4, 6, 3), value, np.uint8))


@pytest.mark.parametrize(
    ("name", "folder", "names"),
    [
        ("aurora-ag.toml", "data/ag", ("1K0SU.mp4_4_left.png", "1K0SU.mp4_4_right.png")),
        ("aurora-magicbrush.toml", "data/magicbrush", ("0-input.png", "0-output.png")),
        ("aurora-kubric.toml", "data/kubric", ("closer/6566/image0.jpg", "closer/6566/image1.jpg")),
    ],
)
def test_pairs_of_files_below_the_repository(tmp_path: Path, name: str, folder: str, names: tuple[str, str]) -> None:
    root = tmp_path / "AURORA"
    paths = [f"{folder}/images/{file}" for file in names]
    for value, path in enumerate(paths, 10):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(image(value))
    row = {"instruction": "open the door", "input": paths[0], "output": paths[1]}
    # MagicBrush's own rows carry two more fields, neither of which is a path from the root.
    more = {"mask": "0-mask.png", "img_id": "327726"} if "magicbrush" in name else {}
    absent = row | {"output": f"{folder}/images/none.png"}
    (root / folder / "train.json").write_text(json.dumps([row | more, absent | more]))
    (triplet,), (reject,), _ = ingest(name, root)
    assert (triplet["action"], triplet["class_label"]) == ("open the door", Path(folder).name)
    assert [decode_image(triplet[side]["bytes"], side)[0, 0, 0] for side in ("source_image", "target_image")] == [
        10,
        11,
    ]
    assert (reject["uri"], reject["reason"]) == (f"{folder}/train.json#1", "missing_file")


def test_instructions_for_videos_that_people_download(tmp_path: Path) -> None:
    root = tmp_path / "AURORA"
    videos = root / "data" / "something" / "videos"
    options = {"deadline": "realtime", "cpu-used": "8", "crf": "4", "b": "0"}
    for start, name in ((0, "36"), (20, "106")):
        frames = [marked_frame(start + at) for at in range(12)]
        write_video(videos / f"{name}.webm", frames, fps=12, codec="libvpx-vp9", options=options)
    # A download that was broken off: its last frames cannot be decoded.
    data = (videos / "106.webm").read_bytes()
    (videos / "206.webm").write_bytes(data[: len(data) * 2 // 3])
    folder = "data/something/frames_validation_2K"  # this folder is in no release
    rows: list[Any] = [
        {"id": "36", "instruction": "make remote fall down", "input": f"{folder}/36/first.jpg", "output": "elsewhere"},
        {"id": 106, "instruction": ["open waste basket", "other words"]},
        {"instruction": "unfold cloth", "input": f"{folder}/206/first.jpg", "output": f"{folder}/206/last.jpg"},
        {"id": "404", "instruction": "close a box"},
        {"id": "36", "instruction": "again"},
        {"id": "../36", "instruction": "leave the folder"},
        {"id": "7"},
        {"instruction": "no video is named"},
        "no row",
    ]
    (root / "data" / "something" / "train.json").write_text(json.dumps(rows))
    triplets, rejects, counts = ingest("aurora-something.toml", root)
    found = {row["video_uri"].rpartition("/")[2]: row for row in triplets}
    assert {name: row["action"] for name, row in found.items()} == {
        "36.webm": "make remote fall down",
        "106.webm": "open waste basket",
        "206.webm": "unfold cloth",
    }
    marks = {
        name: [read_mark(decode_image(row[f"{side}_image"]["bytes"], side)) for side in ("source", "target")]
        for name, row in found.items()
    }
    last = found["206.webm"]["target_frame"]
    assert 0 < last < 11
    assert marks == {"36.webm": [0, 11], "106.webm": [20, 31], "206.webm": [20, 20 + last]}
    assert counts["triplets_by_class"] == {"something": 3}
    assert sorted((row["uri"].rpartition("/")[2], row["reason"]) for row in rejects) == [
        ("36.webm", "duplicate"),
        ("404.webm", "missing_file"),
        ("train.json#5", "bad_field"),
        ("train.json#6", "missing_field"),
        ("train.json#7", "missing_field"),
        ("train.json#8", "not_a_row"),
    ]


def write_shard(path: Path, rows: list[dict[str, Any]], **changes: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = [{"img_id": "1", "turn_index": 1, "mask_img": None} | row for row in rows]
    pq.write_table(pa.Table.from_pylist(stored, MAGICBRUSH), path, row_group_size=9, **changes)


def edit(value: int, **changes: Any) -> dict[str, Any]:
    sides = {"source_img": {"bytes": image(value), "path": "a.png"}, "target_img": {"bytes": image(value + 100)}}
    return {"instruction": f"edit {value}", **sides} | changes


def test_parquet_files_that_hold_the_images(tmp_path: Path) -> None:
    root = tmp_path / "MagicBrush"
    write_shard(root / "data" / "train-00000-of-00002-aa.parquet", [edit(value) for value in range(40)])
    odd = [
        edit(40),
        edit(41, source_img=None),
        edit(42, target_img={"bytes": b"no image", "path": None}),
        edit(43, instruction=None),
        edit(44, instruction="  "),
    ]
    write_shard(root / "data" / "train-00001-of-00002-bb.parquet", odd)
    write_shard(root / "data" / "dev-00000-of-00001-cc.parquet", [edit(99)])
    rows, rejects, counts = ingest("magicbrush.toml", root)
    assert counts["triplets_by_class"] == {"magicbrush": 41}
    for value, row in enumerate(rows):
        assert row["action"] == f"edit {value}" and row["dataset"] == "magicbrush"
        sides = [decode_image(row[side]["bytes"], side)[0, 0, 0] for side in ("source_image", "target_image")]
        assert sides == [value, value + 100]
    second = "data/train-00001-of-00002-bb.parquet"
    assert [(row["uri"], row["reason"]) for row in rejects] == [
        (f"{second}#1", "missing_file"),
        (f"{second}#2", "not_an_image"),
        (f"{second}#3", "missing_field"),
        (f"{second}#4", "bad_field"),
    ]
    # Recognised without a name, and one file alone is a set too.
    assert len(list_labelled(root, "data/dev-00000-of-00001-cc.parquet")) == 1
    # A pattern as absolute as a file may be, below root or not.
    for folder in (root, tmp_path / "elsewhere"):
        folder.mkdir(exist_ok=True)
        assert len(list_labelled(folder, f"{root}/data/train-*.parquet")) == 45


def test_rows_in_any_order_are_the_same_images(tmp_path: Path) -> None:
    write_shard(tmp_path / "train.parquet", [edit(value) for value in range(30)])
    write_shard(tmp_path / "train2.parquet", [edit(value) for value in range(50, 60)])
    rows = list_labelled(tmp_path, "train*.parquet")
    reader = StoredImages()
    for number in (17, 3, 4, 35, 29, 30, 29, 8, 9):
        row = rows[number]
        assert isinstance(row, StoredPair)
        images = reader.load(row)
        assert not isinstance(images, Problem)
        assert (images[0][0, 0, 0], images[1][0, 0, 0]) == (int(row.action[5:]), int(row.action[5:]) + 100)
    # A file that has gone is a reject of each of its rows, and the others can still be read.
    (tmp_path / "train.parquet").unlink()
    recipe = IngestRecipe(root=str(tmp_path), file="train*.parquet", out="out")
    with IsolatedProcess() as process:
        assert [getattr(load_row(recipe, process, rows[at], StoredImages()), "reason", "") for at in (0, 31)] == [
            "unreadable_file",
            "",
        ]
    assert len(list_rows(recipe)) == 10


def test_other_tables_are_refused_in_a_line(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.parquet", [edit(1, instruction=None)])
    pq.write_table(pa.table({"instruction": ["x"], "source_img": ["a.png"]}), tmp_path / "b.parquet")
    other = {"instruction": ["x"], "source_img": ["a.png"], "target_img": ["b.png"]}
    pq.write_table(pa.table(other), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 broken")
    (tmp_path / "1.webm").write_bytes(b"video")
    for name in ("e.json", "f.json"):
        (tmp_path / name).write_text('[{"instruction": 1}]')
    for file, layout, said in (
        ("a.parquet", "auto", "no row with an instruction among 1"),
        ("b.parquet", "auto", "lacks the column 'target_img'; columns found: instruction, source_img; expected Magic"),
        ("c.parquet", "auto", "source_img as string; expected images as struct<bytes, path>"),
        ("d.parquet", "auto", "not a readable Parquet file"),
        ("e.json", "magicbrush", "not a readable Parquet file"),
        ("*.json", "aurora", r"matches 2 files; dataset_layout = 'aurora' reads one table"),
        ("none-*.parquet", "auto", "no such file: .*none-.*the data set's own table"),
        ("/none/**x/*.parquet", "auto", "no such file: .*none"),
        ("e.json", "aurora_something", "no usable row"),
    ):
        with pytest.raises(InputError, match=said) as caught:
            list_labelled(tmp_path, file, layout)
        assert "\n" not in str(caught.value)
