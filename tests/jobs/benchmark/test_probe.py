"""The probe: its sample, when it ends, and rates by hand from the marks of a stand-in for wm annotate."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmark import probe
from jobs.benchmark.probe import BenchmarkRecipe, measure_efficiency, measure_window, run
from tests.helpers.triplet_files import triplet, write_output
from wm.datasets.videos.list_files import read_list
from wm.errors import InputError
from wm.runs import write_json

COUNTS: dict[str, Any] = {
    "videos": 4, "decoded": 3, "frames": 600, "video_s": 24.0, "paired": 3, "keyframes": 9, "keyframes_of_paired": 9,
    "pairs": 6, "triplets": 1, "videos_with_triplets": 3, "observations": 8, "words": 20, "filtered": 1, "failed": 1,
    "reasons": {}, "findings": {}, "readers": {}, "decord_fallbacks": 0,
    "seconds": {"scan": 2.0, "fetch": 1.0, "encode": 3.0, "idm": 1.5, "write": 0.5},
}  # fmt: skip

STAND_IN = """
import json, signal, sys, time
from pathlib import Path
keys = dict(word.split("=", 1) for word in sys.argv[1:])
marks = Path(keys["out"]) / "shards"
marks.mkdir(parents=True, exist_ok=True)
(Path(keys["out"]) / "words.json").write_text(json.dumps(keys))
for number in range(int({shards})):
    (marks / f"shard-{{number:06d}}.json").write_text({mark!r})
if {waits}:
    signal.pause()
sys.exit({status})
"""


def stand_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shards: int, *, waits: bool = False, status: int = 0
) -> None:
    """Let a script run in place of wm annotate."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.format(shards=shards, mark=json.dumps(COUNTS), waits=waits, status=status))
    monkeypatch.setattr(probe, "_COMMAND", (sys.executable, str(script)))


def recipe(tmp_path: Path, **keys: Any) -> BenchmarkRecipe:
    videos = tmp_path / "videos"
    for number in range(6):
        (videos / f"c{number % 2}").mkdir(parents=True, exist_ok=True)
        (videos / f"c{number % 2}" / f"{number}.mp4").touch()
    fields = {"videos": str(videos), "idm": str(tmp_path), "work": str(tmp_path / "w"), "out": str(tmp_path / "p.json")}
    return BenchmarkRecipe.parse(fields | keys, "test")


def test_a_probe_ends_in_time_and_writes_rates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(monkeypatch, tmp_path, 5, waits=True)
    write_output(tmp_path / "w" / "annotated", [triplet(number) for number in range(5)])
    # A time that is over with the first look.
    mine = recipe(tmp_path, minutes=1e-9, max_videos=4, overrides=["resources.num_decoders=3"])
    assert run(mine, dry_run=True) == {} and not (tmp_path / "p.json").exists()
    record: dict[str, Any] = run(mine)
    assert record == json.loads((tmp_path / "p.json").read_text()) and record["is_complete"] is False
    # Five shards: 3,000 frames in 10 s of scanning, 45 images in 5 s of reading and 15 of encoding, 30 pairs in 7.5 s.
    assert record["rates"] == {
        "dis_frames_per_s": 300.0, "fetch_images_per_s": 9.0, "encode_images_per_s": 3.0, "idm_pairs_per_s": 4.0,
        "write_triplets_per_s": 2.0,
    }  # fmt: skip
    counts = record["counts"]
    assert (counts["videos"], counts["decoded"], counts["triplets"], record["listed"]) == (20, 15, 5, 6)
    assert counts["triplet_bytes"] == sum(
        path.stat().st_size for path in (tmp_path / "w" / "annotated" / "triplets").glob("*.parquet")
    )
    words = json.loads((tmp_path / "w" / "annotated" / "words.json").read_text())
    assert words["resources.num_decoders"] == "3" and words["videos"] == str(tmp_path / "w" / "sample.parquet")
    # Four of the six, with absolute addresses and their classes.
    entries = list(read_list(Path(words["videos"]), words["videos"], lambda _path: ""))
    assert len(entries) == 4 and all(Path(entry.uri).is_file() for entry in entries)
    assert {entry.class_label for entry in entries} <= {"c0", "c1"}
    assert "idm_pairs_per_s" in capsys.readouterr().out


def test_an_annotation_that_fails_or_is_late_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, tmp_path, 0, status=2)
    with pytest.raises(InputError, match="wm annotate ended with status 2"):
        run(recipe(tmp_path))
    stand_in(monkeypatch, tmp_path, 0, waits=True)
    with pytest.raises(InputError, match="no shard was finished within 1e-09 minutes"):
        run(recipe(tmp_path, start_limit_minutes=1e-9))
    with pytest.raises(InputError, match=r"unknown key .resources\.decoders."):
        run(recipe(tmp_path, overrides=["resources.decoders=3"]))


def test_efficiency_by_hand(tmp_path: Path) -> None:
    for number in range(5):
        mark = tmp_path / f"shard-{number:06d}.json"
        write_json(mark, COUNTS)
        os.utime(mark, (1000 + 2 * number, 1000 + 2 * number))
    window = measure_window({mark: mark.stat().st_mtime for mark in sorted(tmp_path.glob("*.json"))})
    # From the first shard's end on: four shards in 8 s, 3 s of decoders and 5 s of annotators each.
    assert window == {
        "seconds": 8.0, "shards": 4, "videos": 16, "pool_s": {"decoders": 12.0, "annotators": 20.0}
    }  # fmt: skip
    assert measure_efficiency(window, {"decoders": range(2, 2), "annotators": range(3, 3)}) is None
    long = window | {"shards": 40}
    assert measure_efficiency(long, {"decoders": range(2, 2), "annotators": range(4, 4)}) == 0.75
    assert measure_efficiency(long, {"decoders": range(1, 1), "annotators": range(4, 4)}) == 1.0
    # Pools that grow: nobody knows how many there were.
    assert measure_efficiency(long, {"decoders": range(2, 8), "annotators": range(4, 4)}) is None
