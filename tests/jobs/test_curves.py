"""The job that draws motion curves: numbers against the scan itself, pictures that show what they should."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jobs.curves import CURVES_SCHEMA, CurvesRecipe, evenly_spaced, main, run, safe_name
from tests.helpers.video_files import marked_frame, write_video
from wm.video import KEYFRAME_RULES, choose_keyframes, scan_video
from wm.viewer.curves import COLOURS, Choice, draw_curve


def recipe(tmp_path: Path, **changes: Any) -> CurvesRecipe:
    keyframes = {"max_keyframes": 3, "min_interval_frames": 4}
    values = {"videos": str(tmp_path / "videos"), "out": str(tmp_path / "out"), "keyframes": keyframes}
    return CurvesRecipe(**(values | changes))


def count_colour(path: Path, colour: str) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB"))
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return int((np.abs(pixels.astype(int) - wanted).max(axis=-1) < 8).sum())


def test_curves_of_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = [marked_frame(index) for index in range(24)]
    write_video(tmp_path / "videos" / "wave" / "a $x_1$ 名.mp4", frames)
    write_video(tmp_path / "videos" / "jump" / "b.avi", frames[:16], codec="mpeg4")
    (tmp_path / "videos" / "jump" / "bad.mp4").write_bytes(b"no video")
    assert run(recipe(tmp_path), dry_run=True) == {} and not (tmp_path / "out").exists()
    record = run(recipe(tmp_path))
    counts = record["counts"]
    assert (counts["listed"], counts["drawn"], counts["skipped"]) == (3, 2, 1)
    assert counts["skipped_by_reason"] == {"not_a_video": 1}
    printed = capsys.readouterr()
    assert "skipped jump/bad.mp4: not_a_video" in printed.err and "2 of 3 clips plotted" in printed.out
    table = pq.read_table(tmp_path / "out" / "curves.parquet")
    assert table.schema.equals(CURVES_SCHEMA)
    by_key = {row["key"]: row for row in table.to_pylist()}
    assert by_key["jump/bad.mp4"]["motion"] is None and by_key["jump/bad.mp4"]["picture"] is None
    for key, number in (("wave/a $x_1$ 名.mp4", 24), ("jump/b.avi", 16)):
        row, scan = by_key[key], scan_video(tmp_path / "videos" / key)
        assert row["class_label"] == key.split("/")[0] and len(row["motion"]) == number
        assert row["motion"] == scan.motion.tolist() and row["times_s"] == scan.times_s.tolist()
        for rule in KEYFRAME_RULES:
            expected = choose_keyframes(scan.motion, max_keyframes=3, min_interval_frames=4, rule=rule)
            assert row[f"keyframes_{rule}"] == expected
        picture = tmp_path / "out" / row["picture"]
        assert all(count_colour(picture, colour) > 30 for colour in COLOURS[: len(KEYFRAME_RULES)])
    assert not list((tmp_path / "out").glob(".*"))
    assert run(recipe(tmp_path)) == record and "already complete" in capsys.readouterr().out


def test_marks_and_strips(tmp_path: Path) -> None:
    motion = np.zeros(50, np.float32)
    times_s = np.arange(50) / 25
    draw_curve(tmp_path / "still.png", "no motion", times_s, motion, [Choice("one", [0], [])])
    few = count_colour(tmp_path / "still.png", COLOURS[0])
    motion[[5, 45]] = 1, 2
    from wm.images import encode_png

    green = encode_png(np.full((40, 60, 3), (0, 255, 0), np.uint8))
    draw_curve(tmp_path / "two.png", "two", times_s, motion, [Choice("one", [5, 45], [green, green])])
    assert count_colour(tmp_path / "two.png", COLOURS[0]) > few > 0
    assert count_colour(tmp_path / "still.png", "#00ff00") == 0
    assert count_colour(tmp_path / "two.png", "#00ff00") > 2 * 100 * 100


def test_clips_are_taken_evenly() -> None:
    assert evenly_spaced(3, 20) == [0, 1, 2]
    assert evenly_spaced(101, 5) == [0, 25, 50, 75, 100]
    for count in range(1, 60):
        for limit in range(1, 60):
            rows = evenly_spaced(count, limit)
            assert len(set(rows)) == min(count, limit) and rows == sorted(rows) and max(rows) < count


@pytest.mark.parametrize("key", ["a/b c.mp4", "../../etc/passwd", "名" * 300, "x" * 500])
def test_names_of_pictures_stay_in_their_folder(key: str) -> None:
    name = safe_name(key)
    assert "/" not in name and name.isascii() and len(name) <= 80


def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["curves", f"videos={tmp_path}/absent", f"out={tmp_path}/out"])
    assert main() == 2
    assert "absent" in capsys.readouterr().err and not (tmp_path / "out").exists()
