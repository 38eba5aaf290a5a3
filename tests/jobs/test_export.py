"""The export job: every format read back, what is left out, going on after a kill, bad input."""

import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs import export
from jobs.export import main, run
from tests.helpers.export_data import COUNT, provenance, recipe, select, write_world
from tests.helpers.triplet_files import LABELS, picture, triplet, write_output
from wm.datasets.export import PROVENANCE
from wm.datasets.layouts.base import ImagePair
from wm.datasets.layouts.labelled import list_labelled, load_images
from wm.errors import InputError, OtherRunError
from wm.images import encode_png
from wm.records import TRIPLET_SCHEMA, triplet_row
from wm.tables import write_table


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten triplets of one size in three files."""
    return write_world(tmp_path_factory.mktemp("export"))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but run.json, which holds the time."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "run.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_aurora_is_read_back_by_its_own_reader(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run(recipe(world, out, format="aurora"))
    assert record["counts"] == {
        "rows": 10,
        "exported": 10,
        "not_selected": 0,
        "other_split": 0,
        "files": 3,
        "parts": 3,
        "licenses": {"MIT": 6, "CC BY 4.0, (c) Zoë": 4},
        "different_licenses": 2,
    }
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "images", "run.json", "train.json"]
    rows = json.loads((out / "train.json").read_text())
    items = list_labelled(out, "train.json")
    assert len(rows) == len(items) == COUNT
    for number, (row, item) in enumerate(zip(rows, items, strict=True)):
        assert isinstance(item, ImagePair)
        assert item.action == row["instruction"] == triplet(number)["action"]
        assert item.task == (LABELS[number % 4] or out.name)
        assert {name: row[name] for name in PROVENANCE} == provenance(number)
        pair = load_images(out, item)
        for pixels, path, side, seed in zip(
            pair, (item.source, item.target), ("source", "target"), (0, 1), strict=True
        ):
            np.testing.assert_array_equal(pixels, picture(2 * number + seed))
            assert (out / path).read_bytes() == triplet(number)[f"{side}_image"]["bytes"]


def test_a_stages_own_folder_is_its_triplets(world: Path, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    shutil.copytree(world / "triplets", stage / "triplets")
    (stage / "rejects").mkdir()
    (stage / "rejects" / "part-00000.parquet").write_bytes((next((world / "triplets").glob("*.parquet"))).read_bytes())
    for name, triplets in (("a", stage), ("b", stage / "triplets")):
        run(recipe(world, tmp_path / name, format="aurora", triplets=str(triplets)))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with pytest.raises(InputError, match="is in triplets"):
        run(recipe(world, stage / "export", format="aurora", triplets=str(stage)))


def test_aurora_has_a_file_a_split_and_keeps_jpeg(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(picture(0)).save(buffer, "JPEG")
    jpeg = {"bytes": buffer.getvalue(), "path": None}
    rows = [triplet(number, split=("train", "test", "über/al")[number % 3], source_image=jpeg) for number in range(7)]
    write_output(tmp_path, [row | {"triplet_id": f"odd/{number}.é"} for number, row in enumerate(rows)], 3)
    out = tmp_path / "out"
    run(recipe(tmp_path, out, format="aurora", shard_rows=2))
    found = {path.name: json.loads(path.read_text()) for path in out.glob("*.json") if path.name != "run.json"}
    assert {name: len(rows) for name, rows in found.items()} == {
        "train.json": 3,
        "test.json": 2,
        "%C3%BCber%2Fal.json": 2,
    }
    assert [row["triplet_id"] for row in found["train.json"]] == ["odd/0.é", "odd/3.é", "odd/6.é"]
    for row in (row for rows in found.values() for row in rows):
        assert row["input"].endswith("-source.jpg") and row["output"].endswith("-target.png")
        assert (out / row["input"]).read_bytes() == buffer.getvalue()


def test_webdataset_opens_with_its_package_and_repeats(world: Path, tmp_path: Path) -> None:
    import webdataset

    run(recipe(world, tmp_path / "a", format="webdataset"))
    run(recipe(world, tmp_path / "b", format="webdataset", triplets=str(world / "triplets") + "/"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert sorted(contents(tmp_path / "a")) == ["README.md", *(f"shard-{number:06d}.tar" for number in range(3))]
    with tarfile.open(tmp_path / "a" / "shard-000002.tar") as tar:
        members = tar.getmembers()
        key = f"{8:024x}"
        assert [member.name for member in members[:4]] == [
            f"{key}.{name}" for name in ("json", "source.png", "target.png", "txt")
        ]
        assert len(members) == 8 and {(m.mtime, m.uid, m.gid, m.uname, m.mode) for m in members} == {
            (0, 0, 0, "", 0o644)
        }
        stored = tar.extractfile(members[1])
        assert stored is not None and stored.read() == triplet(8)["source_image"]["bytes"]
    samples = list(
        webdataset.WebDataset(f"{tmp_path}/a/shard-{{000000..000002}}.tar", shardshuffle=False).decode("rgb8")
    )
    assert len(samples) == COUNT
    for number, sample in enumerate(samples):
        assert sample["__key__"] == f"{number:024x}" and sample["txt"] == triplet(number)["action"]
        assert sample["json"] == provenance(number)
        np.testing.assert_array_equal(sample["source.png"], picture(2 * number))
        np.testing.assert_array_equal(sample["target.png"], picture(2 * number + 1))


@pytest.mark.parametrize("streaming", [False, True])
def test_webdataset_opens_with_hugging_face_datasets(
    tmp_path: Path, streaming: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where columns are null in all of the first five rows, by which ``datasets`` guesses types."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    numbers = [1, 3, 5, 7, 9, 11, 0, 2]
    write_output(tmp_path, [triplet(number) for number in numbers])
    run(recipe(tmp_path, tmp_path / "out", format="webdataset"))
    rows = list(datasets.load_dataset(str(tmp_path / "out"), split="train", streaming=streaming))
    for number, row in zip(numbers, rows, strict=True):
        np.testing.assert_array_equal(np.array(row["source.png"]), picture(2 * number))
        np.testing.assert_array_equal(np.array(row["target.png"]), picture(2 * number + 1))
        assert row["txt"] == triplet(number)["action"] and row["json"] == provenance(number)


def test_a_selection_leaves_out_the_rest_and_counts_it(world: Path, tmp_path: Path) -> None:
    chosen = select(tmp_path / "chosen", [1, 2, 7, 9])
    for number, folder in enumerate((chosen, chosen / "selection")):
        out = tmp_path / f"out{number}"
        counts = run(recipe(world, out, format="aurora", selection=str(folder), shard_rows=3))["counts"]
        assert (counts["rows"], counts["exported"], counts["not_selected"], counts["parts"]) == (10, 4, 6, 2)
        ids = [row["triplet_id"] for row in json.loads((out / "train.json").read_text())]
        assert ids == [f"{number:024x}" for number in (1, 2, 7, 9)]
        assert len(list((out / "images").rglob("*.png"))) == 8
    with pytest.raises(InputError, match=r"2 of the 3 selected ids are not in .*, gone for one; the selection is of"):
        strange = select(tmp_path / "strange", [1], ("gone", "goner"))
        run(recipe(world, tmp_path / "x", format="aurora", selection=str(strange)))
    with pytest.raises(InputError, match=r"nothing to export: none of the 10 rows of .* is wanted"):
        run(recipe(world, tmp_path / "x", format="aurora", selection=str(chosen), split="dev"))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["aurora", "webdataset", "lerobot"])
def test_a_killed_run_goes_on_to_the_same_files(
    world: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = tmp_path / "whole"
    run(recipe(world, expected, format=name))
    job = recipe(world, tmp_path / "out", format=name)
    plain, written = export.write_part, []

    def killed(kind: str, context: Any, part: Any, tick: Any) -> dict[str, Any]:
        if part.number == 1:

            def stop(count: int) -> None:
                raise KeyboardInterrupt

            tick = stop if not written or written[-1] == 0 else tick
        written.append(part.number)
        return plain(kind, context, part, tick)

    monkeypatch.setattr(export, "write_part", killed)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    assert not (tmp_path / "out" / "run.json").exists()
    # What kill -9 leaves: half written files, and a part that was renamed but not marked.
    stray = {
        "aurora": "images/000001/a.png",
        "webdataset": "shard-000001.tar",
        "lerobot": "data/chunk-000/file-001.parquet",
    }
    for leftover in (
        stray[name],
        ".shard-000001.tar.0.tmp",
        "data/chunk-000/.file-001.parquet.0.tmp",
        "images/.000001.0.tmp/a",
    ):
        path = tmp_path / "out" / leftover
        if path.parent.parent.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"half")
    monkeypatch.setattr(export, "write_part", plain)
    first = {"aurora": "images/000000/*", "webdataset": "*-000000.tar", "lerobot": "*/*/file-000.parquet"}[name]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob(first)}
    record = run(job)
    assert record["parts_written_now"] == 2 and "resumes, 1 of 3 parts are finished" in capsys.readouterr().out
    assert contents(tmp_path / "out") == contents(expected)
    assert kept and all(path.stat().st_mtime_ns == time for path, time in kept.items())
    assert run(job) == record and "already complete" in capsys.readouterr().out
    with pytest.raises(OtherRunError, match="recipe shard_rows = 4 there, 5 here"):
        run(recipe(world, tmp_path / "out", format=name, shard_rows=5))


@pytest.mark.slow
def test_several_processes_write_the_same_files(world: Path, tmp_path: Path, ray_session: None) -> None:
    for name in ("aurora", "webdataset", "lerobot"):
        chosen = str(select(tmp_path / "chosen", [0, 1, 2, 5, 6, 7, 9]))
        for workers in (1, 2):
            out = tmp_path / f"{name}{workers}"
            run(recipe(world, out, format=name, resources={"num_workers": workers}, shard_rows=2, selection=chosen))
        assert contents(tmp_path / f"{name}1") == contents(tmp_path / f"{name}2")
    rows = [triplet(0), triplet(1) | {"source_image": None}]
    write_table(rows, tmp_path / "bad" / "a.parquet", TRIPLET_SCHEMA)
    bad = recipe(
        tmp_path,
        tmp_path / "y",
        format="aurora",
        triplets=str(tmp_path / "bad"),
        shard_rows=1,
        resources={"num_workers": 2},
    )
    # Whether the other task has written its part by then is a matter of time: see the next test for what is kept.
    with pytest.raises(InputError, match=r"0001 in .* has no source_image"):
        run(bad)


def test_what_is_written_before_bad_input_is_kept(tmp_path: Path) -> None:
    """In this process parts are written one after the other: the first is there when the second cannot be."""
    write_table([triplet(0), triplet(1) | {"source_image": None}], tmp_path / "bad" / "a.parquet", TRIPLET_SCHEMA)
    bad = recipe(tmp_path, tmp_path / "y", format="aurora", triplets=str(tmp_path / "bad"), shard_rows=1)
    with pytest.raises(InputError, match=r"0001 in .* has no source_image.*the same command resumes"):
        run(bad)


def test_a_plan_of_many_files_shows_a_bar(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(export, "MANY_FILES", 3)
    run(recipe(world, tmp_path / "out", format="aurora"), dry_run=True)
    assert "export: plan: 100%" in capsys.readouterr().err


def test_a_dry_run_counts_and_writes_nothing(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = select(tmp_path / "chosen", [3, 4])
    counts = run(recipe(world, tmp_path / "out", format="lerobot", selection=str(chosen)), dry_run=True)
    assert counts == {"rows": 10, "exported": 2, "not_selected": 8, "other_split": 0, "files": 3, "parts": 1}
    assert "would write 2 of 10 triplets (8 not selected) in 1 parts" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line_and_leaves_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other" / "a.parquet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"PAR1 no")
    write_table(
        [triplet(0) | {"source_image": {"bytes": b"no image", "path": None}}],
        tmp_path / "noimage" / "a.parquet",
        TRIPLET_SCHEMA,
    )
    good = {"triplets": str(world / "triplets"), "out": str(tmp_path / "out"), "format": "webdataset"}
    before = sorted(tmp_path.rglob("*"))
    for changes, said in (
        ({"format": "zip"}, "format = 'zip': input should be 'aurora', 'webdataset' or 'lerobot'"),
        ({"triplets": str(tmp_path / "gone")}, "no such file or folder"),
        ({"triplets": str(tmp_path / "empty")}, "no Parquet file below"),
        ({"triplets": str(tmp_path / "other")}, "a.parquet lacks the column 'triplet_id'; columns found: a"),
        ({"triplets": str(tmp_path / "broken")}, "a.parquet is not a readable Parquet file"),
        ({"triplets": str(world / "rejects")}, "lacks the column 'triplet_id'"),
        ({"triplets": str(tmp_path / "noimage"), "format": "lerobot"}, "source_image of triplet 0"),
        ({"out": str(tmp_path / "full")}, "is not empty (a.txt)"),
        ({"out": str(world / "triplets" / "x")}, "is in triplets"),
        ({"selection": str(tmp_path / "gone")}, "no such file or folder"),
        ({"selection": str(world / "rejects")}, "lacks the column 'triplet_id'"),
        ({"shard_rows": "0"}, "shard_rows = 0"),
        ({"side_px": "-1"}, "side_px = -1"),
    ):
        monkeypatch.setattr(sys, "argv", ["export", *(f"{key}={value}" for key, value in (good | changes).items())])
        assert main() == 2
        told = capsys.readouterr()
        assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("error: "), told.err
        assert said in told.err, told.err
        assert sorted(tmp_path.rglob("*")) == before
    monkeypatch.setattr(
        sys,
        "argv",
        ["export", *(f"{key}={value}" for key, value in (good | {"triplets": str(tmp_path / "noimage")}).items())],
    )
    assert main() == 2 and "source_image of triplet 000000000000000000000000 is no image" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tar"))


def test_aurora_bench_survives_the_round_trip(shared_data: Path, tmp_path: Path) -> None:
    """Real pictures and words: AURORA's layout in, triplets, AURORA's layout out."""
    root = shared_data / "aurora-bench"
    items = [item for item in list_labelled(root, "test.json") if isinstance(item, ImagePair)][::60]
    pairs = [load_images(root, item) for item in items]
    rows = [
        triplet_row(
            triplet_id=str(number),
            dataset="aurora",
            split="test",
            class_label=item.task,
            source_image={"bytes": encode_png(pair[0]), "path": item.source},
            target_image={"bytes": encode_png(pair[1]), "path": item.target},
            action=item.action,
            origin="human",
        )
        for number, (item, pair) in enumerate(zip(items, pairs, strict=True))
    ]
    write_table(rows, tmp_path / "triplets" / "a.parquet", TRIPLET_SCHEMA)
    run(recipe(tmp_path, tmp_path / "out", format="aurora"))
    again = list_labelled(tmp_path / "out", "test.json")
    assert [(item.action, item.task) for item in again] == [(item.action, item.task) for item in items]
    for item, pair in zip(again, pairs, strict=True):
        for found, expected in zip(load_images(tmp_path / "out", item), pair, strict=True):
            np.testing.assert_array_equal(found, expected)
