"""File names that are no UTF-8: each costs its own video, and its bytes can be had again from the reject."""

import ast
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jobs.annotate.job
from jobs.annotate.annotator import Annotator
from jobs.annotate.decoder import Decoder
from jobs.annotate.shards import shard_table
from jobs.ingest.job import IngestRecipe
from jobs.look import LookRecipe
from jobs.look import run as run_look
from tests.helpers.annotate_data import recipe, rows
from tests.helpers.video_files import marked_frame, write_video
from wm.config import Recipe
from wm.datasets.layouts.base import ImagePair, Problem, VideoSegment
from wm.datasets.layouts.labelled import list_labelled
from wm.datasets.videos.listing import listing_digest, passed_over_of
from wm.datasets.videos.passed_over import describe
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.files.uris import escape_path, escape_text, local_path
from wm.images import encode_png

BAD = b"caf\xe9 100%.mp4"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = write_video(tmp_path_factory.mktemp("video") / "x.mp4", [marked_frame(number) for number in range(60)])
    return path.read_bytes()


@pytest.fixture
def tree(tmp_path: Path, video: bytes) -> Path:
    """A good video, one of a bad name, a good one in a folder of a bad name, and a text of a bad name."""
    root = tmp_path / "set"
    for name in (b"wave/good.mp4", b"wave/" + BAD, b"\xfferie/x.mp4"):
        path = os.path.join(os.fsencode(root), name)  # noqa: PTH118 - bytes
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        Path(os.fsdecode(path)).write_bytes(video)
    Path(os.fsdecode(os.path.join(os.fsencode(root), b"n\xf6tes.txt"))).touch()  # noqa: PTH118
    return root


def bytes_of(uri: str) -> bytes:
    """The path of a ``file`` URI, by the standard library."""
    assert urlsplit(uri).scheme == "file" and uri.isascii()
    return unquote_to_bytes(urlsplit(uri).path)


def test_the_listing_keeps_every_video_and_its_bytes(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = list_videos(str(tree))
    actual = {row["key"]: row for row in listing.to_pylist()}
    bad = {key: row for key, row in actual.items() if key != "wave/good.mp4"}
    assert len(actual) == 3 and actual["wave/good.mp4"]["uri"] == f"{tree}/wave/good.mp4"
    assert {ast.literal_eval(key) for key in bad} == {b"wave/" + BAD, b"\xfferie/x.mp4"}
    for key, row in bad.items():
        assert bytes_of(row["uri"]) == os.fsencode(tree) + b"/" + ast.literal_eval(key)
        assert Path(local_path(row["uri"])).is_file()
    assert {row["class_label"] for row in bad.values()} == {"wave", "\\xfferie"}
    message = passed_over_of(listing)
    assert message["other_endings"]["examples"] == ["n\\xf6tes.txt"] and message["not_unicode"]["count"] == 2
    before = listing_digest(listing)
    monkeypatch.chdir(tree.parent)
    assert listing_digest(list_videos("set")) == before
    assert list_videos("set/**/*.mp4")["key"].to_pylist() == listing["key"].to_pylist()
    Path(local_path(next(iter(bad.values()))["uri"])).write_bytes(b"more")
    assert listing_digest(list_videos("set")) != before


def test_names_that_look_alike_stay_two(tmp_path: Path) -> None:
    """A name whose letters are those of another one's escape."""
    for name in (b"a\xe9.mp4", b"a\\xe9.mp4", b"a%E9.mp4", b"a\xe8.mp4"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).touch()
    assert len(set(list_videos(str(tmp_path))["key"].to_pylist())) == 4


def write_list(path: Path, name: bytes) -> Path:
    """A list with a good video and one of this name."""
    if path.suffix == ".parquet":
        column = pa.array([b"wave/good.mp4", name], pa.binary())
        text = pa.Array.from_buffers(pa.string(), 2, column.buffers())  # Parquet asks nobody whether text is UTF-8
        pq.write_table(pa.table({"uri": text}), path)
        return path
    lines = [b"wave/good.mp4", name]
    if path.suffix == ".jsonl":
        lines = [b'{"uri": "' + line + b'"}' for line in lines]
    head = [] if path.suffix in (".txt", ".jsonl") else [b"uri"]
    path.write_bytes(b"\n".join([*head, *lines]) + b"\n")
    return path


@pytest.mark.parametrize("suffix", ["txt", "csv", "tsv", "jsonl", "parquet"])
def test_a_list_keeps_every_row(tree: Path, suffix: str) -> None:
    actual = list_videos(str(write_list(tree / f"list.{suffix}", b"wave/" + BAD)))
    uris = sorted(actual["uri"].to_pylist(), key=len)
    assert uris[0] == f"{tree}/wave/good.mp4"
    assert bytes_of(uris[1]) == os.fsencode(tree) + b"/wave/" + BAD
    assert passed_over_of(actual)["not_unicode"]["count"] == 1


def test_a_file_uri_in_a_list_names_the_same_video(tree: Path) -> None:
    direct = {row["uri"] for row in list_videos(str(tree)).to_pylist() if row["uri"].startswith("file:")}
    (tree / "list.txt").write_text("\n".join(sorted(direct)))
    assert set(list_videos(str(tree / "list.txt"))["uri"].to_pylist()) == direct


def test_each_becomes_a_reject_and_the_others_are_annotated(
    tree: Path, tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def annotate(one: Any, stage: Any, listing: Any, pending: dict[int, tuple[int, int]]) -> dict[str, int]:
        decoder = Decoder(one.clip_settings(), one.download_settings(), one.dataset)
        annotator = Annotator(one.annotator_settings())
        annotator.idm.detokenize = lambda ids: "push it"
        for number, shard in pending.items():
            annotator(decoder(shard_table(listing, number, *shard)))
        decoder.reader.close()
        return {"block_bytes": 0, "moved_bytes": 0}

    monkeypatch.setattr(jobs.annotate.job, "_annotate", annotate)
    record = jobs.annotate.job.run(recipe(tree, tiny_base, tmp_path / "out"))
    triplets, rejects = rows(tmp_path / "out")
    assert record["counts"]["rejects_by_reason"] == {"failed/bad_name": 2} and record["counts"]["videos"] == 3
    assert {row["video_uri"] for row in triplets} == {f"{tree}/wave/good.mp4"}
    assert {bytes_of(row["uri"]).rpartition(b"/")[2] for row in rejects} == {BAD, b"x.mp4"}
    for row in rejects:
        assert repr(bytes_of(row["uri"])) in row["detail"] and "is not UTF-8; rename the file" in row["detail"]
    assert "file names that are no UTF-8, which become rejects: 2" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "run.json").read_text())["passed_over"]["not_unicode"]["count"] == 2


def test_look_lists_them_by_name(tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run_look(LookRecipe(videos=str(tree), out=str(tmp_path / "out")))
    assert record["counts"]["failed_by_reason"] == {"bad_name": 2} and record["counts"]["decoded"] == 1
    assert "caf\\xe9 100%.mp4" in capsys.readouterr().err


def test_aurora_rows_with_names_that_are_none_are_problems(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode_png(marked_frame(0)))
    good = {"instruction": "x", "input": "a.png", "output": "a.png"}
    odd = [{"input": "\udce9.png"}, {"output": "\ud800.png"}, {"instruction": "\ud800"}, {"task": "\udfff"}]
    (tmp_path / "rows.json").write_text(json.dumps([good, *(good | change for change in odd), {"\ud800": 1}]))
    actual = list_labelled(tmp_path, "rows.json")
    kinds = [entry.reason if isinstance(entry, Problem) else "" for entry in actual]
    assert kinds == ["", "bad_field", "bad_field", "bad_field", "", "missing_field"]
    assert isinstance(actual[4], ImagePair) and actual[4].task == tmp_path.name
    for entry in actual:
        if isinstance(entry, Problem):
            entry.detail.encode()


@pytest.mark.parametrize("text", ["[" + "1" * 5000 + "]", "[" * 100_000, "\ufeff[1e999", '["\\ud800"]'])
def test_aurora_lists_that_are_none_are_named_in_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.json").write_text(text)
    with pytest.raises(InputError, match=r"rows\.json") as caught:
        list_labelled(tmp_path, "rows.json")
    assert "\n" not in str(caught.value) and str(caught.value).encode()


@pytest.mark.parametrize(
    ("kind", "overrides"),
    [
        (LookRecipe, ["videos=caf\udce9", "out=x"]),
        (IngestRecipe, ["root=caf\udce9", "file=x.json", "out=x"]),
        (IngestRecipe, ["root=r", "file=caf\udce9.csv", "out=x", "dataset_layout=epic"]),
        (LookRecipe, ["videos=v", "out=x", "max_clips=" + "1" * 5000]),
        (LookRecipe, ["videos=v", "out=x", "max_clips=" + "[" * 100_000]),
    ],
)
def test_recipes_name_such_values_in_a_line(kind: type[Recipe], overrides: list[str]) -> None:
    with pytest.raises(InputError, match=r"is not UTF-8; rename|valid integer") as caught:
        kind.load(None, overrides)
    assert "\n" not in str(caught.value) and str(caught.value).encode()


def test_escapes_keep_text_and_bytes(tmp_path: Path) -> None:
    assert escape_text("ä 100%\\") == "ä 100%\\" and escape_text("a\udce9") == "a\\xe9"
    assert escape_text("\ud800").encode()
    for name in (b"a\xe9 #?%41.mp4", b"\xff\xfe", "ä\udc80".encode("utf-8", "surrogateescape")):
        path = os.fsdecode(os.fsencode(tmp_path) + b"/" + name)
        assert local_path(escape_path(path)) == path and escape_path(path).isascii()


def test_narrated_segments_of_such_a_video_are_problems(tmp_path: Path) -> None:
    """EPIC-Kitchens: a video below a folder in Latin-1 once stopped all of ingest when its row was written."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    Path(os.fsdecode(folder)).mkdir()
    Path(os.fsdecode(folder), "P01_1.MP4").touch()
    (tmp_path / "P02_7.MP4").touch()
    rows = "".join(f"{video},00:00:00.0,00:00:01.0,cut,cut it\n" for video in ("P01_1", "P02_7"))
    (tmp_path / "table.csv").write_text(f"video_id,start_timestamp,stop_timestamp,verb,narration\n{rows}")
    problem, segment = list_labelled(tmp_path, "table.csv")
    assert isinstance(problem, Problem) and problem.reason == "bad_name" and problem.detail.encode()
    assert os.fsencode(local_path(problem.uri.partition("#")[0])) == folder + b"/P01_1.MP4"
    assert isinstance(segment, VideoSegment) and segment.video == str(tmp_path / "P02_7.MP4")


TABLES = {
    "epic": "video_id,start_timestamp,stop_timestamp,verb\nv\0,00:00:00.0,00:00:01.0,cut\n",
    "kinetics": "label,youtube_id,time_start,time_end\na\0,v,0,10\n",
    "ucf101": "X/v_X_g01_c01.avi 1\nX\0/v_X_g01_c02.avi 1\n",
}


@pytest.mark.parametrize("layout", TABLES)
def test_a_zero_byte_in_annotations_is_named_by_its_line(tree: Path, tmp_path: Path, layout: str) -> None:
    (tmp_path / "table.csv").write_text(TABLES[layout])
    with pytest.raises(InputError, match=r"line 2.*expected"):
        list_videos(str(tree), layout=layout, annotations=str(tmp_path / "table.csv"))


def test_names_longer_than_any_file_has_are_no_file(tmp_path: Path) -> None:
    long = "a" * 5000
    for call in (
        lambda: list_videos(long),
        lambda: list_videos(f"{long}/*.mp4"),
        lambda: list_videos(f"{long}.csv"),
        lambda: list_videos(str(tmp_path), annotations=long),
        lambda: list_labelled(tmp_path, long),
        lambda: list_labelled(long, "x.json"),
        lambda: list_labelled(tmp_path, long, "epic"),
    ):
        with pytest.raises(InputError, match="no such") as error:
            call()
        assert len(str(error.value)) < 700


def test_examples_stay_in_one_line_each(tmp_path: Path) -> None:
    """A file name may hold a line end."""
    (tmp_path / "v.mp4").touch()
    (tmp_path / "a\nb.txt").touch()
    [line] = describe(passed_over_of(list_videos(str(tmp_path))))
    assert line == r"files without a video's ending: 1 (1 .txt): 'a\nb.txt'"
