"""The ingest job: rows in = triplets + rejects, and every column against its definition."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jobs.ingest.job import IngestRecipe, main, run
from wm.errors import InputError, OtherRunError
from wm.images import decode_image, encode_png, fit_square
from wm.models import load_codec
from wm.records import REJECT_SCHEMA, stable_id
from wm.runs import write_json
from wm.tables import read_table


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten rows: eight good ones of several sizes, one without its target file, one broken image, one bad row."""
    rng = np.random.default_rng(0)
    tmp_path = tmp_path_factory.mktemp("ingest")
    folder = tmp_path / "root" / "images"
    folder.mkdir(parents=True)
    rows: list[Any] = []
    for number in range(10):
        height, width = [(16, 16), (20, 33), (48, 31)][number % 3]
        names = {"input": f"images/{number}_left.png", "output": f"images/{number}_right.png"}
        for name in names.values():
            (tmp_path / "root" / name).write_bytes(encode_png(rng.integers(0, 256, (height, width, 3), np.uint8)))
        rows.append({"instruction": f"put cup {number}", "task": ["a", "b"][number % 2], **names})
    (folder / "3_right.png").unlink()
    (folder / "6_left.png").write_bytes(b"broken")
    rows.insert(5, {"instruction": "no images", "task": "b"})
    (tmp_path / "root" / "rows.json").write_text(json.dumps(rows))
    return tmp_path / "root"


@pytest.fixture
def root(world: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    shutil.copytree(world, tmp_path / "root")
    return tmp_path / "root"


def recipe(folder: Path, **changes: Any) -> IngestRecipe:
    plain = {"root": str(folder), "file": "rows.json", "out": str(folder.parent / "out"), "license": "MIT"}
    return IngestRecipe(**(plain | {"shard_rows": 4, "resources": {"num_workers": 0}} | changes))


@pytest.fixture(scope="module")
def ingested(world: Path, tiny_base: Path) -> dict[str, Any]:
    """In an actor of Ray; the other runs are of this process."""
    return run(recipe(world, codec=str(tiny_base), resources={"num_workers": 1}))


@pytest.mark.usefixtures("ray_session")
def test_rows_become_triplets_and_rejects(world: Path, tiny_base: Path, ingested: dict[str, Any]) -> None:
    root, out = world, world.parent / "out"
    table, rejects = read_table(out / "triplets"), read_table(out / "rejects", REJECT_SCHEMA)
    unchanged = sum(row["source_codes"] == row["target_codes"] for row in table.to_pylist())
    assert ingested["counts"] == {
        "rows": 11,
        "triplets": 8,
        "unchanged_codes": unchanged,
        "rejects": 3,
        "rejects_by_reason": {"missing_field": 1, "missing_file": 1, "not_an_image": 1},
        "triplets_by_class": {"a": 4, "b": 4},
    }
    actual = {(row["uri"], row["reason"]): row["detail"] for row in rejects.to_pylist()}
    assert set(actual) == {
        ("rows.json#3", "missing_file"),
        ("rows.json#5", "missing_field"),
        ("rows.json#7", "not_an_image"),
    }
    assert "images/3_right.png" in actual["rows.json#3", "missing_file"]
    assert "images/6_left.png" in actual["rows.json#7", "not_an_image"]
    assert {row["outcome"] for row in rejects.to_pylist()} == {"failed"}
    assert len(list((out / "triplets").glob("*.parquet"))) == 3
    codec = load_codec(tiny_base)
    for row in table.to_pylist():
        number = int(row["action"].split()[-1])
        assert (row["dataset"], row["split"], row["origin"], row["license"]) == ("aurora", "train", "human", "MIT")
        at = number + (number >= 5)
        assert row["triplet_id"] == stable_id("aurora", "train", f"rows.json#{at}")
        pixels = [decode_image(row[f"{side}_image"]["bytes"], side) for side in ("source", "target")]
        for image, side in zip(pixels, ("left", "right"), strict=True):
            stored = (root / "images" / f"{number}_{side}.png").read_bytes()
            np.testing.assert_array_equal(image, decode_image(stored, side))
        codes, features = codec.encode_with_features(np.stack([fit_square(image, 16) for image in pixels]))
        assert row["codec"] == codec.codec_id
        assert [row["source_codes"], row["target_codes"]] == codes.tolist()
        plain = [float(((features[0, n] - features[1, n]) ** 2).sum()) for n in range(4)]
        torch.testing.assert_close(torch.tensor(row["change"]), torch.tensor(plain))


def test_rows_become_the_same_without_ray(
    world: Path, tiny_base: Path, tmp_path: Path, ingested: dict[str, Any]
) -> None:
    out = tmp_path / "here"
    here = run(recipe(world, codec=str(tiny_base), out=str(out), resources={"num_workers": 0}))
    assert here["counts"] == ingested["counts"]
    assert read_table(out / "triplets").equals(read_table(world.parent / "out" / "triplets"))
    columns = [name for name in REJECT_SCHEMA.names if name != "detail"]  # it may name an object's address
    rejects = [read_table(folder / "rejects", REJECT_SCHEMA, columns) for folder in (out, world.parent / "out")]
    assert rejects[0].equals(rejects[1])


def test_without_a_codec_and_with_a_limit(root: Path) -> None:
    counts = run(recipe(root, limit=3, dataset="mine", split="test"))["counts"]
    assert counts["triplets"] == 3 and "unchanged_codes" not in counts  # not 0: nothing is known of codes
    for row in read_table(root.parent / "out" / "triplets").to_pylist():
        assert row["codec"] is row["source_codes"] is row["target_codes"] is row["change"] is None
        assert (row["dataset"], row["split"]) == ("mine", "test")
    assert read_table(root.parent / "out" / "rejects", REJECT_SCHEMA).num_rows == 0


def test_a_killed_run_goes_on_to_the_table_of_other_shards(
    root: Path, world: Path, tiny_base: Path, ingested: dict[str, Any]
) -> None:
    job, out = recipe(root, codec=str(tiny_base), shard_rows=3), root.parent / "out"
    record = run(job)
    remaining = (out / "triplets" / "part-00000.parquet").stat().st_mtime_ns
    (out / "run.json").unlink()
    write_json(out / "run.unfinished.json", record)
    (out / "triplets" / "part-00001.parquet").unlink()
    (out / "triplets" / ".part-00001.parquet.abc.tmp").write_bytes(b"half")
    again = run(job)
    assert again["counts"] == record["counts"] == ingested["counts"]
    assert read_table(out / "triplets").equals(read_table(world.parent / "out" / "triplets"))
    assert (out / "triplets" / "part-00000.parquet").stat().st_mtime_ns == remaining
    assert run(job) == again


def test_bad_input_is_told_before_any_work(root: Path, tiny_base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = root.parent / "out"
    (root / "empty").mkdir()
    for changes, message in (
        ({"root": str(root / "gone")}, "no such folder: root"),
        ({"file": "gone.json"}, r"no such file: .*gone\.json"),
        ({"codec": str(root / "gone")}, "no such file or folder: .*gone"),
        ({"codec": str(root / "empty")}, r"empty"),
    ):
        for dry_run in (True, False):
            with pytest.raises(InputError, match=message):
                run(recipe(root, **changes), dry_run=dry_run)
    assert not out.exists()
    assert run(recipe(root, codec=str(tiny_base)), dry_run=True) == {} and not out.exists()
    assert "would write" in capsys.readouterr().out
    run(recipe(root))
    with pytest.raises(OtherRunError, match="recipe dataset = 'aurora' there, 'x' here"):
        run(recipe(root, dataset="x"))
    text = (root / "rows.json").read_text()
    (root / "rows.json").write_text(text + " ")
    with pytest.raises(OtherRunError, match="inputs file = "):
        run(recipe(root))


def test_aurora_bench_from_the_command_line(
    shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(__file__).resolve().parents[2] / "jobs" / "recipes" / "data" / "aurora-bench.toml"
    root, out = shared_data / "aurora-bench", tmp_path / "out"
    here = "resources.num_workers=0"  # actors of Ray write the same, as the first tests hold
    monkeypatch.setattr("sys.argv", ["ingest", str(file), f"root={root}", f"out={out}", here])
    assert main() == 0
    assert "250 rows → 248 triplets" in capsys.readouterr().out
    assert read_table(out / "triplets").num_rows == 248
    rejects = read_table(out / "rejects", REJECT_SCHEMA).to_pylist()
    rows = json.loads((root / "test.json").read_text())
    assert len(rejects) == 2
    for reject in rejects:
        row = rows[int(reject["uri"].split("#")[1])]
        gone = [row[name] for name in ("input", "output") if not (root / row[name]).exists()]
        assert reject["reason"] == "missing_file" and gone and gone[0] in reject["detail"]
