"""``look`` against ``annotate`` on the same clips; its order, budget and folders, and what it says of bad input."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.annotate.annotator import Annotator
from jobs.annotate.decoder import Decoder, VideoReader
from jobs.annotate.shards import cut_shards, shard_table
from jobs.look import LookRecipe, main, run
from jobs.look.folder import default_out, safe_name
from jobs.look.job import _find_shards, to_settings
from jobs.look.order import halving_order, spread_rows
from jobs.look.preview import preview
from jobs.look.reading import load_clips, look_at, read_clip
from jobs.look.verdicts import Verdicts, expect, judge
from tests.helpers.annotate_data import recipe as annotate_recipe
from tests.helpers.annotate_data import write_videos
from tests.helpers.video_files import marked_frame, write_video
from wm.datasets.videos.videos import list_videos
from wm.errors import InputError
from wm.runs import read_run

KEYFRAMES = {"min_interval_frames": 8}
FILTERS = {"static": "score", "cut": "on", "cut_ratio": 5.0, "dark": "score", "blurred": "on", "near_duplicate": "on"}
"""Filters that take some pairs out, so that those before and after the near-duplicate filter differ."""


def look_recipe(videos: Path, out: Path | str, **changes: Any) -> LookRecipe:
    settings = {"keyframes": KEYFRAMES, "filters": FILTERS, "videos_per_shard": 4, "budget_s": 0.0, "num_workers": 1}
    return LookRecipe.parse({"videos": str(videos), "out": str(out), **settings, **changes}, "test")


@pytest.fixture(scope="module", autouse=True)
def _shards_of_four() -> Iterator[None]:
    """So few videos would be shards of one each, without repeats among clips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.annotate.shards._MIN_SHARDS", 2)
        yield


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good, broken and odd files, among them one of varying rate, one laid on its side, a repeat and a cut."""
    root: Path = write_videos(tmp_path_factory.mktemp("videos"))
    frames = [marked_frame(index) for index in range(40)]
    write_video(root / "more" / "again.mp4", frames)
    write_video(root / "more" / "cut.mp4", [*frames[:20], *(255 - frame for frame in frames[20:])])
    pts = [index + (index > 20) * 30 for index in range(40)]
    write_video(root / "more" / "slow.mkv", frames, pts=pts)
    write_video(root / "more" / "turned.mov", frames, rotation=90)
    return root


@pytest.fixture(scope="module")
def looked(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[LookRecipe, dict[str, Any]]:
    recipe = look_recipe(videos, tmp_path_factory.mktemp("look") / "out")
    return recipe, run(recipe)


def annotated_pairs(videos: Path, idm: Path, out: Path, rule: str) -> list[dict[str, Any]]:
    """The pairs of ``annotate``, shard by shard, from its own actors."""
    filters = FILTERS | {"action": "score", "unchanged": "score"}
    one = annotate_recipe(videos, idm, out, filters=filters, keyframes={"rule": rule}, videos_per_shard=4)
    decoder = Decoder(one.clip_settings(), one.download_settings(), one.dataset)
    annotator, listing = Annotator(one.annotator_settings()), list_videos(str(videos))
    pairs: list[dict[str, Any]] = []
    for number, rows in cut_shards(listing, one.videos_per_shard).items():
        decoded = decoder(shard_table(listing, number, *rows))
        pairs += annotator.annotate(decoded.to_pylist())["pairs"]
    decoder.reader.close()
    return pairs


NEEDS_NO_MODEL = (
    "triplet_id", "key", "class_label", "source_frame", "target_frame", "motion", "difference", "cut", "luma",
    "sharpness", "source_hash", "target_hash", "repeat_bits",
)  # fmt: skip
MODELS = {"unchanged_codes", "unparsed_action", "unlikely_action", "empty_action"}


@pytest.mark.parametrize("rule", ["top_then_spacing", "greedy_spacing"])
def test_pairs_and_verdicts_are_those_of_annotate(
    videos: Path, looked: tuple[LookRecipe, dict[str, Any]], tiny_base: Path, tmp_path: Path, rule: str
) -> None:
    recipe, _ = looked
    listing, clips = list_videos(str(videos)), load_clips(Path(recipe.out))
    judged = judge(listing, _find_shards(listing, recipe, set(clips)), clips, recipe, rule)
    actual = [pair.row(recipe.dataset, recipe.filters) for pair in judged.all_pairs()]
    expected = annotated_pairs(videos, tiny_base, tmp_path, rule)
    assert len(expected) > 8 and {row["reason"] for row in expected} >= {"", "near_duplicate", "hard_cut"}
    assert [[row[name] for name in NEEDS_NO_MODEL] for row in actual] == [
        [row[name] for name in NEEDS_NO_MODEL] for row in expected
    ]
    for row, other in zip(actual, expected, strict=True):
        assert row["findings"] == [name for name in other["findings"] if name not in MODELS]
        assert row["reason"] == ("" if other["reason"] in MODELS else other["reason"])
    # The tables hold the chosen rule, in annotate's own schemas.
    if rule == recipe.keyframes.rule:
        assert (
            pq.read_table(Path(recipe.out) / "pairs").to_pylist()
            == pa.Table.from_pylist(
                actual, schema=pq.read_schema(Path(recipe.out) / "pairs" / "part-000000.parquet")
            ).to_pylist()
        )


def test_times_counts_and_commands(videos: Path, looked: tuple[LookRecipe, dict[str, Any]]) -> None:
    recipe, record = looked
    counts = record["counts"]
    assert (counts["listed"], counts["videos"], counts["decoded"], counts["unfinished"]) == (10, 10, 7, 0)
    assert counts["failed_by_reason"] == {"empty_file": 1, "not_a_video": 1, "one_frame": 1}
    assert (
        counts["kept"] + sum(counts["findings"][name] for name in ("hard_cut", "blurred_frame", "near_duplicate"))
        >= counts["pairs"]
        > counts["kept"]
    )
    clips = {row["key"]: row for row in pq.read_table(Path(recipe.out) / "clips").to_pylist()}
    assert (clips["more/turned.mov"]["height_px"], clips["more/turned.mov"]["width_px"]) == (64, 48)
    page = json.loads((Path(recipe.out) / "page" / "clips-data.js").read_text()[len("wm.clipsPage(") : -3].join("[]"))
    cards = {card["key"]: card for card in page[1]}
    # Frame 21 and later come 30 steps of 40 ms late; the container counts whole milliseconds.
    curve = cards["more/slow.mkv"]["curve"]
    assert [curve["times_s"][frame] for frame in (0, 20, 21)] == [0.0, 0.8, 2.04] and curve["slow_ms"] == 1240
    assert any(name == "steps" for name, _ in cards["more/slow.mkv"]["facts"])
    assert [clip["key"] for clip in page[0]["failures"]] == ["odd/corrupt.mp4", "odd/empty.mp4", "odd/one.mp4"]
    words = page[0]["commands"][0]
    assert words.startswith(f"wm annotate videos={videos} idm=MODEL out=data/annotated keyframes.min_interval_frames=8")
    assert "filters.cut=on" in words and "filters.static" not in words and "videos_per_shard=4" in words


def test_what_shows_does_not_depend_on_the_budget(
    videos: Path, looked: tuple[LookRecipe, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = load_clips(Path(looked[0].out))
    recipe = look_recipe(videos, tmp_path / "out", budget_s=1e-9)
    with pytest.raises(InputError, match="no clip was read within budget_s"):
        run(recipe)
    assert not (tmp_path / "out" / "index.html").exists()
    # One of each class comes first; the verdict on repeats waits for the earlier clips of a shard.
    few = recipe.model_copy(update={"budget_s": 0.0, "max_clips": 5})
    assert run(few)["counts"]["videos"] == 5
    listing, part = list_videos(str(videos)), load_clips(tmp_path / "out")
    assert sorted({listing.column("class_label")[row].as_py() for row in part}) == ["more", "odd", "wave"]
    shards = _find_shards(listing, few, set(whole))
    first, all_of_it = (judge(listing, shards, clips, few, "top_then_spacing") for clips in (part, whole))
    for row in first.repeats_known:
        assert [pair.reason for pair in first.pairs[row]] == [pair.reason for pair in all_of_it.pairs[row]]
    # Clip 1 of the first shard is missing: of clip 2 repeats are not told.
    assert set(first.videos) - first.repeats_known == {2} and all_of_it.repeats_known == set(whole)
    # The same command, with more of it: only what is missing is read.
    capsys.readouterr()
    assert run(recipe.model_copy(update={"budget_s": 0.0, "num_workers": 2}))["counts"]["videos"] == 10
    assert "resuming, 5 of 10 clips are finished" in capsys.readouterr().out
    assert without_times(load_clips(tmp_path / "out")) == without_times(whole)
    assert run(recipe)["counts"]["videos"] == 10 and "already complete" in capsys.readouterr().out


def without_times(clips: dict[int, Any]) -> dict[int, Any]:
    """What is stored of clips, but for how long it took."""
    text = json.dumps(clips, sort_keys=True)
    rows: dict[int, Any] = json.loads(text)
    for clip in rows.values():
        for decoding in clip["decodings"].values():
            for name in ("scan_s", "fetch_s", "failed_s"):
                decoding.pop(name, None)
    return rows


def test_a_clip_that_the_budget_ends_stays_to_be_read(videos: Path, tmp_path: Path) -> None:
    recipe = look_recipe(videos, tmp_path / "out")
    annotate = recipe.to_annotate()
    reader = VideoReader(annotate.clip_settings(), annotate.download_settings())
    reader.clips.deadline = time.monotonic()
    (video,) = shard_table(list_videos(str(videos / "wave" / "good.mp4")), 0, 0, 1).to_pylist()
    clip = read_clip(reader, video, video["path"], row=0, recipe=recipe, sheets=tmp_path)
    reader.clips.close()
    assert clip["unfinished"] and clip["decodings"] == {} and not list(tmp_path.iterdir())
    # It is named on the page, and counts as not looked at.
    listing = list_videos(str(videos / "wave" / "good.mp4"))
    assert judge(listing, {0: (0, 0, 1)}, {0: clip}, recipe, "top_then_spacing").videos == {}


def test_an_end_ends_what_would_take_over_from_a_killed_process(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device's process that is killed is no reason to measure the clip anew by the CPU."""
    readers: list[VideoReader] = []

    def build_reader(*settings: Any) -> VideoReader:
        readers.append(VideoReader(*settings))
        return readers[-1]

    def interrupt(reader: VideoReader, *args: Any, **kwargs: Any) -> None:
        assert reader.clips.limit_s(100.0) == 100.0
        raise KeyboardInterrupt

    monkeypatch.setattr("jobs.look.reading.VideoReader", build_reader)
    monkeypatch.setattr("jobs.look.reading.read_clip", interrupt)
    recipe, listing = look_recipe(videos, tmp_path / "out"), list_videos(str(videos / "wave" / "good.mp4"))
    with pytest.raises(KeyboardInterrupt):
        look_at(listing, {0: (0, 0, 1)}, [0], recipe, tmp_path, deadline=float("inf"), on_clip=print)
    (reader,) = readers
    assert reader.clips.limit_s(100.0) == 0.0


def test_of_a_video_beyond_the_budget_the_beginning_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "long.mp4", [marked_frame(index % 64) for index in range(90)])
    monkeypatch.setattr("jobs.look.preview.PREVIEW_S", 2.0)
    recipe = look_recipe(path, tmp_path / "out")
    listing = list_videos(str(path))
    piece = preview(listing, 0, recipe, tmp_path)
    assert piece is not None and piece[0].column("key").to_pylist() == ["long.mp4#-2.0"]
    # 2 s of 25 frames each, and the pairs of that segment.
    assert piece[1]["curve"] is not None and piece[1]["curve"]["frames"] == 50
    verdicts = judge(piece[0], {0: (0, 0, 1)}, {0: piece[1]}, recipe, "greedy_spacing")
    assert len(verdicts.all_pairs()) >= 3 and max(verdicts.videos[0]["times_s"]) < 2.0


def test_any_number_of_first_clips_is_evenly_spread() -> None:
    assert list(halving_order(5)) == [0, 4, 2, 1, 3] and list(halving_order(1)) == [0] and not list(halving_order(0))
    labels = ["a"] * 64 + ["b"] * 2 + ["c"] * 8
    order = list(spread_rows(labels))
    assert sorted(order) == list(range(74)) and [labels[row] for row in order[:6]] == ["a", "c", "b", "a", "c", "b"]
    of_a = [row for row in order if labels[row] == "a"]
    for count in (2, 4, 8, 16, 32):
        assert np.diff(sorted(of_a[:count])).tolist() == [64 // count] * (count - 1)
    assert list(spread_rows([])) == []


def test_each_class_counts_for_its_share_of_the_set() -> None:
    listing = pa.table({"class_label": ["a"] * 8 + ["b"] * 2 + ["c"] * 10})
    video: Any = {"num_frames": 10, "duration_s": 2.0, "scan_s": 0.5, "fetch_s": None, "failed_s": None}
    pair: Any = type("Pair", (), {"reason": ""})()
    left_out: Any = type("Pair", (), {"reason": "static"})()
    judged = Verdicts({0: video, 3: video, 8: video}, {0: [pair], 3: [pair] * 3, 8: [left_out] * 5})
    # Clips of a count 4 times, that of b twice; c, of which none was read, is taken for the mean: 2 times all.
    expected = expect(listing, judged)
    assert expected.pairs == pytest.approx(2 * (4 * 4 + 2 * 5)) and expected.kept == pytest.approx(2 * 16)
    assert (expected.frames, expected.length_s, expected.reading_s) == pytest.approx((200, 40, 10))


def test_the_folder_is_never_among_the_videos(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    outside = default_out(look_recipe(videos, ""), "digest")
    assert outside.parts[:2] == ("runs", "look") and outside.name.startswith(f"{videos.name}-")
    assert default_out(look_recipe(videos, "", budget_s=9.0, max_clips=1), "digest") == outside
    assert default_out(look_recipe(videos, "", image_px=99), "digest") != outside
    monkeypatch.chdir(videos / "wave")
    for spec in (".", "..", "*.mp4", "good.mp4", f"{videos}/**/*.mp4"):
        assert default_out(look_recipe(Path(spec), ""), "digest").is_relative_to(tmp_path / "cache" / "wm" / "look")
    monkeypatch.chdir(videos)
    assert default_out(look_recipe(Path("s3://bucket/clips/*.mp4"), ""), "d").name.startswith("clips-")
    for name in ("../../etc", "名" * 300, "a b\n<c>", ""):
        assert "/" not in safe_name(name) and safe_name(name).isascii() and 0 < len(safe_name(name)) <= 60


def test_the_videos_stand_alone_on_the_command_line(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a=b").mkdir()
    assert to_settings(["V", "filters.cut=on", "--dry-run"]) == ["videos=V", "filters.cut=on", "--dry-run"]
    assert to_settings(["s3://b/x=1/"]) == ["videos=s3://b/x=1/"] and to_settings(["a=b"]) == ["videos=a=b"]
    assert to_settings(["r.toml", "videos=V", "c=d"]) == ["r.toml", "videos=V", "c=d"]
    with pytest.raises(InputError, match=r"2 paths .* in quotes"):
        to_settings(["a.mp4", "b.mp4"])
    for words, status, message in (
        ([str(videos), "--dry-run"], 0, "would look at 10 of 10 clips; page: runs/look/"),
        (["a.mp4", "b.mp4"], 2, "in quotes"),
        (["absent"], 2, "videos = 'absent': no such file or folder"),
        ([str(videos), "limit=3"], 2, "max_clips"),
    ):
        monkeypatch.setattr("sys.argv", ["wm look", *words])
        assert main() == status
        printed = capsys.readouterr()
        assert message in printed.out + printed.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a=b"]


def test_a_folder_without_videos_says_what_was_passed_over(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    with pytest.raises(InputError, match=r"none of 1 files has a video's ending .*1 \.txt.*notes\.txt"):
        run(look_recipe(tmp_path / "in", tmp_path / "out"))
    assert read_run(tmp_path / "out") is None and not (tmp_path / "out").exists()
