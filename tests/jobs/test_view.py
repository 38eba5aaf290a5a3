"""The viewer's job: folders in, a page out, once; bad input refused in one line."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs.view import ViewRecipe, main, run
from tests.helpers.viewer_data import triplet, write_annotation
from wm.errors import OtherRunError


def recipe(tmp_path: Path, **changes: Any) -> ViewRecipe:
    values = {"triplets": str(tmp_path / "data"), "out": str(tmp_path / "view"), "image_px": 32}
    return ViewRecipe(**(values | changes))


def test_a_page_is_written_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_annotation(tmp_path / "data", [triplet(number) for number in range(20)])
    assert run(recipe(tmp_path), dry_run=True) == {} and not (tmp_path / "view").exists()
    assert "would show 20 of 20 triplets and 4 of 4 rejects" in capsys.readouterr().out
    record = run(recipe(tmp_path))
    assert record["counts"] == {
        "triplets": 20,
        "shown": 20,
        "rejects": 4,
        "unreadable_pictures": 0,
        "bytes": record["counts"]["bytes"],
    }
    files = sorted(path.name for path in (tmp_path / "view" / "page").iterdir())
    assert files == [
        "curve.js", "detail.js", "elements.js", "grid.js", "index.js", "main.js",
        "pictures-00000.webp", "pictures-00001.webp",
        "pictures-00002.webp", "rejects.js", "rows-00000.js", "rows-00001.js", "rows-00002.js", "state.js",
        "viewer.css",
    ]  # fmt: skip
    assert record["counts"]["bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "view").rglob("*") if path.is_file() and path.name != "run.json"
    )
    mtime_ns = (tmp_path / "view" / "index.html").stat().st_mtime_ns
    assert run(recipe(tmp_path, num_threads=1)) == record  # threads do not change what comes out
    assert (tmp_path / "view" / "index.html").stat().st_mtime_ns == mtime_ns
    assert "20 of 20 triplets, 4 rejects" in capsys.readouterr().out
    with pytest.raises(OtherRunError, match="limit"):
        run(recipe(tmp_path, limit=5))


def test_nothing_on_the_page_points_outside(tmp_path: Path) -> None:
    write_annotation(tmp_path / "data", [triplet(0, video_uri="https://example.org/v.mp4")])
    run(recipe(tmp_path))
    for path in (tmp_path / "view").rglob("*"):
        if path.suffix in (".html", ".js", ".css") and not path.name.startswith(("index.js", "rows-")):
            text = path.read_text().replace("http://www.w3.org/2000/svg", "")
            assert "http:" not in text and "https:" not in text and "//cdn" not in text, path
            assert "innerHTML" not in text and "fetch(" not in text and "eval(" not in text, path
    html = (tmp_path / "view" / "index.html").read_text()
    assert "default-src 'none'" in html and "unsafe" not in html and "onclick" not in html


def test_a_killed_run_leaves_no_page_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_annotation(tmp_path / "data", [triplet(number) for number in range(40)])

    def fail(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("wm.viewer.build.build_details", fail)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(tmp_path))
    assert sorted(path.name for path in (tmp_path / "view").iterdir()) == [".lock", "run.unfinished.json"]
    (tmp_path / "view" / ".page.tmp").mkdir()  # what a kill -9 would have left
    assert run(recipe(tmp_path))["counts"]["shown"] == 40
    assert sorted(path.name for path in (tmp_path / "view").iterdir()) == ["index.html", "page", "run.json"]


def test_the_same_data_give_the_same_page(tmp_path: Path) -> None:
    write_annotation(tmp_path / "data", [triplet(number) for number in range(50)])
    for out in ("a", "b"):
        run(recipe(tmp_path, out=str(tmp_path / out), limit=9, num_threads=1 + (out == "b")))
    for path in (tmp_path / "a" / "page").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "page" / path.name).read_bytes(), path.name


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("triplets={tmp}/absent", "no such folder of Parquet files"),
        ("triplets={tmp}/data/clips", "is no table of triplets: it lacks the column 'triplet_id'"),
        ("triplets={tmp}/broken.parquet", "broken.parquet is not a readable Parquet file"),
        ("selection={tmp}/data/clips", "is no table of selection"),
        ("limit=0", "limit = 0"),
        ("limit=60000", "limit = 60000"),
        ("out={tmp}/broken.parquet", "is a file; expected a folder"),
    ],
)
def test_bad_input_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, setting: str, message: str
) -> None:
    write_annotation(tmp_path / "data", [triplet(0)])
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    arguments = {"triplets": f"{tmp_path}/data", "out": f"{tmp_path}/view"}
    key, _, value = setting.format(tmp=tmp_path).partition("=")
    arguments[key] = value
    monkeypatch.setattr("sys.argv", ["view", *(f"{name}={text}" for name, text in arguments.items())])
    assert main() == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_empty_data_set_is_a_page_too(tmp_path: Path) -> None:
    write_annotation(tmp_path / "data", [], [])
    record = run(recipe(tmp_path))
    assert record["counts"]["shown"] == 0 and (tmp_path / "view" / "index.html").is_file()


def test_ingested_data_have_neither_clips_nor_likelihoods(tmp_path: Path) -> None:
    rows = [triplet(number, origin="human", action_logprob=None, action_tokens=None) for number in range(3)]
    out = write_annotation(tmp_path / "data", rows)
    for table in ("clips", "pairs"):
        (out / table / "shard-000000.parquet").unlink()
        (out / table).rmdir()
    run(recipe(tmp_path))
    assert '"clip":null' in (tmp_path / "view" / "page" / "rows-00000.js").read_text()
    assert pq.read_table(out / "triplets" / "shard-000000.parquet").num_rows == 3


def test_damage_inside_a_file_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_annotation(tmp_path / "data", [triplet(number) for number in range(20)])
    path = out / "triplets" / "shard-000000.parquet"
    group = pq.read_metadata(path).row_group(0)
    column = next(c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == "source_image.bytes")
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset
    data[start : start + 8] = b"\xff" * 8  # the header of its first page
    path.write_bytes(data)
    monkeypatch.setattr("sys.argv", ["view", f"triplets={out}", f"out={tmp_path}/view"])
    assert main() == 2
    error = capsys.readouterr().err
    assert "shard-000000.parquet is damaged" in error
    assert not (tmp_path / "view" / "index.html").exists() and not (tmp_path / "view" / "page").exists()
