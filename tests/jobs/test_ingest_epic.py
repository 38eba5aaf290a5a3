"""EPIC-Kitchens' segments as people's triplets: the frames at both ends, the narration, rejects for the rest."""

from pathlib import Path

import pytest

from jobs.ingest.job import IngestRecipe, run
from jobs.ingest.recipe import IngestResources
from tests.helpers.video_files import marked_frame, read_mark, write_video
from wm.datasets.layouts.base import Problem, VideoSegment
from wm.datasets.layouts.labelled import list_labelled
from wm.errors import InputError
from wm.images import decode_image
from wm.records import REJECT_SCHEMA
from wm.tables import read_table
from wm.video.ends import segment_ends
from wm.video.errors import VideoError

TABLE = """\
narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,narration,verb
P01_1_0,P01,P01_1,00:00:00.10,00:00:00.40,00:00:01.20,1,2,open the door,open
P01_1_1,P01,P01_1,00:00:01.10,00:00:01.21,00:00:02.01,1,2,turn on light,turn-on
P02_7_0,P02,P02_7,00:00:00.10,00:00:00.40,00:00:01.20,1,2,wash cup,wash
P01_1_2,P01,P01_1,00:00:01.10,00:00:02.00,00:00:02.03,1,2,blink,blink
P01_1_3,P01,P01_1,00:00:01.10,00:00:09.00,00:00:09.50,1,2,too late,come
P01_1_4,P01,P01_1,00:00:01.10,00:00:01.00,00:00:01.50,1,2,,come
P01_1_0,P01,P01_1,00:00:00.10,00:00:00.40,00:00:01.20,1,2,open the door,open
"""
FPS = 25


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 60 marked frames where EPIC keeps it, another that is broken, and the table beside them."""
    root = tmp_path_factory.mktemp("epic")
    write_video(root / "P01" / "videos" / "P01_1.MP4", [marked_frame(index) for index in range(60)], fps=FPS)
    (root / "P02" / "videos").mkdir(parents=True)
    (root / "P02" / "videos" / "P02_7.MP4").write_bytes(b"no video")
    (root / "table.csv").write_text(TABLE)
    return root


def recipe(root: Path, out: Path, **more: object) -> IngestRecipe:
    return IngestRecipe(
        root=str(root), file="table.csv", out=str(out), resources=IngestResources(num_workers=0), **more
    )


def test_segments_become_triplets_and_rejects(kitchen: Path, tmp_path: Path, tiny_base: Path) -> None:
    record = run(recipe(kitchen, tmp_path / "out", codec=str(tiny_base), dataset="epic", shard_rows=3))
    rows = sorted(read_table(tmp_path / "out" / "triplets").to_pylist(), key=lambda row: row["source_time_s"])
    assert [(row["action"], row["class_label"], row["origin"]) for row in rows] == [
        ("open the door", "open", "human"),
        ("turn on light", "turn-on", "human"),
    ]
    # Frame k is shown at k / 25 s: within half a step [.40, 1.20) holds frames 10 to 29, [1.21, 2.01) 30 to 49.
    for row, (first, last) in zip(rows, [(10, 29), (30, 49)], strict=True):
        marks = [read_mark(decode_image(row[f"{side}_image"]["bytes"], side)) for side in ("source", "target")]
        assert marks == [first, last]
        assert (row["source_frame"], row["target_frame"]) == (0, last - first)
        assert [row["source_time_s"], row["target_time_s"]] == pytest.approx([first / FPS, last / FPS])
        assert len(row["source_codes"]) == 4 and row["video_uri"].endswith("P01/videos/P01_1.MP4")
    rejects = read_table(tmp_path / "out" / "rejects", REJECT_SCHEMA).to_pylist()
    assert sorted((row["uri"].rpartition("#")[2], row["reason"]) for row in rejects) == [
        ("P01_1_0", "duplicate"),
        ("P01_1_2", "one_frame"),
        ("P01_1_3", "no_frames"),
        ("P01_1_4", "missing_field"),
        ("P02_7_0", "not_a_video"),
    ]
    assert record["counts"]["rows"] == 7


def test_a_sample_is_drawn_by_the_seed_alone(kitchen: Path, tmp_path: Path) -> None:
    actual = [
        [*sorted(read_table(out / "triplets").column("action").to_pylist()), record["counts"]["rejects"]]
        for seed, name in ((1, "a"), (1, "b"), (2, "c"))
        for out in [tmp_path / name]
        for record in [run(recipe(kitchen, out, sample=3, seed=seed, shard_rows=1 + (name == "b")))]
    ]
    assert actual[0] == actual[1] and len(actual[0]) + actual[0][-1] == 4
    assert actual[0] != actual[2]


def test_frames_of_the_whole_file_and_their_size(kitchen: Path) -> None:
    path = kitchen / "P01" / "videos" / "P01_1.MP4"
    ends = segment_ends(path, None, None, 24)
    assert (ends.num_frames, ends.source_time_s, ends.target_time_s) == (60, 0.0, pytest.approx(59 / FPS))
    assert decode_image(ends.target_png, "target").shape == (24, 32, 3)
    assert decode_image(segment_ends(path, None, None, 0).target_png, "target").shape == (48, 64, 3)
    with pytest.raises(VideoError, match=r"no frame from 9 s to 9.5 s"):
        segment_ends(path, 9.0, 9.5, 0)


def test_what_is_wrong_with_the_table_is_told_first(kitchen: Path, tmp_path: Path) -> None:
    for changes, message in (
        ({"root": str(tmp_path / "gone")}, "no such folder: root"),
        ({"file": "gone.csv"}, r"no such file: .*gone\.csv"),
        ({"dataset_layout": "aurora"}, "not valid JSON"),
    ):
        with pytest.raises(InputError, match=message):
            run(recipe(kitchen, tmp_path / "out").model_copy(update=changes))
    assert not (tmp_path / "out").exists()
    problems = [entry for entry in list_labelled(kitchen, "table.csv") if isinstance(entry, Problem)]
    assert [problem.reason for problem in problems] == ["duplicate", "missing_field"]


def test_videos_that_no_segment_names_are_counted(kitchen: Path, tmp_path: Path) -> None:
    (tmp_path / "P01").symlink_to(kitchen / "P01")
    (tmp_path / "P09.mp4").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "table.csv").write_text(TABLE)
    record: dict[str, dict[str, object]] = {}
    entries = list_labelled(tmp_path, "table.csv", passed_over=record)
    assert (
        next(entry.video for entry in entries if isinstance(entry, VideoSegment)) == f"{tmp_path}/P01/videos/P01_1.MP4"
    )
    assert {kind: (entry["count"], entry["examples"]) for kind, entry in record.items()} == {
        "other_endings": (2, ["notes.txt", "table.csv"]),
        "unnamed": (1, ["P09.mp4"]),
        "absent": (1, ["P02_7"]),
    }
